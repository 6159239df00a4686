"""`tercet compare A B`: says in a sentence whether B is better, from what `tercet eval --out` wrote.

A and B are runs as the scores name them, or score files with one model each. Several runs of one kind, joined with
commas, are several seeds: then seeds and items are both taken as samples.
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
    """One measure of one model, item by item, higher is better."""

    ids: tuple[str, ...]
    scores: list[float]
    groups: list[str] | None
    items: str
    """the set of items: measures of the same items share it"""
    way: str = ""
    """how they were asked: scores of another version, metric or number of shots are other measures"""


def measures(row: Mapping[str, Any], where: str) -> dict[str, Measured]:
    """Every measure of a model's scores that has a value for each item. Raises DataError where a file is damaged."""
    row, out = current(row), {}
    for name, task in (row.get("suite") or {}).get("tasks", {}).items():
        metric = task["metric"]
        scores = finite_scores(task["each"][metric], f"{where}: {name}")
        sign = -1 if metric in LOWER_IS_BETTER else 1
        way = f"{canonical(metric)}, version {task.get('version')}, {task.get('shots')} shots"
        ids, groups = tuple(map(str, task["ids"])), task.get("groups")
        out[name] = Measured(ids, [sign * s for s in scores], groups, f"suite/{name}", way)
    for name, scores in (row.get("each") or {}).items():
        out[name] = Measured(tuple(map(str, row["ids"])), finite_scores(scores, f"{where}: {name}"), None, "tasks")
    for name, m in out.items():
        sizes = {len(m.ids), len(m.scores), len(m.scores if m.groups is None else m.groups)}
        if sizes != {len(m.ids)} or not m.ids:
            raise DataError(
                f"{where}: {name}: {len(m.ids)} ids and {len(m.scores)} scores; wanted as many of both, and of groups"
            )
    return out


def _sets(model: Mapping[str, Measured], common: Sequence[str]) -> dict[str, Measured]:
    """One score for each item: measures of the same items (by several scorers) are not independent of one another."""
    sets: dict[str, list[Measured]] = {}
    for name in common:
        sets.setdefault(model[name].items, []).append(model[name])
    return {k: replace(v[0], scores=[sum(s) / len(v) for s in zip(*(m.scores for m in v))]) for k, v in sets.items()}


def compare(a: str, b: str, files: Sequence[str]) -> dict[str, Any]:
    """The sentence, and every measure's comparison with p corrected for their number (Holm).

    Raises ConfigError where a model is not in the files, is two seeds at once, or the two share no measure, DataError for
    a damaged file.
    """
    seeds = [Path(name) for side in (a, b) for name in side.split(",")]
    if len(seeds) > 2 and len(set(seeds)) < len(seeds):
        raise ConfigError(f"{a} against {b}: a run is named twice; as seeds each counts once")
    sides = [[_find(name, files) for name in side.split(",")] for side in (a, b)]
    common = [m for m in sides[0][0] if all(m in model for side in sides for model in side)]
    if not common:
        raise ConfigError(
            f"{a} and {b} share no measure with a score for each item; evaluate both with the same --suite or --questions, and --out"
        )
    for measure in common:
        if len({model[measure].ids for side in sides for model in side}) > 1:
            raise ConfigError(
                f"{measure}: {a} and {b} were measured on other items; evaluate both with the same data, --limit and --seed"
            )
        if len(ways := {model[measure].way for side in sides for model in side}) > 1:
            raise ConfigError(
                f"{measure}: {a} and {b} were asked in different ways ({'; '.join(sorted(ways))}); evaluate both with the same task"
            )
    if any(len(side) > 1 for side in sides):
        return _over_seeds(a, b, sides, common)
    first, second = sides[0][0], sides[1][0]
    tests = {m: paired_test(first[m].scores, second[m].scores, first[m].groups) for m in common}
    corrected = dict(zip(common, holm([t.p for t in tests.values()])))
    ours, theirs = _sets(first, common), _sets(second, common)
    overall = (
        tests[common[0]] if len(common) == 1
        else macro_test([Paired(m.scores, theirs[k].scores, m.groups) for k, m in ours.items()])
    )  # fmt: skip
    more = "" if overall.p < 0.05 else " " + advice(overall)
    scope = "" if len(common) == 1 else _scope(len(common), len(ours))
    one = " One run of each was measured: another seed of the same training may differ."
    return {
        "sentence": comparison_sentence(a, b, overall) + scope + more + one,
        "overall": overall.to_json(),
        "measures": {m: {**t.to_json(), "p_holm": corrected[m]} for m, t in tests.items()},
    }


def _scope(measures: int, sets: int) -> str:
    same = "" if sets == measures else ", those of the same items counting together as one"
    return f" The score is the mean over {measures} measures{same}."


def _units(scores: Sequence[float], groups: Sequence[str] | None) -> list[float]:
    """Scores of independent units with the same mean: items, or whole documents, each by its share of the items."""
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
    found: dict[str, dict[str, Any]] = {}
    for m in common:
        tables = [np.array([_units(model[m].scores, model[m].groups) for model in side]) for side in sides]
        difference, p = compare_seeds(tables[0], tables[1])
        means = [float(t.mean()) for t in tables]
        found[m] = {
            "a": means[0],
            "b": means[1],
            "difference": difference.to_json(),
            "p": p,
            "items": len(sides[0][0][m].ids),
        }
    # each set of items counts the same: weigh its units so that their sum is its mean
    rows = [[[_units(s.scores, s.groups) for s in _sets(model, common).values()] for model in side] for side in sides]
    joined = [np.array([np.concatenate([np.array(u) / len(u) for u in row]) for row in side]) for side in rows]
    sets = len(rows[0][0])
    scale = joined[0].shape[1] / sets
    difference, p = compare_seeds(joined[0] * scale, joined[1] * scale)
    for (_, row), corrected in zip(found.items(), holm([r["p"] for r in found.values()])):
        row["p_holm"] = corrected
    means = [float(side.sum(1).mean()) / sets for side in joined]
    items = sum({model.items: len(model.ids) for m, model in sides[0][0].items() if m in common}.values())
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
        f"{len(sides[0])} seeds and the same {items} items)."
    ) + ("" if len(common) == 1 else _scope(len(common), sets))
    if p >= 0.05:
        sentence += " " + seeds_advice(joined[0] * scale, joined[1] * scale, difference, items)
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
    where = f"the files have {', '.join(known) or 'no models'}" if files else "no file of scores is named"
    raise ConfigError(
        f"no scores of {name or 'a run without a name'}; {where}: name what `tercet eval --out` wrote with --scores"
    )
