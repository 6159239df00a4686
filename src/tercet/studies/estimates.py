"""Numbers over seeds as studies record and print them: a mean with its 95 % interval, and Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tercet.statistics.intervals import Estimate, over_seeds

Json = dict[str, Any]


def interval(values: Sequence[float]) -> Json:
    """Return {value, low, high, n, seeds}: the mean over seeds, Student's t interval, and each seed's value."""
    return {**over_seeds(list(values)).to_json(), "seeds": list(values)}


def intervals(rows: Sequence[Mapping[str, float]]) -> dict[str, Json]:
    """Return an interval for every name that the seeds' rows have."""
    return {name: interval([row[name] for row in rows]) for name in rows[0]}


def above(estimate: Mapping[str, Any], bound: float = 0.0) -> bool:
    """Return whether the whole interval is above the bound; an unknown interval is not."""
    return estimate["low"] is not None and bool(estimate["low"] > bound)


def below(estimate: Mapping[str, Any], bound: float = 0.0) -> bool:
    """Return whether the whole interval is below the bound; an unknown interval is not."""
    return estimate["high"] is not None and bool(estimate["high"] < bound)


def text(estimate: Mapping[str, Any]) -> str:
    """Return an estimate with as many digits as its interval allows: 0.412 [0.38, 0.44]."""
    return str(Estimate(estimate["value"], estimate["low"], estimate["high"], estimate["n"]))


def cell(estimate: Mapping[str, Any], digits: int = 2) -> str:
    """Return an estimate for a table, with a fixed number of digits: 0.41 [0.38, 0.44]."""
    return f"{estimate['value']:.{digits}f} [{estimate['low']:.{digits}f}, {estimate['high']:.{digits}f}]"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)) + "\n"
