"""Compare models: is B better than A, by how much, how certain is that, and how many items would show it?

    the mean of values that come in documents             clustered        bootstrap over documents
    the score of a task                                   score            the suitable one of several intervals
    two models on the same items                          paired_test      interval and p value
    two models on several tasks                           macro_test       tasks count equally; stratified
    several p values at once                              holm             family-wise correction
    one score over seeds and items                        crossed          two-way random effects
    two training methods, several seeds of each           compare_seeds    Welch over seeds, paired over items
    items needed to detect a difference                   items_needed     normal approximation
    seeds needed to detect a difference                   seeds_needed     noncentral t

Seeds are not items: ten seeds on the same 500 items are neither 5,000 items nor 10. `crossed` treats both as samples,
the seeds of all seeds and the items of all similar items, and adds the variances of both and of their interaction (the
crossed random-effects layout of Cornfield and Tukey 1956).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from tercet.errors import ConfigError, DataError
from tercet.statistics.intervals import (
    CHUNK,
    LEVEL,
    Estimate,
    Reals,
    Values,
    _bootstrap,
    _check_level,
    _group_sums,
    _same_length,
    _score_interval,
    _t_inside,
    _values,
    mean,
    proportion,
    t_quantile,
)

ENUMERATED = 16  # all 2^n choices of signs are enumerated if at most this number n of differences is not 0
DRAWS = 10_000
POWER = 0.8

Scores = Sequence[Values] | Reals  # [seeds, items]


def clustered(values: Values, groups: Sequence[Hashable], level: float = LEVEL, seed: int = 0) -> Estimate:
    """Return the mean of `values` with the percentile bootstrap over whole groups (documents); n counts the groups.

    If all values are 0 or all are 1, resampling shows no spread; the interval is then Wilson's with one trial per
    group. Raises ConfigError for unequal lengths, DataError for a value that is not finite.
    """
    x = _values(values, "clustered")
    sums, sizes = _group_sums(x, groups, "clustered")
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        low, high = _score_interval(float(x[0]), sums.size, 0.0, level)
        return Estimate(float(x[0]), low, high, sums.size)
    return _bootstrap(sums, sizes, level, seed, DRAWS)


def score(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """Return the mean with a suitable interval: `clustered` for groups, Wilson's for zeros and ones, else Student's."""
    if groups is not None:
        return clustered(values, groups)
    return proportion(int(sum(values)), len(values)) if set(values) <= {0.0, 1.0} else mean(values)


@dataclass(frozen=True)
class PairedTest:
    """B against A on the same items: `difference` is the mean of b − a with its interval, `p` is two-sided.

    `a_wins` and `b_wins` count the items on which that model has the higher score; the rest are ties.
    """

    a: float
    b: float
    difference: Estimate
    p: float
    test: str
    a_wins: int
    b_wins: int
    items: int

    def to_json(self) -> dict[str, Any]:
        """Return all fields, for a results file."""
        return {**self.__dict__, "difference": self.difference.to_json()}


def paired_test(
    a: Values, b: Values, groups: Sequence[Hashable] | None = None, level: float = LEVEL, seed: int = 0
) -> PairedTest:
    """Return the paired comparison of a and b: the bootstrap interval of mean(b − a), and an independent p value.

    If every score is 0 or 1 and there are no groups, p is from McNemar's exact test (1947): items on which both agree
    carry no information, and each model should win half of the others. Otherwise p is from Fisher's randomisation test:
    without a true difference, each unit's sum of differences could equally have the other sign. Units are the items, or
    the groups. Raises ConfigError for unequal lengths, DataError for a value that is not finite.
    """
    x, y = _same_length(a, b, "paired_test")
    d = y - x
    sums, sizes = (d, np.ones_like(d)) if groups is None else _group_sums(d, groups, "paired_test")
    a_wins, b_wins = int((d < 0).sum()), int((d > 0).sum())
    shares = _only_zeros_and_ones(x, y)
    if groups is None and shares:
        p, test = mcnemar(a_wins, b_wins), "McNemar's exact test"
    else:
        p, test = sign_flips(sums, seed), "randomisation test"
    difference = _bootstrap(sums, sizes, level, seed, DRAWS)
    difference = _not_certain(difference, sums.size, level) if shares else difference
    return PairedTest(float(x.mean()), float(y.mean()), difference, p, test, a_wins, b_wins, d.size)


def _only_zeros_and_ones(x: Reals, y: Reals) -> bool:
    return bool(np.isin(np.concatenate([x, y]), (0.0, 1.0)).all())


def _not_certain(estimate: Estimate, n: float, level: float) -> Estimate:
    """Return the difference of two shares with Wilson's bound if all n units differ in the same way, else unchanged.

    Resampling shows no spread there, and an interval without width would mean that no item could ever differ.
    """
    if estimate.low != estimate.high or n < 2 or estimate.value not in (-1.0, 0.0, 1.0):
        return estimate
    k = NormalDist().inv_cdf((1 + level) / 2) ** 2
    end = k / (n + k)  # the upper bound of a share of 0 out of n
    low, high = (-end, end) if estimate.value == 0 else (1 - end, 1.0) if estimate.value > 0 else (-1.0, end - 1)
    return Estimate(estimate.value, low, high, estimate.n)


def mcnemar(a_only: int, b_only: int) -> float:
    """Return the two-sided exact p of McNemar's test (1947) from the numbers of items that only a or only b got right.

    p = min(1, 2 P(X ≤ min(a_only, b_only))), with X binomial over the a_only + b_only items at probability 1/2.
    """
    n, k = a_only + b_only, min(a_only, b_only)
    if a_only < 0 or b_only < 0:
        raise ConfigError(f"mcnemar: {a_only} and {b_only} items; wanted two counts, each 0 or more")
    tail = sum(math.comb(n, i) for i in range(k + 1))
    # integers until the end: 2^n does not fit into a float for n above 1,023
    return min(1.0, float(2 * tail / 2**n)) if n <= 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def sign_flips(sums: Values, seed: int = 0, draws: int = DRAWS) -> float:
    """Return the two-sided p of Fisher's randomisation test: the share of choices of signs with |Σ ±s| ≥ |Σ s|.

    For up to 16 nonzero sums all 2^n choices are enumerated. Above that `draws` random ones are used, and the observed
    signs are counted with them, so that p is never 0 (Phipson and Smyth 2010).
    """
    s = _values(sums, "sign_flips")
    s = s[s != 0]
    if not s.size:
        return 1.0
    observed = abs(float(s.sum())) * (1 - 1e-12) - 1e-300  # rounding must not turn ties into smaller sums
    if s.size <= ENUMERATED:
        bits = (np.arange(2**s.size)[:, None] >> np.arange(s.size)) & 1
        return float((np.abs((1 - 2 * bits) @ s) >= observed).mean())
    rng = np.random.Generator(np.random.PCG64(seed))
    hits, rows = 0, max(1, CHUNK // s.size)
    for start in range(0, draws, rows):
        signs = 1 - 2 * rng.integers(2, size=(min(rows, draws - start), s.size), dtype=np.int8)
        hits += int((np.abs(signs @ s) >= observed).sum())
    return (hits + 1) / (draws + 1)


@dataclass(frozen=True)
class Paired:
    """One task's scores of A and B on the same items; `groups` names the document of each item, if items share them."""

    a: Values
    b: Values
    groups: Sequence[Hashable] | None = None


