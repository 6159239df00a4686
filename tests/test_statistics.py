"""Comparisons of models: against exact enumeration, closed forms in fractions, and coverage in simulations."""

from __future__ import annotations

import itertools
import math
import re
from fractions import Fraction
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.errors import ConfigError, DataError
from tercet.statistics.intervals import mean
from tercet.statistics.significance import (
    Paired,
    advice,
    clustered,
    compare_seeds,
    comparison_sentence,
    crossed,
    finite_scores,
    holm,
    items_needed,
    macro_test,
    mcnemar,
    paired_test,
    seeds_advice,
    seeds_needed,
    sign_flips,
    t_power,
)


def test_mcnemar_is_the_binomial_test_by_fractions():
    for a, b in itertools.product(range(9), repeat=2):
        n = a + b
        # every outcome at most as likely as the found one; for p = 1/2 that is both tails
        point = [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]
        assert mcnemar(a, b) == pytest.approx(float(sum(p for p in point if p <= point[a])))
    assert mcnemar(700, 800) == pytest.approx(2 * NormalDist().cdf(-(100 - 1) / math.sqrt(1500)), rel=0.02)
    with pytest.raises(ConfigError, match="-1"):
        mcnemar(-1, 3)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_sign_flips_goes_through_all_signs(sums):
    observed = abs(sum(sums))
    flips = [abs(sum(s * x for s, x in zip(signs, sums))) for signs in itertools.product((1, -1), repeat=len(sums))]
    assert sign_flips(sums) == pytest.approx(np.mean([f >= observed for f in flips]))


def test_random_signs_agree_with_the_binomial():
    # 30 units of ±1: the exact answer is McNemar's
    sums = [1.0] * 21 + [-1.0] * 9
    assert sign_flips(sums) == pytest.approx(mcnemar(21, 9), abs=0.006)
    assert 0 < sign_flips([1.0] * 200) < 2e-4


def test_paired_test_takes_the_right_test():
    rng = np.random.default_rng(0)
    a, b = (rng.random(80) < 0.5).astype(float), (rng.random(80) < 0.6).astype(float)
    test = paired_test(a, b)
    assert test.test.startswith("McNemar")
    assert (test.a_wins, test.b_wins) == (int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum()))
    # the bootstrap of a mean is normal at this size: its standard error by the formula
    half = 1.959964 * float((b - a).std()) / math.sqrt(80)
    assert test.difference.value == pytest.approx(b.mean() - a.mean())
    assert (test.difference.low, test.difference.high) == pytest.approx(
        (b.mean() - a.mean() - half, b.mean() - a.mean() + half), abs=0.015
    )
    assert paired_test(a + 0.5, b + 0.5).test == "randomisation test"
    twice = paired_test(np.repeat(a, 2), np.repeat(b, 2), groups=np.repeat(np.arange(80), 2).tolist())
    # the same item counted twice is one item: neither the interval nor p may shrink
    assert twice.difference.n == 80
    assert twice.difference.low == pytest.approx(test.difference.low, abs=1e-12)
    assert twice.p == pytest.approx(test.p, abs=0.02)
    with pytest.raises(ConfigError, match="the same number"):
        paired_test([1.0], [1.0, 0.0])


@pytest.mark.parametrize("kind", ["binary", "real"])
def test_p_values_are_honest_without_a_difference(kind):
    rng = np.random.default_rng(1)
    ps = []
    for trial in range(300):
        a = rng.normal(size=24)
        b = a + rng.normal(size=24)
        if kind == "binary":
            a, b = (rng.random((2, 24)) < 0.6).astype(float)
        ps.append(paired_test(a, b, seed=trial).p if kind == "binary" else sign_flips(b - a, trial, 800))
    assert np.mean(np.array(ps) < 0.05) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)
    assert np.mean(np.array(ps) < 0.5) > 0.25  # and not so careful as to be useless


