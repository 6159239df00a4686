"""Intervals against published values, closed forms, simulated coverage and invariances."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest

from tercet.errors import ConfigError, DataError
from tercet.statistics import intervals as metrics
from tercet.statistics.intervals import (
    Estimate,
    mean,
    over_seeds,
    pair_accuracy,
    paired_difference,
    proportion,
    ratio,
    win_rate,
)


def covers(estimate: Estimate, truth: float) -> bool:
    return estimate.low <= truth <= estimate.high


# Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I, method 3.
@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_matches_published_values(hits: int, n: int, low: float, high: float) -> None:
    estimate = proportion(hits, n)
    assert estimate.value == hits / n
    assert estimate.n == n
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5.1e-5)


def test_wilson_is_exact_at_the_ends_and_symmetric() -> None:
    for n in range(1, 60):
        assert proportion(0, n).low == 0.0
        assert proportion(n, n).high == 1.0
        for hits in range(n + 1):
            one, other = proportion(hits, n), proportion(n - hits, n)
            assert (one.low, one.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-12)
            assert 0 <= one.low <= one.value <= one.high <= 1
    assert proportion(5, 10, level=0.5).low > proportion(5, 10, level=0.99).low


def test_wilson_coverage_computed_exactly() -> None:
    n = 40
    intervals = [proportion(hits, n) for hits in range(n + 1)]
    coverage = [
        sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1) if covers(intervals[k], p))
        for p in np.linspace(0.02, 0.98, 193)
    ]
    assert np.mean(coverage) == pytest.approx(0.953, abs=0.006)
    assert min(coverage) > 0.85


# Any printed table of Student's t, two-sided 95 % and 99 %.
@pytest.mark.parametrize(
    ("df", "t95", "t99"),
    [
        (1, 12.7062, 63.6567),
        (2, 4.3027, 9.9248),
        (3, 3.1824, 5.8409),
        (4, 2.7764, 4.6041),
        (5, 2.5706, 4.0321),
        (9, 2.2622, 3.2498),
        (10, 2.2281, 3.1693),
        (29, 2.0452, 2.7564),
        (30, 2.0423, 2.7500),
        (120, 1.9799, 2.6174),
    ],
)
def test_student_t_matches_tables(df: int, t95: float, t99: float) -> None:
    # The half-width over the standard error is the quantile.
    values = np.arange(df + 1.0)
    standard_error = float(values.std(ddof=1)) / math.sqrt(df + 1)
    for level, t in ((0.95, t95), (0.99, t99)):
        estimate = mean(values, level=level)
        assert (estimate.high - estimate.value) / standard_error == pytest.approx(t, abs=6e-5)
        assert (estimate.value - estimate.low) / standard_error == pytest.approx(t, abs=6e-5)


def test_student_t_closed_forms_and_limit() -> None:
    for level in (0.05, 0.5, 0.9, 0.99, 0.9999):
        assert metrics.t_quantile(1, level) == pytest.approx(math.tan(math.pi * level / 2), rel=1e-9)
        assert metrics.t_quantile(2, level) == pytest.approx(level * math.sqrt(2 / (1 - level**2)), rel=1e-9)
    assert metrics.t_quantile(10**9, 0.95) == pytest.approx(1.959964, rel=2e-4)
    quantiles = [metrics.t_quantile(df, 0.95) for df in range(1, 200)]
    assert all(a > b for a, b in itertools.pairwise(quantiles))


def test_over_seeds_by_hand() -> None:
    estimate = over_seeds([1.0, 2.0, 3.0])
    assert (estimate.value, estimate.n) == (2.0, 3)
    assert estimate.high - 2 == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    single = over_seeds([0.7])
    assert (single.value, single.n) == (0.7, 1)
    assert math.isnan(single.low)
    assert math.isnan(single.high)


def test_mean_covers_the_truth_with_four_values() -> None:
    rng = np.random.default_rng(0)
    hits = sum(covers(mean(rng.normal(3, 2, size=4)), 3) for _ in range(3000))
    assert hits / 3000 == pytest.approx(0.95, abs=0.015)


def test_groups_widen_the_interval_as_they_must() -> None:
    rng = np.random.default_rng(1)
    groups = [prompt for prompt in range(12) for _ in range(8)]
    clustered, plain = 0, 0
    for _ in range(1500):
        values = np.repeat(rng.normal(size=12), 8) + 0.5 * rng.normal(size=96)
        clustered += covers(mean(values, groups=groups), 0)
        plain += covers(mean(values), 0)
    assert clustered / 1500 == pytest.approx(0.95, abs=0.02)
    assert plain / 1500 < 0.65


def test_groups_of_one_are_the_plain_interval_and_copies_add_nothing() -> None:
    values = np.random.default_rng(2).normal(size=30)
    plain = mean(values)
    apart = mean(values, groups=[f"item {i}" for i in range(30)])
    copied = mean(np.tile(values, 5), groups=list(range(30)) * 5)
    for other in (apart, copied):
        assert (other.value, other.low, other.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-12)
        assert other.n == 30
    assert math.isnan(mean(values, groups=["one"] * 30).low)


def test_paired_difference_invariances() -> None:
    rng = np.random.default_rng(3)
    hard = 10 * rng.normal(size=300)
    a, b = hard + 0.3 + rng.normal(size=300), hard + rng.normal(size=300)
    one = paired_difference(a, b)
    assert one == paired_difference(list(a), list(b), seed=0)
    assert one.low != paired_difference(a, b, seed=1).low
    assert one.value == pytest.approx(float(a.mean() - b.mean()))
    assert one.low < one.value < one.high
    # For many well-behaved items the bootstrap and Student's t agree.
    student = mean(a - b)
    assert (one.low, one.high) == pytest.approx((student.low, student.high), abs=0.015)
    # What makes an item hard for both drops out, a common factor comes through.
    scaled = paired_difference(2 * a + hard, 2 * b + hard)
    assert (scaled.low, scaled.high) == pytest.approx((2 * one.low, 2 * one.high))
    assert paired_difference(a, b, level=0.5).low > one.low
    assert paired_difference(a, a) == Estimate(0.0, 0.0, 0.0, 300)


def test_chunks_do_not_change_the_bootstrap(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = np.random.default_rng(4).normal(size=(2, 50))
    whole = paired_difference(a, b, draws=1001)
    monkeypatch.setattr(metrics, "CHUNK", 120)
    assert paired_difference(a, b, draws=1001) == whole


def test_ratio_agrees_with_a_bootstrap_written_out() -> None:
    rng = np.random.default_rng(5)
    size = rng.integers(20, 2000, size=40).astype(float)
    bits = size * rng.normal(2, 0.4, size=40)
    estimate = ratio(bits, size)
    assert estimate.value == pytest.approx(bits.sum() / size.sum())
    assert estimate.n == 40
    other, draws = np.random.default_rng(99), []
    for _ in range(4000):
        picked = [int(i) for i in other.integers(0, 40, size=40)]
        draws.append(sum(bits[i] for i in picked) / sum(size[i] for i in picked))
    width = estimate.high - estimate.low
    assert estimate.low == pytest.approx(float(np.quantile(draws, 0.025)), abs=0.08 * width)
    assert estimate.high == pytest.approx(float(np.quantile(draws, 0.975)), abs=0.08 * width)


def test_ratio_covers_the_truth_and_keeps_proportions() -> None:
    rng = np.random.default_rng(6)
    hits = 0
    for _ in range(500):
        size = rng.integers(50, 500, size=80).astype(float)
        hits += covers(ratio(size * rng.normal(2, 0.5, size=80), size, draws=400), 2)
    assert hits / 500 == pytest.approx(0.945, abs=0.03)
    exact = ratio([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (exact.value, exact.low, exact.high) == pytest.approx((2, 2, 2))


def test_win_rate_without_ties_is_wilson() -> None:
    a, b = [1.0] * 7 + [0.0] * 3, [0.5] * 10
    wilson, won, lost = proportion(7, 10), win_rate(a, b), win_rate(b, a)
    assert (won.value, won.low, won.high, won.n) == pytest.approx((0.7, wilson.low, wilson.high, 10))
    assert (lost.low, lost.high) == pytest.approx((1 - won.high, 1 - won.low))


def test_win_rate_ties_count_half_and_narrow_the_interval() -> None:
    a, b = [2, 2, 1, 1, 1, 1, 1, 1, 1, 0] * 10, [1] * 100
    estimate, without = win_rate(a, b), proportion(55, 100)
    assert estimate.value == pytest.approx(0.55)
    assert estimate.high - estimate.low < 0.75 * (without.high - without.low)
    all_ties = win_rate([1.0] * 20, [1.0] * 20)
    assert all_ties.value == 0.5
    assert 0.3 < all_ties.low < 0.5 < all_ties.high < 0.7
    assert win_rate([1] * 5, [0] * 5).low == pytest.approx(proportion(5, 5).low)


@pytest.mark.parametrize("ties", [0.0, 0.5, 0.9])
def test_win_rate_covers_the_truth(ties: float) -> None:
    rng = np.random.default_rng(7)
    wins, covered, total = 0.65 * (1 - ties), 0, 1500
    for _ in range(total):
        outcome = rng.choice([1, 0, -1], p=[wins, ties, 1 - ties - wins], size=100)
        covered += covers(win_rate(outcome, np.zeros(100)), wins + ties / 2)
    assert 0.93 < covered / total < 0.99


def test_pair_accuracy_is_by_prompt() -> None:
    rng = np.random.default_rng(8)
    prompts = list(range(60)) * 3
    easy = rng.random(60) < 0.7
    correct = np.tile(easy, 3).astype(float)
    estimate, naive = pair_accuracy(correct, prompts), proportion(int(correct.sum()), 180)
    assert estimate.value == pytest.approx(naive.value)
    assert estimate.n == 60
    # Three copies of each pair carry no more than one: the width is that of 60 trials, not of 180.
    honest = proportion(int(easy.sum()), 60)
    assert estimate.high - estimate.low == pytest.approx(honest.high - honest.low, rel=0.1)
    assert estimate.high - estimate.low > 1.5 * (naive.high - naive.low)
    single = pair_accuracy(easy.astype(float), [f"p{i}" for i in range(60)])
    assert (single.low, single.high) == pytest.approx((estimate.low, estimate.high), abs=1e-12)


def test_pair_accuracy_all_right_is_not_certainty() -> None:
    estimate = pair_accuracy([1.0] * 30, [i // 6 for i in range(30)])
    assert estimate == proportion(5, 5)


def test_pair_accuracy_weighs_pairs_not_prompts() -> None:
    # Six pairs of one prompt right, one pair of another wrong: 6 of 7 pairs.
    assert pair_accuracy([1, 1, 1, 1, 1, 1, 0], ["a"] * 6 + ["b"]).value == pytest.approx(6 / 7)


def test_prints_and_writes_json() -> None:
    assert str(Estimate(0.5123, 0.4712, 0.5534, 500)) == "0.512 [0.47, 0.55]"
    assert str(Estimate(1.23456, 1.23406, 1.23506, 500)) == "1.23456 [1.2341, 1.2351]"
    assert str(Estimate(0.0, 0.0, 0.0, 3)) == "0.000 [0.00, 0.00]"
    assert str(over_seeds([0.7])) == "0.700 [interval unknown, n = 1]"
    assert json.loads(json.dumps(proportion(1, 2).to_json(), allow_nan=False))["n"] == 2
    assert over_seeds([0.7]).to_json() == {"value": 0.7, "low": None, "high": None, "n": 1}
    for estimate in (mean([1, 2]), ratio([1, 2], [3, 4]), win_rate([1, 2], [0, 3]), pair_accuracy([1, 0], "ab")):
        json.dumps(estimate.to_json(), allow_nan=False)


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ConfigError, match="0 hits of n = 0; wanted n at least 1"):
        proportion(0, 0)
    with pytest.raises(ConfigError, match="3 hits of n = 2"):
        proportion(3, 2)
    for call in (
        lambda: mean([]),
        lambda: over_seeds([]),
        lambda: paired_difference([], []),
        lambda: ratio([], []),
        lambda: win_rate([], []),
        lambda: pair_accuracy([], []),
    ):
        with pytest.raises(ConfigError, match="at least one value"):
            call()


def test_bad_values_are_errors() -> None:
    with pytest.raises(DataError, match="mean: value 1 is nan"):
        mean([1.0, math.nan])
    with pytest.raises(DataError, match="value 0 is inf"):
        win_rate([math.inf], [0.0])
    with pytest.raises(DataError, match=r"denominators\[1\] is 0.0"):
        ratio([1.0, 1.0], [1.0, 0.0])
    with pytest.raises(DataError, match="wanted 1 for right"):
        pair_accuracy([2.0, 1.0], ["a", "b"])
    with pytest.raises(ConfigError, match="2 and 1 values"):
        paired_difference([1.0, 2.0], [1.0])
    with pytest.raises(ConfigError, match="2 values and 1 groups"):
        mean([1.0, 2.0], groups=["a"])
    for level in (0, 1, 95):
        with pytest.raises(ConfigError, match=rf"level = {level};"):
            mean([1.0, 2.0], level=level)
    with pytest.raises(ConfigError, match="draws = 0"):
        ratio([1.0, 2.0], [1.0, 1.0], draws=0)
