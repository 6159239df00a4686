"""What a check of the doctor returns, and the records that it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, pstdev

from tercet.training.run import Run

INF = math.inf
SAMPLER_ADVICE = (
    "Sampler and trainer do not compute the same model. Temperature, cache, positions or precision may differ"
)


@dataclass(frozen=True)
class Finding:
    """The result of one check: a name, the number that was judged, a verdict and advice.

    `found` and `normal` are the number and its normal range as shown to a person. `advice` says what is wrong and what
    to do, in sentences without the last full stop.
    """

    name: str
    value: float
    found: str
    normal: str
    verdict: str  # "ok", "look" or "wrong"
    advice: str = ""


def judged(
    name: str,
    value: float,
    normal: str,
    advice: str = "",
    *,
    look: tuple[float, float] = (-INF, INF),
    wrong: tuple[float, float] = (-INF, INF),
    found: str = "",
) -> Finding:
    """Return the finding of a number: ok inside `look`, wrong outside `wrong` or if it is NaN, else worth a look."""
    inside = wrong[0] <= value <= wrong[1]
    verdict = "wrong" if not inside else "ok" if look[0] <= value <= look[1] else "look"
    return Finding(name, value, found or f"{value:.4g}", normal, verdict, "" if verdict == "ok" else advice)


class Records:
    """A run's metrics.jsonl: `rows` are its whole lines, `damaged` counts the others, `done` is the last step."""

    def __init__(self, run: Run) -> None:
        self.run, self.config, lines = run, run.config, run.read_lines("metrics.jsonl")
        self.rows = [row for row in lines if _whole(row)]
        self.damaged = len(lines) - len(self.rows)
        self.done = max((int(r["step"]) for r in self.rows), default=0)

    def series(self, name: str, keep: Callable[[int], bool] = lambda step: True) -> list[float]:
        """Return the finite values of a metric, at the steps for which `keep` is true."""
        return [r[name] for r in self.rows if name in r and math.isfinite(r[name]) and keep(r["step"])]

    def first(self, name: str) -> float | None:
        """Return the metric at the first step, or None if it was not recorded there."""
        return next(iter(self.series(name, lambda step: step == 1)), None)

    def trend(self, name: str) -> tuple[float, float, float] | None:
        """Return the mean of the first fifth, of the last fifth, and the standard error of their difference.

        None if there are fewer than 10 values.
        """
        x = self.series(name)
        k = max(3, len(x) // 5)
        if len(x) < 10:
            return None
        return fmean(x[:k]), fmean(x[-k:]), math.hypot(pstdev(x[:k]), pstdev(x[-k:])) / math.sqrt(k)


def _whole(row: object) -> bool:
    """Whether a line of metrics.jsonl is as a stage writes it: numbers by name, the step among them."""
    return isinstance(row, dict) and type(row.get("step")) is int and all(type(v) in (int, float) for v in row.values())


def judged_kl(name: str, mean: float, noise: float) -> Finding:
    """Return the finding of a mean KL to the reference, which must not be negative or large.

    `mean` is by k1, in nats per answer, and `noise` is its standard error.
    """
    advice = (
        "The policy is far from the reference, where the reward cannot be trusted. Raise --beta, or set --target-kl"
    )
    if mean < 0:
        advice = "A KL cannot be negative. Its sign is wrong, or the reference is another model"
    look, wrong = (-0.05 - 2 * noise, 10.0), (-0.05 - 4 * noise, INF)
    number = f"{mean:.3f} ± {noise:.3f}"
    return judged(name, mean, "0 to 10 nats per answer", advice, look=look, wrong=wrong, found=number)


def late(values: Sequence[float]) -> list[float]:
    """Return the last quarter of the values, but at least the last 5."""
    return list(values[-max(5, len(values) // 4) :])


@dataclass(frozen=True)
class Band:
    """The normal range of a recorded metric, for a check of its recent median."""

    metric: str
    name: str
    normal: str
    look: tuple[float, float]
    wrong: tuple[float, float]
    low: str = ""
    """advice if the number is too low"""
    high: str = ""
    """advice if the number is too high"""


def banded(r: Records, bands: Sequence[Band], mild: Sequence[str] = ()) -> list[Finding]:
    """Return a finding for each band whose metric was recorded; the metrics in `mild` are never wrong."""
    out = []
    for band in bands:
        if values := r.series(band.metric):
            value = median(late(values))  # one wild step does not decide
            advice = band.low if value < band.look[0] else band.high
            wrong = (-INF, INF) if band.metric in mild else band.wrong
            out.append(judged(band.name, value, band.normal, advice, look=band.look, wrong=wrong))
    return out
