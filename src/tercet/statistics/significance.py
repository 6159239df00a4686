"""Comparing: is B better than A, by how much, how sure is that, and how many items would it take.

    the mean of values that come in documents             clustered        bootstrap over documents
    the score of a task                                   score            the one of these that suits it
    two models on the same items                          paired_test      interval and p value
    the same, over several tasks                          macro_test       tasks count equally; stratified
    several p values at once                              holm             family-wise correction
    one score over seeds and items                        crossed          both drawn again: two-way random effects
    two ways of training, several seeds of each           compare_seeds    Welch over seeds, paired over items
    items to measure before a difference can be seen      items_needed     normal approximation
    seeds to train before it can be seen                  seeds_needed     noncentral t

Seeds are not items: ten seeds on the same 500 items are neither 5,000 items nor 10. `crossed` takes both as samples,
the seeds from all seeds and the items from all items of their kind, and adds up the variance of both and of their
interaction (the crossed random-effects layout of Cornfield and Tukey 1956).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

ENUMERATED = 16  # units with a difference up to which all 2^n signs are gone through
DRAWS = 10_000
POWER = 0.8


def clustered(values: Values, groups: Sequence[Hashable], level: float = LEVEL, seed: int = 0) -> Estimate:
    """The mean of `values` with the percentile bootstrap over whole groups (documents); n counts the groups.

    Where all values are equal, drawing again shows no spread; for shares the interval is then Wilson's with one trial
    per group. Raises ConfigError for unequal lengths, DataError for a value that is not finite.
    """
    x = _values(values, "clustered")
    sums, sizes = _group_sums(x, groups, "clustered")
    if x.min() == x.max() and x[0] in (0.0, 1.0):
        low, high = _score_interval(float(x[0]), sums.size, 0.0, level)
        return Estimate(float(x[0]), low, high, sums.size)
    return _bootstrap(sums, sizes, level, seed, DRAWS)


def score(values: Sequence[float], groups: Sequence[Hashable] | None = None) -> Estimate:
    """A mean with the interval that suits it: over documents where items share them, of a share Wilson's, else Student's."""
    if groups is not None:
        return clustered(values, groups)
    return proportion(int(sum(values)), len(values)) if set(values) <= {0.0, 1.0} else mean(values)


@dataclass(frozen=True)
class PairedTest:
    """B against A on the same items: `difference` is the mean of b − a with its interval, `p` two-sided.

    `a_wins` and `b_wins` count the items on which one has the higher score; the rest are ties.
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
        """All fields, for a results file."""
        return {**self.__dict__, "difference": self.difference.to_json()}


def paired_test(
    a: Values, b: Values, groups: Sequence[Hashable] | None = None, level: float = LEVEL, seed: int = 0
) -> PairedTest:
    """The paired bootstrap's interval of mean(b − a), and a p value that does not lean on it.

    Where every score is 0 or 1 and items stand alone, p is McNemar's exact test (1947): the items on which both agree
    say nothing, and of the others each side should have half. Else it is Fisher's randomisation test: under "no
    difference" each unit's sum of differences could as well have the other sign. Units are items, or the groups.
    Raises ConfigError for unequal lengths, DataError for a value that is not finite.
    """
    x, y = _same_length(a, b, "paired_test")
    d = y - x
    sums, sizes = (d, np.ones_like(d)) if groups is None else _group_sums(d, groups, "paired_test")
    a_wins, b_wins = int((d < 0).sum()), int((d > 0).sum())
    if groups is None and np.isin(np.concatenate([x, y]), (0.0, 1.0)).all():
        p, test = mcnemar(a_wins, b_wins), "McNemar's exact test"
    else:
        p, test = sign_flips(sums, seed), "randomisation test"
    difference = _bootstrap(sums, sizes, level, seed, DRAWS)
    shares = bool(np.isin(np.concatenate([x, y]), (0.0, 1.0)).all())
    difference = _not_certain(difference, sums.size, level) if shares else difference
    return PairedTest(float(x.mean()), float(y.mean()), difference, p, test, a_wins, b_wins, d.size)


