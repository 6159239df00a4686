"""How far a reward model can be trusted, for the report: what posttraining/reward_model/calibration.py wrote beside the run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tercet.errors import CheckpointError
from tercet.evaluation.evaluate import estimate
from tercet.reporting import figures
from tercet.reporting.blocks import Block, Row, Table, charts, measured, minus
from tercet.reporting.figures import Curve
from tercet.statistics.intervals import Estimate
from tercet.training.run import Run


def trust(run: Run, name: str) -> list[Block]:
    """Calibration curve, accuracy by clearness and by length, and what sums them up; nothing where it was not measured.

    `name` makes the ids of the figures unique. Raises CheckpointError where calibration.json is damaged.
    """
    file = run.path / "calibration.json"
    if not file.is_file():
        return []
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return _blocks(found, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged: {error!r}; remove it to leave these figures out") from error


def _blocks(found: Mapping[str, Any], name: str) -> list[Block]:
    certain, gap, length = ([*found[key]] for key in ("by_certainty", "by_gap", "by_length"))
    of = "scores" if found["gap"] == "score" else "ranks"
    curve = Curve(
        "reward model",
        [100 * g["mean"] for g in certain],
        [g["accuracy"]["value"] for g in certain],
        _accuracies(certain),
    )
    rows = [
        Row(title, (measured(found[key], percent=True),), note)
        for key, title, note in (
            ("calibration_error", "expected calibration error", "how far certainty is from the share of right pairs, on average over the bins"),
            ("overconfidence", "certainty above accuracy", "above 0: it is surer than it should be"),
            ("prefers_longer", "the reward model prefers the longer answer", "of pairs that differ in length"),
            ("annotator_prefers_longer", "the annotator prefers the longer answer", "of the same pairs"),
        )
        if found[key]
    ]  # fmt: skip
    return [
        *charts(
            figures.lines(f"{name}-calibration", "Held-out pairs by how certain the reward model is of its choice. On the dashed line certainty is right.",
                          "certainty of the choice, %", "right choices", [curve, Curve("perfect", [50, 100], [0.5, 1.0])], percent=True),
            figures.dots(f"{name}-gap", f"Accuracy by how clear a pair is: the difference of the annotator's {of}.", "accuracy",
                         [f"{_range(g)} ({g['pairs']:,})" for g in gap], {"reward model": _accuracies(gap)}, percent=True),
            figures.dots(f"{name}-length", "Accuracy by how many characters the better answer has more than the other (pairs in brackets). A judge that "
                         "prefers length is good below and bad above.", "accuracy",
                         [f"{_range(g)} ({g['pairs']:,})" for g in length], {"reward model": _accuracies(length)}, percent=True),
        ),
        Table("Certainty and length", ("measure", "value, 95 % interval"), tuple(rows)),
    ]  # fmt: skip


def _accuracies(groups: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    return [estimate(dict(g["accuracy"])) for g in groups]


def _range(group: Mapping[str, Any]) -> str:
    low, high = (minus(f"{group[key]:.4g}") for key in ("from", "to"))
    return low if low == high else f"{low} to {high}"