def macro_test(tasks: Sequence[Paired], level: float = LEVEL, seed: int = 0) -> PairedTest:
    """Return the paired comparison of the mean over tasks of each task's mean: every task counts the same.

    The bootstrap resamples units within each task (stratified). The randomisation test flips the signs of all units at
    once, each with its weight in the mean. Raises as `paired_test` does.
    """
    if not tasks:
        raise ConfigError("macro_test: no tasks; wanted at least one")
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled, weighted, a_mean, b_mean, wins, items = np.zeros(DRAWS), [], 0.0, 0.0, np.zeros(2, int), 0
    narrow, shares, parts = False, True, 0.0
    for task in tasks:
        x, y = _same_length(task.a, task.b, "macro_test")
        shares = shares and _only_zeros_and_ones(x, y)
        d = y - x
        sums, sizes = (d, np.ones_like(d)) if task.groups is None else _group_sums(d, task.groups, "macro_test")
        rows = max(1, CHUNK // sums.size)
        for start in range(0, DRAWS, rows):
            units = rng.integers(sums.size, size=(min(rows, DRAWS - start), sums.size))
            resampled[start : start + rows] += sums[units].sum(1) / sizes[units].sum(1) / len(tasks)
        weighted.append(sums / d.size / len(tasks))
        a_mean, b_mean = a_mean + float(x.mean()) / len(tasks), b_mean + float(y.mean()) / len(tasks)
        wins += [int((d < 0).sum()), int((d > 0).sum())]
        items, narrow, parts = items + d.size, narrow or sums.size < 2, parts + 1 / sums.size
    _check_level(level)
    low, high = (math.nan, math.nan) if narrow else np.quantile(resampled, ((1 - level) / 2, (1 + level) / 2))
    units_n = sum(w.size for w in weighted)
    difference = Estimate(b_mean - a_mean, float(low), float(high), units_n)
    if shares:  # the second argument is the size of a single task that would be as informative
        difference = _not_certain(difference, len(tasks) ** 2 / parts, level)
    p = sign_flips(np.concatenate(weighted), seed)
    return PairedTest(a_mean, b_mean, difference, p, "stratified randomisation test", int(wins[0]), int(wins[1]), items)


def holm(ps: Sequence[float]) -> list[float]:
    """Return the p values corrected for their number (Holm 1979), in the given order.

    Rejecting all corrected p values below α makes one or more false rejections with probability α at most.
    """
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = running
    return out


def items_needed(difference: float, spread: float, level: float = LEVEL, power: float = POWER) -> int:
    """Return the number of items at which a two-sided test at 1 − level detects a true difference with this power.

    n = ((z_{(1+level)/2} + z_power) · spread / difference)², where `difference` is the true mean difference and
    `spread` the standard deviation of the items' differences b − a. For right and wrong answers that differ on a share
    ψ of the items, spread is √(ψ − difference²); the formula is then the first term of Miettinen's (1968) for McNemar's
    test. Raises ConfigError.
    """
    if difference == 0 or not math.isfinite(difference) or spread < 0 or not 0 < power < 1:
        raise ConfigError(
            f"items_needed: difference {difference}, spread {spread}, power {power}; "
            "wanted a difference that is not 0, a spread of 0 or more, and a power between 0 and 1"
        )
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z * spread / difference) ** 2))