def _not_certain(found: Estimate, n: float, level: float) -> Estimate:
    """Of right and wrong answers that differ on none of n units, or on all to one side: Wilson's end stands in.

    Drawing again shows no spread there, and an interval without width would say that no item could ever differ.
    """
    if found.low != found.high or n < 2 or found.value not in (-1.0, 0.0, 1.0):
        return found
    other = NormalDist().inv_cdf((1 + level) / 2) ** 2
    end = other / (n + other)  # of a share that was 0 of n
    low, high = (-end, end) if found.value == 0 else (1 - end, 1.0) if found.value > 0 else (-1.0, end - 1)
    return Estimate(found.value, low, high, found.n)


def mcnemar(a_only: int, b_only: int) -> float:
    """Two-sided exact p of McNemar's test (1947): min(1, 2 P(X ≤ min)), X binomial over the items that differ, p = 1/2."""
    n, k = a_only + b_only, min(a_only, b_only)
    if a_only < 0 or b_only < 0:
        raise ConfigError(f"mcnemar: {a_only} and {b_only} items; wanted two counts, each 0 or more")
    tail = sum(math.comb(n, i) for i in range(k + 1))
    # as integers until the end: 2^n does not fit a float where n is above 1,023
    return min(1.0, float(2 * tail / 2**n)) if n <= 1000 else min(1.0, math.exp(math.log(2 * tail) - n * math.log(2)))


