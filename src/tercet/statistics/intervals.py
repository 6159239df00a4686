"""Estimates with confidence intervals for every number that tercet reports.

Which function for which number:

    a share of right answers, one per independent item      proportion         Wilson score interval
    a mean of real values, possibly several per item        mean               Student's t, cluster-robust with groups
    the same items under two models                         paired_difference  bootstrap over items
    a ratio of sums, such as bits per byte                  ratio              bootstrap over documents
    A against B, item by item, with ties                    win_rate           Wilson score interval, corrected for ties
    a reward model on the pairs of K ranked answers         pair_accuracy      bootstrap over prompts
    a final score over random seeds                         over_seeds         Student's t

Intervals are 95 % unless a `level` is given. `Estimate.n` counts the independent units: items, documents, prompts,
groups or seeds. The interval of a single unit is unknown: NaN here, "unknown" in printed text and null in JSON.
(`proportion` and `win_rate` have an interval even then.) Zero units raise ConfigError; a value that is NaN or infinite
raises DataError.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tercet.errors import ConfigError, DataError

Reals = NDArray[np.float64]
Values = Sequence[float] | Reals

LEVEL = 0.95
CHUNK = 1_000_000  # resampled units in memory at a time: 8 MB for the indices and for each gathered array


@dataclass(frozen=True)
class Estimate:
    """A value, its confidence interval from low to high, and the number n of independent units."""

    value: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int | None]:
        """Return the four fields; an unknown bound is None, since JSON has no NaN."""
        low, high = (None if math.isnan(bound) else bound for bound in (self.low, self.high))
        return {"value": self.value, "low": low, "high": high, "n": self.n}

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3f} [interval unknown, n = {self.n}]"
        half = (self.high - self.low) / 2
        digits = min(max(2, -math.floor(math.log10(half))), 9) if half > 0 else 2
        return f"{self.value:.{digits + 1}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def proportion(hits: int, n: int, level: float = LEVEL) -> Estimate:
    """Return the share hits / n with Wilson's score interval (1927), which is accurate at 0, at 1 and for small n.

    The n trials must be independent; use `mean` with groups if several trials share an item.
    Raises ConfigError unless n ≥ 1 and 0 ≤ hits ≤ n.
    """
    if n < 1 or not 0 <= hits <= n:
        raise ConfigError(f"proportion: {hits} hits of n = {n}; wanted n at least 1 and hits from 0 to n")
    low, high = _score_interval(hits / n, n, 0.0, level)
    return Estimate(float(hits / n), low, high, int(n))


def mean(values: Values, level: float = LEVEL, groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return the mean of all values with Student's t interval.

    Values that share a group (answers to one prompt, sentences of one document) are not independent. With `groups`, one
    per value, the standard error is cluster-robust (Liang and Zeger 1986): the deviations from the mean are summed
    within each of the G groups, and the G sums are treated as independent, with G − 1 degrees of freedom. Groups of one
    value each give the plain interval. For shares near 0 or 1 prefer `proportion`: this interval can leave [0, 1].
    """
    _check_level(level)
    x = _values(values, "mean")
    middle = float(x.mean())
    deviations = x - middle
    if groups is not None:
        deviations, _ = _group_sums(deviations, groups, "mean")
    n = deviations.size
    if n < 2:
        return _unknown_interval(middle)
    standard_error = math.sqrt(n / (n - 1) * float((deviations**2).sum())) / x.size
    half = t_quantile(n - 1, level) * standard_error
    return Estimate(middle, middle - half, middle + half, n)


def paired_difference(a: Values, b: Values, level: float = LEVEL, seed: int = 0, draws: int = 10_000) -> Estimate:
    """Return the mean of a − b over items scored under both, with the percentile bootstrap over items (Efron 1979).

    Pairing removes the difficulty that an item has for both models, so that small differences become visible. If the
    interval excludes 0, the models differ at that level. If all differences are equal, the interval has no width.
    """
    x, y = _same_length(a, b, "paired_difference")
    return _bootstrap(x - y, np.ones_like(x), level, seed, draws)


def ratio(numerators: Values, denominators: Values, seed: int = 0, draws: int = 2000) -> Estimate:
    """Return sum(numerators) / sum(denominators) over documents, with the percentile bootstrap over whole documents.

    For bits per byte, give the bits and the bytes of each document. Tokens of one document are not independent, so
    whole documents are resampled. Denominators must be above 0: leave empty documents out.
    """
    top, bottom = _same_length(numerators, denominators, "ratio")
    if not (bottom > 0).all():
        where = int(np.argmax(bottom <= 0))
        raise DataError(f"ratio: denominators[{where}] is {bottom[where]}; wanted above 0; leave empty documents out")
    return _bootstrap(top, bottom, LEVEL, seed, draws)


def win_rate(a: Values, b: Values) -> Estimate:
    """Return the share of items on which a beats b; a tie counts one half. Items must be independent.

    A win is 1, a tie 1/2 and a loss 0. With a share τ of ties the variance is p (1 − p) − τ/4, less than without ties.
    The interval is Wilson's score interval with this variance, where τ is the low end of its own Wilson interval. So
    many ties narrow the interval, all ties still leave it some width, and without ties it equals `proportion`.
    """
    x, y = _same_length(a, b, "win_rate")
    ties = int((x == y).sum())
    rate = (float((x > y).sum()) + ties / 2) / x.size
    low, high = _score_interval(rate, x.size, proportion(ties, x.size).low, LEVEL)
    return Estimate(rate, low, high, x.size)


