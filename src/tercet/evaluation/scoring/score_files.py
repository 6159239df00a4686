"""The names of scores in files of `tercet eval --out` and in training logs, also in those of older versions.

A model's row has, under "scores" and for each scorer, {"greedy": …, "sampled": …, "abilities": …, "held_out": …}. Older
files have exact match (of greedy answers) and the microworld's rubric (of sampled ones) under other names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

LOGGED = "score/"  # prefix of the metric of a scorer in metrics.jsonl
_OLD_LOGGED = {"gold": "rubric"}
_OLD_PARTS = ("right", "sentence", "direct")


def logged(keys: Iterable[str]) -> dict[str, str]:
    """Return the metrics among `keys` that are scores of answers, each with its scorer: {"score/f1": "f1"}."""
    names = {key: _OLD_LOGGED.get(key) or key.removeprefix(LOGGED) for key in keys}
    return {key: name for key, name in names.items() if name != key}


def scores_of_point(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return the estimates by scorer of a row of best-of-n's curve."""
    old = {name: point[key] for key, name in _OLD_LOGGED.items() if key in point}
    return {**old, **point.get("scores", {})}


def current(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's row in today's format; a row that has it already is copied unchanged."""
    if "scores" in row or "exact_match" not in row:
        return dict(row)
    out = dict(row)
    exact = {"greedy": out.pop("exact_match")}
    exact |= {key: out.pop(key) for key in ("abilities", "held_out") if key in out}
    parts = out.pop("rubric_parts", {})
    out.pop("well_formed", None)  # the part "sentence" under another name
    scores: dict[str, Any] = {"exact_match": exact}
    if "rubric" in out:
        scores["rubric"] = {"sampled": out.pop("rubric")}
    scores |= {f"rubric:{part}": {"sampled": parts[part]} for part in _OLD_PARTS if part in parts}
    against = {
        new: out.pop(old) for old, new in (("win_rate", "win_rate"), ("rubric_difference", "difference")) if old in out
    }
    each = dict(out.get("each") or {})
    if "rubric" in each:  # of sampled answers; today's scores by item are of greedy ones
        each["rubric (sampled)"] = each.pop("rubric")
    return out | {"scores": scores, "each": each} | ({"against": {"rubric": against}} if against else {})


def scorer_label(name: str) -> str:
    """Return a scorer's name as it is shown on a page or in a table."""
    return name.replace("_", " ") if ":" not in name else name