def t_power(shift: float, df: int, level: float = LEVEL) -> float:
    """Return the power of a two-sided t test at 1 − level, for T = (Z + shift) / √(χ²_df / df) (noncentral t).

    By the midpoint rule over s = √(χ²_df / df), given which T is normal (Johnson, Kotz and Balakrishnan 1995, chapter
    31).
    """
    t, reach, normal = t_quantile(df, level), 8 / math.sqrt(2 * df), NormalDist().cdf
    edges = np.linspace(max(0.0, 1 - reach), 1 + reach, 401)
    s = (edges[1:] + edges[:-1]) / 2
    weight = np.exp((df - 1) * np.log(s) - df * (s**2 - 1) / 2)
    power = [normal(shift - t * x) + normal(-shift - t * x) for x in s.tolist()]
    return float(weight @ power / weight.sum())


# -- several seeds -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Squares:
    """Mean squares of a table [seeds, items]: between seeds, between items, and of the residuals."""

    seeds: float
    items: float
    rest: float


def _table(scores: Scores, name: str) -> Reals:
    """Return a float array [S, I]; raises ConfigError for a ragged table, DataError for a value that is not finite."""
    widths = {len(row) for row in scores}
    if len(widths) != 1 or not widths.copy().pop():
        raise ConfigError(f"{name}: seeds with {sorted(widths)} items; wanted the same items, in order, for every seed")
    table = np.asarray([_values(row, name) for row in scores])
    return table


def _squares(table: Reals) -> _Squares:
    s, i = table.shape
    by_seed, by_item, m = table.mean(1, keepdims=True), table.mean(0, keepdims=True), table.mean()
    return _Squares(
        i * float(((by_seed - m) ** 2).sum()) / (s - 1),
        s * float(((by_item - m) ** 2).sum()) / (i - 1),
        float(((table - by_seed - by_item + m) ** 2).sum()) / ((s - 1) * (i - 1)),
    )