def pair_accuracy(correct: Values, groups: Sequence[Hashable], seed: int = 0, draws: int = 2000) -> Estimate:
    """Return the share of pairs that a reward model orders correctly, bootstrapped over prompts; n counts prompts.

    `correct` is 1, 0 or 1/2 (a tie) for each pair, and `groups` holds each pair's prompt: the K(K − 1)/2 pairs of one
    prompt share answers, so they are not independent. If every pair has the same outcome, resampling shows no spread;
    the interval is then Wilson's with one trial per prompt.
    """
    x = _values(correct, "pair_accuracy")
    if x.min() < 0 or x.max() > 1:
        raise DataError(
            f"pair_accuracy: found values from {x.min()} to {x.max()}; wanted 1 for right, 0 for wrong, 1/2 for a tie"
        )
    sums, sizes = _group_sums(x, groups, "pair_accuracy")
    if x.min() == x.max():
        low, high = _score_interval(float(x[0]), sums.size, 0.0, LEVEL)
        return Estimate(float(x[0]), low, high, sums.size)
    return _bootstrap(sums, sizes, LEVEL, seed, draws)


def over_seeds(values: Values) -> Estimate:
    """Return the mean of one final score per random seed with Student's t interval, which is wide for 2 or 3 seeds."""
    return mean(values)


def _values(values: Values, name: str) -> Reals:
    """Return the values as a float array [n]; raises ConfigError unless n ≥ 1, DataError unless all are finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or x.size == 0:
        raise ConfigError(f"{name}: values of shape {x.shape}; wanted a flat list with at least one value")
    if not np.isfinite(x).all():
        where = int(np.argmin(np.isfinite(x)))
        raise DataError(f"{name}: value {where} is {x[where]}; wanted a finite number; check how it was computed")
    return x


def _same_length(a: Values, b: Values, name: str) -> tuple[Reals, Reals]:
    x, y = _values(a, name), _values(b, name)
    if x.size != y.size:
        raise ConfigError(f"{name}: {x.size} and {y.size} values; wanted the same number of both, one for each item")
    return x, y


def _group_sums(x: Reals, groups: Sequence[Hashable], name: str) -> tuple[Reals, Reals]:
    """Return the sum [G] and the size [G] of each group, in order of first appearance."""
    if len(groups) != x.size:
        raise ConfigError(f"{name}: {x.size} values and {len(groups)} groups; wanted one group for each value")
    numbers: dict[Hashable, int] = {}
    group = np.array([numbers.setdefault(label, len(numbers)) for label in groups])
    return np.bincount(group, weights=x).astype(np.float64), np.bincount(group).astype(np.float64)


def _unknown_interval(value: float) -> Estimate:
    return Estimate(value, math.nan, math.nan, 1)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ConfigError(f"level = {level}; wanted a confidence level between 0 and 1, such as 0.95")


def _score_interval(rate: float, n: int, ties: float, level: float) -> tuple[float, float]:
    """Return the interval of all p with (rate − p)² ≤ z²/n · (p (1 − p) − ties/4).

    Its ends are the roots of a quadratic in p; for ties = 0 this is Wilson's interval (1927).
    """
    _check_level(level)
    k = NormalDist().inv_cdf((1 + level) / 2) ** 2 / n
    centre = (rate + k / 2) / (1 + k)
    half = math.sqrt(max(0.0, centre**2 - (rate**2 + k * ties / 4) / (1 + k)))
    # At a rate of 0 or 1 one end is exact; rounding must not move it.
    return (0.0 if rate == 0 else max(0.0, centre - half)), (1.0 if rate == 1 else min(1.0, centre + half))


def _bootstrap(top: Reals, bottom: Reals, level: float, seed: int, draws: int) -> Estimate:
    """Return sum(top) / sum(bottom) with the percentile interval over `draws` resamplings of the units (Efron 1979)."""
    if draws < 1:
        raise ConfigError(f"draws = {draws}; wanted at least 1, and thousands for a stable interval")
    _check_level(level)
    value, n = float(top.sum() / bottom.sum()), top.size
    if n < 2:
        return _unknown_interval(value)
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled = np.empty(draws)
    rows = max(1, CHUNK // n)
    for start in range(0, draws, rows):
        units = rng.integers(n, size=(min(rows, draws - start), n))
        resampled[start : start + rows] = top[units].sum(axis=1) / bottom[units].sum(axis=1)
    low, high = np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2))
    return Estimate(value, float(low), float(high), n)


def _t_inside(theta: float, df: int) -> float:
    """Return P(|T| ≤ tan(theta) · √df) for Student's t with df degrees of freedom.

    By the finite series of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4; all terms are positive, so none cancel.
    """
    cos2, odd = math.cos(theta) ** 2, df % 2
    k = np.arange(1, (df - 2 - odd) // 2 + 1)
    series = 1 + float(np.cumprod((2 * k - 1 + odd) / (2 * k + odd) * cos2).sum())
    if not odd:
        return math.sin(theta) * series
    return 2 / math.pi * (theta + (math.sin(theta) * math.cos(theta) * series if df > 1 else 0.0))


@functools.lru_cache(maxsize=256)
def t_quantile(df: int, level: float) -> float:
    """Return the t with P(|T| ≤ t) = level for Student's t, by bisection over the angle.

    Above 10,000 degrees of freedom the value for 10,000 is used: fast, and only 0.01 % too large at 95 %.
    """
    df = min(df, 10_000)
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_inside(middle, df) < level else (low, middle)
    return math.sqrt(df) * math.tan(low)
