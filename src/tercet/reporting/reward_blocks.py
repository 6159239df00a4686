"""Show how far a reward model can be trusted, from calibration.json in its run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tercet.errors import CheckpointError
from tercet.evaluation.evaluate import estimate
from tercet.reporting import figures
from tercet.reporting.blocks import Block, Chart, Row, Table, charts, measured, minus
from tercet.reporting.figures import Curve
from tercet.statistics.intervals import Estimate
from tercet.training.run import Run


def trust(run: Run, name: str) -> list[Block]:
    """Return the calibration curve, the accuracy by clarity of the pairs and by length, and their summary.

    The list is empty where calibration was not measured. `name` makes the ids of the figures unique. Raises
    CheckpointError where calibration.json is damaged.
    """
    file = run.path / "calibration.json"
    if not file.is_file():
        return []
    try:
        measurements: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return _blocks(measurements, name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: damaged: {error!r}; remove it to leave these figures out") from error


CURVE = "Held-out pairs by the certainty of the reward model. On the dashed line, certainty equals accuracy."
LENGTH = (
    "Accuracy by length difference: characters of the better answer minus those of the other (number of pairs in "
    "brackets). A model that prefers length is bad on negative and good on positive differences."
)
SUMMARY = (
    ("calibration_error", "expected calibration error", "mean distance between certainty and accuracy over the bins"),
    ("overconfidence", "certainty minus accuracy", "above 0 means that the model is too certain"),
    ("prefers_longer", "the reward model prefers the longer answer", "share of pairs that differ in length"),
    ("annotator_prefers_longer", "the annotator prefers the longer answer", "share of the same pairs"),
)


def _blocks(measurements: Mapping[str, Any], name: str) -> list[Block]:
    certain, gap, length = ([*measurements[key]] for key in ("by_certainty", "by_gap", "by_length"))
    scores = [g["accuracy"]["value"] for g in certain]
    curve = Curve("reward model", [100 * g["mean"] for g in certain], scores, _accuracies(certain))
    perfect = Curve("perfect", [50, 100], [0.5, 1.0])
    of = "scores" if measurements["gap"] == "score" else "ranks"
    clarity = f"Accuracy by the difference of the annotator's {of}: how clear a pair is (number of pairs in brackets)."
    rows = [
        Row(title, (measured(measurements[key], percent=True),), note)
        for key, title, note in SUMMARY
        if measurements[key]
    ]
    certainty = "certainty of the choice, %"
    return [
        *charts(
            figures.lines(f"{name}-calibration", CURVE, certainty, "accuracy", [curve, perfect], percent=True),
            _dots(f"{name}-gap", clarity, gap),
            _dots(f"{name}-length", LENGTH, length),
        ),
        Table("Certainty and length", ("measure", "value, 95 % interval"), tuple(rows)),
    ]


def _dots(name: str, caption: str, groups: Sequence[Mapping[str, Any]]) -> Chart | None:
    labels = [f"{_range(g)} ({g['pairs']:,})" for g in groups]
    return figures.dots(name, caption, "accuracy", labels, {"reward model": _accuracies(groups)}, percent=True)


def _accuracies(groups: Sequence[Mapping[str, Any]]) -> list[Estimate]:
    return [estimate(dict(g["accuracy"])) for g in groups]


def _range(group: Mapping[str, Any]) -> str:
    low, high = (minus(f"{group[key]:.4g}") for key in ("from", "to"))
    return low if low == high else f"{low} to {high}"