def test_clustered_bootstrap_covers_and_the_plain_one_does_not():
    rng = np.random.default_rng(2)
    truth, hits, plain = 0.0, 0, 0
    for trial in range(200):
        groups = np.repeat(np.arange(30), 6)
        values = np.repeat(rng.normal(size=30), 6) + 0.5 * rng.normal(size=180)
        estimate = clustered(values, groups.tolist(), seed=trial)
        naive = mean(values)
        hits += estimate.low <= truth <= estimate.high
        plain += naive.low <= truth <= naive.high
        assert estimate.n == 30
    assert 0.88 <= hits / 200 <= 0.99
    assert plain / 200 < 0.75


def test_clustered_with_no_spread_is_not_certain():
    estimate = clustered([1.0] * 10, [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    assert estimate.n == 5
    assert estimate.low == pytest.approx(5 / (5 + NormalDist().inv_cdf(0.975) ** 2))


def test_macro_test_weighs_tasks_equally():
    big, small = Paired([0.0] * 90 + [1.0] * 10, [0.0] * 90 + [1.0] * 10), Paired([0.0] * 10, [1.0] * 10)
    test = macro_test([big, small])
    assert (test.a, test.b) == (pytest.approx(0.05), pytest.approx(0.55))
    assert test.difference.value == pytest.approx(0.5)
    assert test.p == pytest.approx(2 / 2**10)
    one = macro_test([Paired([0.0, 1, 0, 1, 0.0], [1.0, 1, 1, 1, 0.0])])
    assert one.p == pytest.approx(paired_test([0.5, 1, 0.5, 1, 0.5], [1.5, 1, 1.5, 1, 0.5]).p)
    with pytest.raises(ConfigError, match="no tasks"):
        macro_test([])


def test_holm_by_its_definition():
    ps = [0.01, 0.04, 0.03, 0.005]
    assert holm(ps) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_items_needed_gives_the_power_it_says():
    rng = np.random.default_rng(3)
    n = items_needed(0.25, 1.0)
    assert n == math.ceil(((1.959964 + 0.841621) / 0.25) ** 2)
    z = rng.normal(0.25, 1.0, size=(4000, n))
    seen = np.abs(z.mean(1)) > 1.959964 * z.std(1, ddof=1) / math.sqrt(n)
    assert seen.mean() == pytest.approx(0.8, abs=0.025)
    assert items_needed(0.125, 1.0) == pytest.approx(4 * n, abs=4)
    with pytest.raises(ConfigError, match="difference 0"):
        items_needed(0.0, 1.0)


def draw(rng, seeds, items, seed_sd, item_sd, rest):
    return rng.normal(0, seed_sd, (seeds, 1)) + rng.normal(0, item_sd, (1, items)) + rng.normal(0, rest, (seeds, items))


@pytest.mark.parametrize(("seed_sd", "item_sd"), [(0.3, 1.0), (0.0, 1.0), (1.0, 0.1)])
def test_crossed_covers_new_seeds_and_new_items(seed_sd, item_sd):
    rng = np.random.default_rng(4)
    estimates = [crossed(draw(rng, 4, 40, seed_sd, item_sd, 0.5)) for _ in range(600)]
    covered = np.mean([e.low <= 0 <= e.high for e in estimates])
    assert 0.92 <= covered <= 0.995, covered


def test_crossed_is_the_textbook_table():
    table = np.array([[1.0, 2.0, 4.0], [2.0, 3.0, 8.0]])
    m, s, i = table.mean(), 2, 3
    ms_s = 3 * sum((row.mean() - m) ** 2 for row in table) / 1
    ms_i = 2 * sum((table[:, k].mean() - m) ** 2 for k in range(3)) / 2
    rest = sum((table[r, k] - table[r].mean() - table[:, k].mean() + m) ** 2 for r in range(2) for k in range(3)) / 2
    total = ms_s + ms_i - rest
    df = int(total**2 / (ms_s**2 / 1 + ms_i**2 / 2 + rest**2 / 2))
    assert df == 2
    half = 4.302653 * math.sqrt(total / (s * i))
    estimate = crossed(table)
    assert (estimate.value, estimate.low, estimate.high) == pytest.approx((m, m - half, m + half), rel=1e-5)
    assert math.isnan(crossed([[1.0, 2.0]]).low)
    assert crossed([[1.0, 1.0], [1.0, 1.0]]).high == 1.0
    with pytest.raises(ConfigError, match="same items"):
        crossed([[1.0], [1.0, 2.0]])


@pytest.mark.parametrize("seed_sd", [0.0, 0.4])
def test_compare_seeds_covers_and_its_p_is_honest(seed_sd):
    rng = np.random.default_rng(5)
    covered, rejected = [], []
    for _ in range(500):
        items = rng.normal(0, 1.0, (1, 50))
        a, b = items + draw(rng, 3, 50, seed_sd, 0, 0.5), items + 0.2 + draw(rng, 5, 50, seed_sd, 0, 0.5)
        estimate, _ = compare_seeds(a, b)
        covered.append(estimate.low <= 0.2 <= estimate.high)
        rejected.append(compare_seeds(a, b - 0.2)[1] < 0.05)
    assert np.mean(covered) >= 0.92
    assert np.mean(rejected) <= 0.08
    with pytest.raises(ConfigError, match="paired_test"):
        compare_seeds([[1.0, 2.0]], [[1.0, 2.0], [1.0, 3.0]])


@pytest.mark.parametrize(("difference", "seeds"), [(0.2, 394), (0.5, 64), (0.8, 26)])
def test_seeds_needed_where_items_are_alike_is_cohens_table(difference, seeds):
    """Cohen (1988), table 2.4.1: two means, variance 1 in each group, two-sided 5 %, power 80 % (his 393 is 393.4)."""
    a = np.array([[-1.0], [0.0], [1.0]]) * np.ones((1, 5))
    assert seeds_needed(a, a + 3, difference) == (seeds, 0.0)


@pytest.mark.parametrize("ways_differ", [0.0, 0.5])  # how much the true difference varies from item to item
def test_seeds_needed_gives_the_power_it_says(ways_differ):
    rng, items, true = np.random.default_rng(7), 60, 0.35

    def experiment(seeds):
        common = rng.normal(0, 1, (1, items))
        other = common + true + rng.normal(0, ways_differ, (1, items))
        return common + draw(rng, seeds, items, 0.3, 0, 0.5), other + draw(rng, seeds, items, 0.2, 0, 0.8)

    results = [seeds_needed(*experiment(200), true) for _ in range(20)]
    assert np.mean([left for _, left in results]) == pytest.approx(ways_differ**2 / items, abs=2e-4)
    seeds = round(np.mean([n for n, _ in results]))
    seen = np.mean([compare_seeds(*experiment(seeds))[1] < 0.05 for _ in range(500)])
    assert seen == pytest.approx(0.8, abs=0.05)
    fewer = np.mean([compare_seeds(*experiment(seeds - 3))[1] < 0.05 for _ in range(500)])
    assert fewer < 0.8 - 0.03


def test_no_number_of_seeds_makes_up_for_items():
    rng = np.random.default_rng(8)
    common, other = rng.normal(0, 1, (2, 1, 12))
    a, b = common + draw(rng, 4, 12, 0.1, 0, 0.1), other + draw(rng, 4, 12, 0.1, 0, 0.1)
    difference, p = compare_seeds(a, b)
    assert p > 0.05
    seeds, left = seeds_needed(a, b, 0.1)
    assert seeds is None
    assert left == pytest.approx((other - common).var(ddof=1) / 12, rel=0.2)
    sentence = seeds_advice(a, b, difference, 12)
    more = int(
        re.search(r"^No number of .* on so few items: more than about ([\d,]+) items", sentence)[1].replace(",", "")
    )
    assert more == pytest.approx(((1.959964 + 0.841621) / difference.value) ** 2 * 12 * left, abs=1.1)
    same = np.ones((2, 12))
    assert seeds_advice(same, same, compare_seeds(same, same)[0], 12).startswith(
        "Both give the same score on every item"
    )
    with pytest.raises(ConfigError, match="difference 0"):
        seeds_needed(a, b, 0.0)
    with pytest.raises(ConfigError, match="paired_test"):
        seeds_needed(a[:1], b, 0.1)


def test_the_power_of_no_difference_is_the_level():
    for df in (1, 2, 5, 30, 400):
        assert t_power(0.0, df) == pytest.approx(0.05, abs=2e-4)
        assert t_power(0.0, df, 0.9) == pytest.approx(0.1, abs=2e-4)


def test_the_sentence_says_who_is_better():
    better = paired_test([0.0] * 20, [1.0] * 20)
    assert comparison_sentence("runs/a", "runs/b", better).startswith(
        "runs/b is better than runs/a: 1.000 against 0.000"
    )
    assert comparison_sentence("b", "a", paired_test([1.0] * 20, [0.0] * 20)).startswith("a is worse than b")
    assert comparison_sentence("a", "b", paired_test([0.0, 1.0], [1.0, 0.0])).startswith(
        "No difference between b and a"
    )
    assert comparison_sentence("a", "b", better, p=0.3).startswith("No difference")


def test_no_difference_on_a_few_items_is_not_certainty():
    z2 = NormalDist().inv_cdf(0.975) ** 2
    same, all_b, all_a = (
        paired_test([1.0] * 20, [1.0] * 20),
        paired_test([0.0] * 20, [1.0] * 20),
        paired_test([1.0] * 20, [0.0] * 20),
    )
    # what was never seen in n has Wilson's upper end z² / (n + z²)
    assert (same.difference.low, same.difference.high) == pytest.approx((-z2 / (20 + z2), z2 / (20 + z2)))
    assert (all_b.difference.low, all_b.difference.high) == pytest.approx((20 / (20 + z2), 1.0))
    assert (all_a.difference.low, all_a.difference.high) == pytest.approx((-1.0, -20 / (20 + z2)))
    grouped = paired_test([1.0] * 20, [1.0] * 20, groups=[i // 4 for i in range(20)])
    assert grouped.difference.high == pytest.approx(z2 / (5 + z2))  # five documents
    macro = macro_test([Paired([1.0] * 20, [1.0] * 20)] * 2)
    assert macro.difference.high == pytest.approx(z2 / (40 + z2))
    assert (
        paired_test([0.25] * 9, [0.5] * 9).difference.low == 0.25
    )  # of real values nothing is known beyond what is seen


def test_rounding_is_no_difference_between_seeds():
    a = np.array([[0.1, 0.2, 0.3], [0.1, 0.2, 0.3]])
    difference, p = compare_seeds(a, a + 1e-17 + np.array([[0], [1e-16]]))
    assert (difference.value, difference.low, difference.high, p) == (0.0, 0.0, 0.0, 1.0)


def test_the_advice_counts_documents_and_not_items():
    rng = np.random.default_rng(6)
    a = (rng.random(100) < 0.5).astype(float)
    b = np.where(rng.random(100) < 0.1, 1 - a, a)
    plain = int(re.search(r"About ([\d,]+) items", advice(paired_test(a, b)))[1].replace(",", ""))
    d = abs((b - a).mean())
    assert plain == pytest.approx(((1.959964 + 0.841621) * (b - a).std() / (d if d >= 0.001 else 0.01)) ** 2, rel=0.1)
    # every item ten times, in one document: ten times as many items are needed
    many = paired_test(np.repeat(a, 10), np.repeat(b, 10), groups=np.repeat(np.arange(100), 10).tolist())
    assert int(re.search(r"About ([\d,]+) items", advice(many))[1].replace(",", "")) == pytest.approx(
        10 * plain, rel=0.1
    )
    assert advice(paired_test([1.0], [0.0])) == "At least two items (or documents) are needed for an interval."
    assert advice(paired_test([1.0, 0.0], [1.0, 0.0])) == "Both give the same score on every item."


def test_scores_of_a_file_are_checked():
    assert finite_scores([1, 0.5], "f.json") == [1.0, 0.5]
    for wrong in (True, "1", None, math.nan):
        with pytest.raises(DataError, match=r"f\.json: score 1"):
            finite_scores([0.0, wrong], "f.json")