def crossed(scores: Scores, level: float = LEVEL) -> Estimate:
    """Return the mean of scores [S seeds, I items] with an interval for new seeds *and* new items; n counts the seeds.

    From the mean squares between seeds (S), between items (I) and of the residuals (R), the variance of the mean is
    (MS_S + MS_I − MS_R) / (S·I), but at least the larger of MS_S and MS_I over S·I. Its degrees of freedom are
    Satterthwaite's (1946). With one seed the interval is unknown.
    """
    table = _table(scores, "crossed")
    s, i = table.shape
    value = float(table.mean())
    if s < 2 or i < 2:
        return Estimate(value, math.nan, math.nan, s)
    ms = _squares(table)
    total = max(ms.seeds + ms.items - ms.rest, ms.seeds, ms.items)
    if total == 0:
        return Estimate(value, value, value, s)
    df = total**2 / (ms.seeds**2 / (s - 1) + ms.items**2 / (i - 1) + ms.rest**2 / ((s - 1) * (i - 1)))
    half = t_quantile(max(1, int(df)), level) * math.sqrt(total / (s * i))
    return Estimate(value, value - half, value + half, s)


def _seed_variances(table: Reals) -> tuple[float, float]:
    """Return two variances of one seed's mean over items: the seed's own, and that of its interaction with items."""
    ms, items = _squares(table), table.shape[1]
    return max(0.0, ms.seeds - ms.rest) / items, ms.rest / items


def _welch(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Return the sum of (variance, degrees of freedom) parts with its own degrees of freedom, rounded down.

    Source: Welch (1947), Satterthwaite (1946).
    """
    variance = sum(v for v, _ in parts)
    return variance, max(1, int(variance**2 / sum(v**2 / n for v, n in parts) + 1e-9)) if variance else 1


def compare_seeds(a: Scores, b: Scores, level: float = LEVEL) -> tuple[Estimate, float]:
    """Return (mean(b) − mean(a) with its interval, two-sided p) of two training methods, scores [S_a, I] and [S_b, I].

    The items are the same for both, the seeds are not. The variance has three parts: the variance of the items'
    differences (of means over seeds) divided by I, which includes the interaction of seed and item; and for each method
    the variance of its seeds, (MS_S − MS_R) / (S·I), if above 0. Degrees of freedom are by Welch and Satterthwaite.
    Raises ConfigError unless both have two or more seeds and the same two or more items.
    """
    x, y = _table(a, "compare_seeds"), _table(b, "compare_seeds")
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1] or x.shape[1] < 2:
        raise ConfigError(
            f"compare_seeds: {x.shape[0]} and {y.shape[0]} seeds with {x.shape[1]} and {y.shape[1]} items; "
            "wanted two or more seeds of each, on the same two or more items; for single runs use paired_test"
        )
    d = y.mean(0) - x.mean(0)
    rounding = (1e-12 * max(1.0, float(np.abs(x).max()), float(np.abs(y).max()))) ** 2
    variance, df = _welch(
        [(float(d.var(ddof=1)) / d.size, d.size - 1), *((_seed_variances(t)[0] / len(t), len(t) - 1) for t in (x, y))]
    )
    value = float(d.mean())
    if variance < rounding:
        value = value if value**2 >= rounding else 0.0
        return Estimate(value, value, value, min(len(x), len(y))), 1.0 if value == 0 else 0.0
    half = t_quantile(df, level) * math.sqrt(variance)
    p = 1 - _t_inside(math.atan(abs(value) / math.sqrt(variance) / math.sqrt(min(df, 10_000))), min(df, 10_000))
    return Estimate(value, value - half, value + half, min(len(x), len(y))), max(0.0, p)


def seeds_needed(
    a: Scores, b: Scores, difference: float, level: float = LEVEL, power: float = POWER
) -> tuple[int | None, float]:
    """Return (seeds of each method with which `compare_seeds` detects `difference` with this power, item variance).

    The number of items stays that of `a` and `b`. Their spread gives the variance at n seeds: τ² / I + (σ_a² + σ_b²) /
    n, where σ² is the variance of one seed's mean (the seed's own and that of its interaction with the items), and τ²
    that of the items' true differences. The second value is τ² / I, which more seeds cannot reduce; if it alone is too
    large, the first value is None. The power is that of the noncentral t (`t_power`) at the degrees of freedom of
    `compare_seeds`. With few seeds the spread, and so the result, is a rough estimate. Raises ConfigError as
    `compare_seeds` and `items_needed` do.
    """
    compare_seeds(a, b, level)
    items_needed(difference, 0.0, level, power)
    x, y = _table(a, "seeds_needed"), _table(b, "seeds_needed")
    (seed_a, rest_a), (seed_b, rest_b), items = _seed_variances(x), _seed_variances(y), x.shape[1]
    observed = float((y.mean(0) - x.mean(0)).var(ddof=1)) / items
    left = max(0.0, observed - rest_a / len(x) - rest_b / len(y))

    def enough(n: int) -> bool:
        seeds = ((s / n, n - 1) for s in (seed_a, seed_b))
        variance, df = _welch([(left + (rest_a + rest_b) / n, items - 1), *seeds])
        return variance == 0 or t_power(abs(difference) / math.sqrt(variance), df, level) >= power

    if left and t_power(abs(difference) / math.sqrt(left), items - 1, level) <= power:
        return None, left
    high = 2
    while not enough(high):
        high *= 2
    return bisect.bisect_left(range(high), True, lo=max(2, high // 2), key=enough), left


# -- in words ----------------------------------------------------------------------------------------------------------


def comparison_sentence(a: str, b: str, test: PairedTest, level: float = LEVEL, p: float | None = None) -> str:
    """Return a sentence that says whether B is better than A; `p`, if given, is a corrected p value for the test's."""
    p = test.p if p is None else p
    numbers = (
        f"{test.b:.3f} against {test.a:.3f} on {test.items} items, difference {test.difference} "
        f"(p = {p:.2g}, {test.test}; {b} is ahead on {test.b_wins}, {a} on {test.a_wins})"
    )
    if p < 1 - level:
        side = "better" if test.difference.value > 0 else "worse"
        return f"{b} is {side} than {a}: {numbers}."
    return f"No difference between {b} and {a} can be seen: {numbers}."


