"""What the doctor says of a run, and the record that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from tercet.training.run import Run

INF = math.inf


@dataclass(frozen=True)
class Finding:
    """One check: `value` is the number that was judged, `found` and `normal` say it to a person, `advice` what to do."""

    name: str
    value: float
    found: str
    normal: str
    verdict: str  # "ok", "look" or "wrong"
    advice: str = ""


def judged(name: str, value: float, normal: str, advice: str = "", *, look: tuple[float, float] = (-INF, INF),
           wrong: tuple[float, float] = (-INF, INF), found: str = "") -> Finding:  # fmt: skip
    """The finding of a number. One that is no number is wrong."""
    inside = wrong[0] <= value <= wrong[1]
    verdict = "wrong" if not inside else "ok" if look[0] <= value <= look[1] else "look"
    return Finding(name, value, found or f"{value:.4g}", normal, verdict, "" if verdict == "ok" else advice)


class Records:
    """A run's metrics, finite ones only."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, lines = run, run.config, run.read_lines("metrics.jsonl")
        self.rows = [row for row in lines if _whole(row)]
        self.damaged = len(lines) - len(self.rows)
        self.done = max((int(r["step"]) for r in self.rows), default=0)

    def series(self, name: str, keep: Callable[[int], bool] = lambda step: True) -> list[float]:
        """The values of a metric at the steps that `keep` keeps."""
        return [r[name] for r in self.rows if name in r and math.isfinite(r[name]) and keep(r["step"])]

    def first(self, name: str) -> float | None:
        """The metric in the record of the first step, where that is there."""
        return next(iter(self.series(name, lambda step: step == 1)), None)

    def trend(self, name: str) -> tuple[float, float, float] | None:
        """(early mean, late mean, standard error of the difference) of the first and last fifth; None below 10 values."""
        x = self.series(name)
        k = max(3, len(x) // 5)
        if len(x) < 10:
            return None
        return fmean(x[:k]), fmean(x[-k:]), math.hypot(pstdev(x[:k]), pstdev(x[-k:])) / math.sqrt(k)


def _whole(row: object) -> bool:
    """Whether a line of metrics.jsonl is what a stage writes: numbers by name, the step among them."""
    return isinstance(row, dict) and type(row.get("step")) is int and all(type(v) in (int, float) for v in row.values())


def judged_kl(name: str, mean: float, noise: float) -> Finding:
    """The finding of a mean KL to the reference (k1, nats per answer) with its standard error: never negative, and not too large."""
    advice = "a KL cannot be negative: its sign is wrong, or the reference is another model" if mean < 0 else (
        "far from the reference, where the reward is not to be trusted: raise --beta, or set --target-kl")  # fmt: skip
    return judged(name, mean, "0 to 10 nats an answer", advice, look=(-0.05 - 2 * noise, 10), wrong=(-0.05 - 4 * noise, INF),
                  found=f"{mean:.3f} ± {noise:.3f}")  # fmt: skip


def late(values: Sequence[float]) -> list[float]:
    """The last quarter of the values, 5 of them at least where there are so many."""
    return list(values[-max(5, len(values) // 4) :])


@dataclass(frozen=True)
class Band:
    """A number of the record whose recent median is judged as it stands."""

    metric: str
    name: str
    normal: str
    look: tuple[float, float]
    wrong: tuple[float, float]
    low: str = ""  # what to do where it is too low
    high: str = ""


def banded(r: Records, bands: Sequence[Band], mild: Sequence[str] = ()) -> list[Finding]:
    """Every number of the record that is judged as it stands; those in `mild` are never wrong."""
    out = []
    for band in bands:
        if values := r.series(band.metric):
            value = median(late(values))  # one wild step does not decide
            advice = band.low if value < band.look[0] else band.high
            wrong = (-INF, INF) if band.metric in mild else band.wrong
            out.append(judged(band.name, value, band.normal, advice, look=band.look, wrong=wrong))
    return out