def sign_flips(sums: Values, seed: int = 0, draws: int = DRAWS) -> float:
    """Two-sided p of Fisher's randomisation test: how many choices of signs give |Σ ±s| as large as |Σ s|.

    All 2^n are gone through up to 16 units that are not 0; above that `draws` random ones, the found one among them, so
    that p is never 0 (Phipson and Smyth 2010).
    """
    s = _values(sums, "sign_flips")
    s = s[s != 0]
    if not s.size:
        return 1.0
    found = abs(float(s.sum())) * (1 - 1e-12) - 1e-300  # rounding must not lose the ties
    if s.size <= ENUMERATED:
        bits = (np.arange(2**s.size)[:, None] >> np.arange(s.size)) & 1
        return float((np.abs((1 - 2 * bits) @ s) >= found).mean())
    rng = np.random.Generator(np.random.PCG64(seed))
    hits, rows = 0, max(1, CHUNK // s.size)
    for start in range(0, draws, rows):
        signs = 1 - 2 * rng.integers(2, size=(min(rows, draws - start), s.size), dtype=np.int8)
        hits += int((np.abs(signs @ s) >= found).sum())
    return (hits + 1) / (draws + 1)


@dataclass(frozen=True)
class Paired:
    """One task's scores of A and B on the same items; `groups` where several items share a document."""

    a: Values
    b: Values
    groups: Sequence[Hashable] | None = None


def macro_test(tasks: Sequence[Paired], level: float = LEVEL, seed: int = 0) -> PairedTest:
    """As `paired_test`, of the mean over tasks of each task's mean: every task counts the same, whatever its size.

    The bootstrap draws units within each task (stratified); the signs are flipped of all units at once, each weighted
    as it stands in the mean.
    """
    if not tasks:
        raise ConfigError("macro_test: no tasks; wanted at least one")
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled, weighted, a_mean, b_mean, wins, items = np.zeros(DRAWS), [], 0.0, 0.0, np.zeros(2, int), 0
    narrow, shares, parts = False, True, 0.0
    for task in tasks:
        x, y = _same_length(task.a, task.b, "macro_test")
        shares = shares and bool(np.isin(np.concatenate([x, y]), (0.0, 1.0)).all())
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
    if shares:  # as many units of one task would tell as much
        difference = _not_certain(difference, len(tasks) ** 2 / parts, level)
    p = sign_flips(np.concatenate(weighted), seed)
    return PairedTest(a_mean, b_mean, difference, p, "stratified randomisation test", int(wins[0]), int(wins[1]), items)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number (Holm 1979), in their order: reject those below α and be wrong once in 1/α."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, running = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = running
    return out


def items_needed(difference: float, spread: float, level: float = LEVEL, power: float = POWER) -> int:
    """Items at which a true mean difference is seen with probability `power` by a two-sided test at 1 − level.

    `spread` is the standard deviation of the items' differences b − a: n = ((z_{(1+level)/2} + z_power) · spread /
    difference)². Of right and wrong answers that differ on a share ψ of the items it is √(ψ − difference²), and the
    formula is then that of Miettinen (1968) for McNemar's test, to its first term. Raises ConfigError.
    """
    if difference == 0 or not math.isfinite(difference) or spread < 0 or not 0 < power < 1:
        raise ConfigError(
            f"items_needed: difference {difference}, spread {spread}, power {power}; wanted a difference that is not 0, "
            "a spread of 0 or more, and a power between 0 and 1"
        )
    _check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(power)
    return max(2, math.ceil((z * spread / difference) ** 2))


def t_power(shift: float, df: int, level: float = LEVEL) -> float:
    """P(|T| > the critical value of a two-sided test at 1 − level), T noncentral t: (Z + shift) / √(χ²_df / df).

    By the midpoint rule over s = √(χ²_df / df), given which T is normal (Johnson, Kotz and Balakrishnan 1995, chapter 31).
    """
    t, reach, normal = t_quantile(df, level), 8 / math.sqrt(2 * df), NormalDist().cdf
    edges = np.linspace(max(0.0, 1 - reach), 1 + reach, 401)
    s = (edges[1:] + edges[:-1]) / 2
    weight = np.exp((df - 1) * np.log(s) - df * (s**2 - 1) / 2)
    seen = [normal(shift - t * x) + normal(-shift - t * x) for x in s.tolist()]
    return float(weight @ seen / weight.sum())


# -- several seeds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Squares:
    """Mean squares of a table [seeds, items]: between seeds, between items, and what is left."""

    seeds: float
    items: float
    rest: float


def _table(scores: Sequence[Values] | NDArray[np.float64], name: str) -> Reals:
    """As a float array [S, I]: raises ConfigError for a ragged table, DataError for a value that is not finite."""
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


def crossed(scores: Sequence[Values] | NDArray[np.float64], level: float = LEVEL) -> Estimate:
    """The mean of scores [S seeds, I items] with an interval for new seeds *and* new items; n is the number of seeds.

    With mean squares between seeds, between items and of the rest, the variance of the mean is (MS_S + MS_I − MS_R) /
    (S·I), never taken below the larger of MS_S and MS_I over S·I, and its degrees of freedom are Satterthwaite's (1946).
    One seed says nothing of other seeds: its interval is unknown.
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


def _of_a_seed(table: Reals) -> tuple[float, float]:
    """The variance of one seed's mean over items: of the seed itself, and of its interaction with the items."""
    ms, items = _squares(table), table.shape[1]
    return max(0.0, ms.seeds - ms.rest) / items, ms.rest / items


def _welch(parts: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """The sum of variances, each with its degrees of freedom, and the sum's (Welch 1947, Satterthwaite 1946), rounded down."""
    variance = sum(v for v, _ in parts)
    return variance, max(1, int(variance**2 / sum(v**2 / n for v, n in parts) + 1e-9)) if variance else 1


def compare_seeds(
    a: Sequence[Values] | NDArray[np.float64], b: Sequence[Values] | NDArray[np.float64], level: float = LEVEL
) -> tuple[Estimate, float]:
    """(mean(b) − mean(a) with its interval, two-sided p) of two ways of training: scores [S_a, I] and [S_b, I].

    Items are the same for both, seeds are not. The variance has three parts: of the items' differences of means over
    seeds, divided by I (it holds the interaction of seed and item too), and of each side's seeds, (MS_S − MS_R) / (S·I)
    where that is above 0; degrees of freedom by Welch and Satterthwaite. Raises ConfigError unless both have two seeds
    and the same two or more items.
    """
    x, y = _table(a, "compare_seeds"), _table(b, "compare_seeds")
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1] or x.shape[1] < 2:
        raise ConfigError(
            f"compare_seeds: {x.shape[0]} and {y.shape[0]} seeds with {x.shape[1]} and {y.shape[1]} items; wanted two "
            "seeds or more of each, on the same items: of single runs use paired_test"
        )
    d = y.mean(0) - x.mean(0)
    rounding = (1e-12 * max(1.0, float(np.abs(x).max()), float(np.abs(y).max()))) ** 2
    variance, df = _welch(
        [(float(d.var(ddof=1)) / d.size, d.size - 1), *((_of_a_seed(t)[0] / len(t), len(t) - 1) for t in (x, y))]
    )
    value = float(d.mean())
    if variance < rounding:
        value = value if value**2 >= rounding else 0.0
        return Estimate(value, value, value, min(len(x), len(y))), 1.0 if value == 0 else 0.0
    half = t_quantile(df, level) * math.sqrt(variance)
    p = 1 - _t_inside(math.atan(abs(value) / math.sqrt(variance) / math.sqrt(min(df, 10_000))), min(df, 10_000))
    return Estimate(value, value - half, value + half, min(len(x), len(y))), max(0.0, p)


def seeds_needed(
    a: Sequence[Values] | NDArray[np.float64], b: Sequence[Values] | NDArray[np.float64], difference: float,
    level: float = LEVEL, power: float = POWER,
) -> tuple[int | None, float]:  # fmt: skip
    """(seeds of each side at which `compare_seeds` sees a true difference with probability `power`, what the items leave).

    The items stay as many as in `a` and `b`, from whose spread the variance at n seeds is taken: τ² / I + (σ_a² + σ_b²) / n,
    with σ² that of one seed's mean (of the seed itself and its interaction with the items) and τ² that of the items' true
    differences. The second number is τ² / I, which no seeds lower: where that is too much, the first is None. The power
    is the noncentral t's (`t_power`) at the degrees of freedom of `compare_seeds`. A spread taken from few seeds is rough,
    and so is the number. Raises ConfigError as `compare_seeds` and `items_needed` do.
    """
    compare_seeds(a, b, level)
    items_needed(difference, 0.0, level, power)
    x, y = _table(a, "seeds_needed"), _table(b, "seeds_needed")
    (seed_a, rest_a), (seed_b, rest_b), items = _of_a_seed(x), _of_a_seed(y), x.shape[1]
    found = float((y.mean(0) - x.mean(0)).var(ddof=1)) / items
    left = max(0.0, found - rest_a / len(x) - rest_b / len(y))

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


# -- in words ------------------------------------------------------------------------------------------------------------


def comparison_sentence(a: str, b: str, test: PairedTest, level: float = LEVEL, p: float | None = None) -> str:
    """One sentence that says whether B is better than A; `p` stands in for the test's where it has been corrected."""
    shown = test.p if p is None else p
    numbers = (
        f"{test.b:.3f} against {test.a:.3f} on {test.items} items, difference {test.difference} "
        f"(p = {shown:.2g}, {test.test}; {b} is ahead on {test.b_wins}, {a} on {test.a_wins})"
    )
    if shown < 1 - level:
        side = "better" if test.difference.value > 0 else "worse"
        return f"{b} is {side} than {a}: {numbers}."
    return f"No difference between {b} and {a} can be seen: {numbers}."


def advice(test: PairedTest, level: float = LEVEL, power: float = POWER) -> str:
    """How many items a difference as large as the one found would need, or one of 0.01 where none was found.

    The spread of one item is taken from the interval, so that what items share (a document, a task) counts: items of
    the same kind, in documents of the same size, and as many more of each task.
    """
    if not test.a_wins + test.b_wins:
        return "Both give the same score on every item."
    if math.isnan(test.difference.low):
        return "Of a single item, or document, nothing can be said."
    error = (test.difference.high - test.difference.low) / 2 / NormalDist().inv_cdf((1 + level) / 2)
    goal = abs(test.difference.value)
    goal = goal if goal >= 0.001 else 0.01
    needed = items_needed(goal, error * math.sqrt(test.items), level, power)
    return f"To see a true difference of {goal:.3f} {power:.0%} of the time takes about {needed:,} items."


def seeds_advice(
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    found: Estimate,
    items: int,
    level: float = LEVEL,
    power: float = POWER,
) -> str:
    """As `advice`, of scores [S_a, units] and [S_b, units] that stand for `items` items: how many seeds it would need."""
    if found.low == found.high:
        return "Both give the same score on every item, with every seed."
    goal = abs(found.value) if abs(found.value) >= 0.001 else 0.01
    seeds, left = seeds_needed(a, b, goal, level, power)
    seen = f"a true difference of {goal:.3f} {power:.0%} of the time"
    if seeds is not None:
        return f"To see {seen} on as many items takes about {seeds:,} seeds of each."
    more = items_needed(goal, math.sqrt(left * items), level, power)
    return f"To see {seen} no number of seeds is enough on so few items: it takes more than about {more:,} items."


def finite_scores(values: Sequence[object], where: str) -> list[float]:
    """Numbers of a results file, checked. Raises DataError, which begins with `where`."""
    for number, value in enumerate(values):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise DataError(f"{where}: score {number} is {value!r}; wanted a finite number")
    return [float(v) for v in values if isinstance(v, (int, float))]
