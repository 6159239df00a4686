"""`tercet compare A B`: says in a sentence whether B is better, from what `tercet eval --out` wrote.

A and B are runs as the scores name them, or score files with one model each. Several runs of one kind, joined with
commas, are several seeds: then seeds and items are both taken as samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tercet.errors import ConfigError, DataError
from tercet.evaluation.statistics import (
    Paired,
    advice,
    check_scores,
    compare_seeds,
    holm,
    macro_test,
    paired_test,
    spread_of,
    verdict,
)

LOWER_IS_BETTER = ("bits_per_byte",)


@dataclass(frozen=True)
class Measured:
    """One measure of one model, item by item, higher is better."""

    ids: tuple[str, ...]
    scores: list[float]
    groups: list[str] | None


def measures(row: Mapping[str, Any], where: str) -> dict[str, Measured]:
    """Every measure of a model's scores that has a value for each item. Raises DataError where a file is damaged."""
    out = {}
    for name, task in (row.get("suite") or {}).get("tasks", {}).items():
        metric = task["metric"]
        scores = check_scores(task["each"][metric], f"{where}: {name}")
        sign = -1 if metric in LOWER_IS_BETTER else 1
        out[name] = Measured(tuple(map(str, task["ids"])), [sign * s for s in scores], task.get("groups"))
    for name, scores in (row.get("each") or {}).items():
        out[name] = Measured(tuple(row["ids"]), check_scores(scores, f"{where}: {name}"), None)
    return out


def compare(a: str, b: str, files: Sequence[str]) -> dict[str, Any]:
    """The sentence, and every measure's comparison with p corrected for their number (Holm).

    Raises ConfigError where a model is not in the files or the two share no measure, DataError for a damaged file.
    """
    sides = [[_find(name, files) for name in side.split(",")] for side in (a, b)]
    common = [m for m in sides[0][0] if all(m in model for side in sides for model in side)]
    if not common:
        raise ConfigError(
            f"{a} and {b} share no measure with a score for each item; evaluate both with the same --suite or --tasks, and --out"
        )
    for measure in common:
        if len({model[measure].ids for side in sides for model in side}) > 1:
            raise ConfigError(
                f"{measure}: {a} and {b} were measured on other items; evaluate both with the same data, --limit and --seed"
            )
    if any(len(side) > 1 for side in sides):
        return _over_seeds(a, b, sides, common)
    first, second = sides[0][0], sides[1][0]
    tests = {m: paired_test(first[m].scores, second[m].scores, first[m].groups) for m in common}
    corrected = dict(zip(common, holm([t.p for t in tests.values()])))
    overall = (
        tests[common[0]] if len(common) == 1
        else macro_test([Paired(first[m].scores, second[m].scores, first[m].groups) for m in common])
    )  # fmt: skip
    spread = spread_of([s for m in common for s in first[m].scores], [s for m in common for s in second[m].scores])
    more = "" if overall.p < 0.05 else " " + advice(overall, spread)
    scope = "" if len(common) == 1 else f" The score is the mean over {len(common)} measures."
    one = " One run of each was measured: another seed of the same training may differ."
    return {
        "sentence": verdict(a, b, overall) + scope + more + one,
        "overall": overall.to_json(),
        "measures": {m: {**t.to_json(), "p_holm": corrected[m]} for m, t in tests.items()},
    }


def _over_seeds(
    a: str, b: str, sides: Sequence[Sequence[Mapping[str, Measured]]], common: Sequence[str]
) -> dict[str, Any]:
    if min(map(len, sides)) < 2:
        raise ConfigError(f"{a} against {b}: name two runs or more, joined with commas, on both sides, or one on each")
    found = {}
    for m in common:
        tables = [np.array([model[m].scores for model in side]) for side in sides]
        difference, p = compare_seeds(tables[0], tables[1])
        means = [float(t.mean()) for t in tables]
        found[m] = {
            "a": means[0],
            "b": means[1],
            "difference": difference.to_json(),
            "p": p,
            "items": tables[0].shape[1],
        }
    # each measure counts the same: weigh its items so that their sum is its mean
    joined = [
        np.concatenate([np.array([model[m].scores for model in side]) / len(side[0][m].ids) for m in common], axis=1)
        for side in sides
    ]
    scale = joined[0].shape[1] / len(common)
    difference, p = compare_seeds(joined[0] * scale, joined[1] * scale)
    for (_, row), corrected in zip(found.items(), holm([r["p"] for r in found.values()])):
        row["p_holm"] = corrected
    means = [sum(r[k] for r in found.values()) / len(found) for k in ("a", "b")]
    word = (
        "No difference can be seen between"
        if p >= 0.05
        else "is better than"
        if difference.value > 0
        else "is worse than"
    )
    head = f"{word} {b} and {a}" if p >= 0.05 else f"{b} {word} {a}"
    sentence = (
        f"{head}: {means[1]:.3f} against {means[0]:.3f}, difference {difference} (p = {p:.2g}, over {len(sides[1])} and "
        f"{len(sides[0])} seeds and the same {joined[0].shape[1]} items)."
    )
    return {"sentence": sentence, "overall": {"difference": difference.to_json(), "p": p}, "measures": found}


def _find(name: str, files: Sequence[str]) -> dict[str, Measured]:
    """The measures of a model: of the run of that name in the score files, or of a score file with one model."""
    looked = [name] if name.endswith(".json") else list(files)
    known: list[str] = []
    for file in looked:
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
            models = found["models"]
            rows = dict(models)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: is not what `tercet eval --out` writes ({error})") from error
        if name == file and len(rows) != 1:
            raise ConfigError(
                f"{file} holds {len(rows)} models; name two of them and give the file with --scores: {', '.join(rows)}"
            )
        key = next(iter(rows)) if name == file else next((k for k in rows if Path(k) == Path(name)), None)
        if key is not None:
            try:
                return measures(rows[key], f"{file}: {key}")
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: {key}: damaged scores ({type(error).__name__}: {error})") from error
        known += rows
    raise ConfigError(f"no scores of {name}; the files have {', '.join(known) or 'no models'}: name them with --scores")