def advice(test: PairedTest, level: float = LEVEL, power: float = POWER) -> str:
    """Return a sentence on the number of items that would show the observed difference (0.01 if it is below 0.001).

    The spread of one item is derived from the interval, so that dependence within a document or task counts. It assumes
    similar items, documents of the same size, and proportionally more items of each task.
    """
    if not test.a_wins + test.b_wins:
        return "Both give the same score on every item."
    if math.isnan(test.difference.low):
        return "At least two items (or documents) are needed for an interval."
    error = (test.difference.high - test.difference.low) / 2 / NormalDist().inv_cdf((1 + level) / 2)
    goal = abs(test.difference.value)
    goal = goal if goal >= 0.001 else 0.01
    needed = items_needed(goal, error * math.sqrt(test.items), level, power)
    return f"About {needed:,} items are needed {_detect(goal, power)}."


def seeds_advice(
    a: Reals, b: Reals, difference: Estimate, items: int, level: float = LEVEL, power: float = POWER
) -> str:
    """Return a sentence on the number of seeds that would show `difference`, as `advice` does for items.

    `a` and `b` are scores [S_a, units] and [S_b, units]; the units stand for `items` items.
    """
    if difference.low == difference.high:
        return "Both give the same score on every item, with every seed."
    goal = abs(difference.value) if abs(difference.value) >= 0.001 else 0.01
    seeds, left = seeds_needed(a, b, goal, level, power)
    detect = _detect(goal, power)
    if seeds is not None:
        return f"About {seeds:,} seeds of each are needed {detect} on as many items."
    more = items_needed(goal, math.sqrt(left * items), level, power)
    return f"No number of seeds is enough {detect} on so few items: more than about {more:,} items are needed."


def _detect(difference: float, power: float) -> str:
    return f"to detect a true difference of {difference:.3f} with a power of {power * 100:.0f} %"


def finite_scores(values: Sequence[object], where: str) -> list[float]:
    """Return the numbers of a results file as floats; raises DataError, starting with `where`, if one is not finite."""
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{where}: score {number} is {value!r}; wanted a finite number")
    return [float(v) for v in values if isinstance(v, (int, float))]
