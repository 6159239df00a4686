"""`tercet compare A B`: a sentence that says whether B is better, from the files that `tercet eval --out` wrote.

A and B are names of runs in these files, or files with one model each. Runs joined with commas are several seeds of one
training; seeds and items then both count as samples.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring.score_files import current
from tercet.evaluation.scoring.scorers import canonical
from tercet.statistics.significance import (
    Paired,
    advice,
    compare_seeds,
    comparison_sentence,
    finite_scores,
    holm,
    macro_test,
    paired_test,
    seeds_advice,
)

LOWER_IS_BETTER = ("bits_per_byte",)


@dataclass(frozen=True)
class Measured:
    """One measure of one model: a score for each item, higher is better."""

    ids: tuple[str, ...]
    scores: list[float]
    groups: list[str] | None
    items: str
    """name of the set of items; measures of the same items share it"""
    setup: str = ""
    """metric, version and number of shots; scores of another setup cannot be compared"""


def measures(row: Mapping[str, Any], where: str) -> dict[str, Measured]:
    """Return every measure that has a score for each item. Raises DataError if they are damaged."""
    row, out = current(row), {}
    for name, task in (row.get("suite") or {}).get("tasks", {}).items():
        metric = task["metric"]
        scores = finite_scores(task["each"][metric], f"{where}: {name}")
        sign = -1 if metric in LOWER_IS_BETTER else 1
        setup = f"{canonical(metric)}, version {task.get('version')}, {task.get('shots')} shots"
        ids, groups = tuple(map(str, task["ids"])), task.get("groups")
        out[name] = Measured(ids, [sign * s for s in scores], groups, f"suite/{name}", setup)
    for name, scores in (row.get("each") or {}).items():
        out[name] = Measured(tuple(map(str, row["ids"])), finite_scores(scores, f"{where}: {name}"), None, "tasks")
    for name, m in out.items():
        sizes = {len(m.ids), len(m.scores), len(m.scores if m.groups is None else m.groups)}
        if sizes != {len(m.ids)} or not m.ids:
            raise DataError(
                f"{where}: {name}: found {len(m.ids)} ids and {len(m.scores)} scores; wanted equally many ids, scores "
                "and groups, and at least one"
            )
    return out


def _sets(model: Mapping[str, Measured], common: Sequence[str]) -> dict[str, Measured]:
    """Return the mean over the measures of each set of items, since scores of the same items are not independent."""
    sets: dict[str, list[Measured]] = {}
    for name in common:
        sets.setdefault(model[name].items, []).append(model[name])
    return {k: replace(v[0], scores=[sum(s) / len(v) for s in zip(*(m.scores for m in v))]) for k, v in sets.items()}


def compare(a: str, b: str, files: Sequence[str]) -> dict[str, Any]:
    """Return the sentence, and the comparison by every measure with p corrected for their number (Holm).

    Raises ConfigError if a model is not in the files, is named twice, or shares no measure with the other, DataError if
    a file is damaged.
    """
    seeds = [Path(name) for side in (a, b) for name in side.split(",")]
    if len(seeds) > 2 and len(set(seeds)) < len(seeds):
        raise ConfigError(f"{a} against {b}: a run is named twice; wanted every seed once")
    sides = [[_find(name, files) for name in side.split(",")] for side in (a, b)]
    common = [m for m in sides[0][0] if all(m in model for side in sides for model in side)]
    if not common:
        raise ConfigError(
            f"{a} and {b} share no measure with a score for each item; evaluate both with `tercet eval --out` and the "
            "same --suite or --questions"
        )
    for measure in common:
        if len({model[measure].ids for side in sides for model in side}) > 1:
            raise ConfigError(
                f"{measure}: {a} and {b} were evaluated on different items; evaluate both with the same data, --limit "
                "and --seed"
            )
        if len(setups := {model[measure].setup for side in sides for model in side}) > 1:
            raise ConfigError(
                f"{measure}: {a} and {b} were evaluated in different ways ({'; '.join(sorted(setups))}); evaluate both "
                "with the same task"
            )
    if any(len(side) > 1 for side in sides):
        return _over_seeds(a, b, sides, common)
    first, second = sides[0][0], sides[1][0]
    tests = {m: paired_test(first[m].scores, second[m].scores, first[m].groups) for m in common}
    corrected = dict(zip(common, holm([t.p for t in tests.values()])))
    sets, other = _sets(first, common), _sets(second, common)
    overall, scope = tests[common[0]], ""
    if len(common) > 1:
        overall = macro_test([Paired(m.scores, other[k].scores, m.groups) for k, m in sets.items()])
        scope = _scope(len(common), len(sets))
    more = "" if overall.p < 0.05 else " " + advice(overall)
    caution = " One run of each was evaluated: another seed of the same training may differ."
    return {
        "sentence": comparison_sentence(a, b, overall) + scope + more + caution,
        "overall": overall.to_json(),
        "measures": {m: {**t.to_json(), "p_holm": corrected[m]} for m, t in tests.items()},
    }


def _scope(measures: int, sets: int) -> str:
    same = "" if sets == measures else "; measures of the same items count together as one"
    return f" The score is the mean over {measures} measures{same}."


def _units(scores: Sequence[float], groups: Sequence[str] | None) -> list[float]:
    """Return scores of independent units with the same mean: items, or whole documents weighted by their items."""
    if groups is None:
        return list(scores)
    sums: dict[str, float] = {}
    for score, name in zip(scores, groups):
        sums[name] = sums.get(name, 0.0) + score
    return [s * len(sums) / len(scores) for s in sums.values()]


def _over_seeds(
    a: str, b: str, sides: Sequence[Sequence[Mapping[str, Measured]]], common: Sequence[str]
) -> dict[str, Any]:
    if min(map(len, sides)) < 2:
        raise ConfigError(f"{a} against {b}: name two runs or more, joined with commas, on both sides, or one on each")
    rows: dict[str, dict[str, Any]] = {}
    for m in common:
        tables = [np.array([_units(model[m].scores, model[m].groups) for model in side]) for side in sides]
        difference, p = compare_seeds(tables[0], tables[1])
        means = [float(t.mean()) for t in tables]
        rows[m] = {
            "a": means[0],
            "b": means[1],
            "difference": difference.to_json(),
            "p": p,
            "items": len(sides[0][0][m].ids),
        }
    # every set of items counts the same: its units are divided by their number, so that their sum is the set's mean
    units = [[[_units(s.scores, s.groups) for s in _sets(model, common).values()] for model in side] for side in sides]
    joined = [np.array([np.concatenate([np.array(u) / len(u) for u in model]) for model in side]) for side in units]
    sets = len(units[0][0])
    scale = joined[0].shape[1] / sets
    difference, p = compare_seeds(joined[0] * scale, joined[1] * scale)
    for row, corrected in zip(rows.values(), holm([r["p"] for r in rows.values()])):
        row["p_holm"] = corrected
    means = [float(side.sum(1).mean()) / sets for side in joined]
    items = sum({model.items: len(model.ids) for m, model in sides[0][0].items() if m in common}.values())
    head = f"{b} is {'better' if difference.value > 0 else 'worse'} than {a}"
    if p >= 0.05:
        head = f"No difference can be seen between {b} and {a}"
    sentence = (
        f"{head}: {means[1]:.3f} against {means[0]:.3f}, difference {difference} (p = {p:.2g}, over {len(sides[1])} "
        f"and {len(sides[0])} seeds and the same {items} items)."
    )
    if len(common) > 1:
        sentence += _scope(len(common), sets)
    if p >= 0.05:
        sentence += " " + seeds_advice(joined[0] * scale, joined[1] * scale, difference, items)
    return {"sentence": sentence, "overall": {"difference": difference.to_json(), "p": p}, "measures": rows}


def _find(name: str, files: Sequence[str]) -> dict[str, Measured]:
    """Return the measures of a model: of the run `name` in the score files, or of a score file with one model."""
    known: list[str] = []
    for file in [name] if name.endswith(".json") else files:
        try:
            rows = dict(json.loads(Path(file).read_text(encoding="utf-8"))["models"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{file}: not a file that `tercet eval --out` writes ({error})") from error
        if name == file and len(rows) != 1:
            raise ConfigError(
                f"{file} holds {len(rows)} models ({', '.join(rows)}); name two of them, and the file with --scores"
            )
        key = next(iter(rows)) if name == file else next((k for k in rows if Path(k) == Path(name)), None)
        if key is not None:
            try:
                return measures(rows[key], f"{file}: {key}")
            except (KeyError, TypeError, AttributeError) as error:
                raise DataError(f"{file}: {key}: damaged scores ({type(error).__name__}: {error})") from error
        known += rows
    where = f"the files have {', '.join(known) or 'no models'}" if files else "no file of scores is given"
    raise ConfigError(
        f"no scores of {name or 'a run without a name'}; {where}: give files that `tercet eval --out` wrote with "
        "--scores"
    )
