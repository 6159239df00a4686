"""Intervals, tests and strengths against SciPy's, which shares no line with ours."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("scipy")

from scipy import optimize, stats

from tercet.statistics.intervals import mean, paired_difference, proportion
from tercet.statistics.pairwise import bradley_terry
from tercet.statistics.significance import clustered, items_needed, mcnemar, paired_test, sign_flips, t_power

RNG = np.random.default_rng(0)


def test_wilson():
    for n in (1, 5, 20, 100, 1000):
        for k in range(0, n + 1, max(1, n // 7)):
            wanted = stats.binomtest(k, n).proportion_ci(0.95, "wilson")
            found = proportion(k, n)
            assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_mcnemar():
    for a in (*range(0, 60, 3), 600):
        for b in (*range(1, 60, 4), 700):
            assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b, 0.5).pvalue, rel=1e-9)


def means(values, axis=-1):
    return values.mean(axis=axis)


def test_sign_flips_are_the_paired_permutation_test():
    few, many = RNG.normal(size=13), RNG.normal(0.2, 1, size=80)
    exact = stats.permutation_test((few,), means, permutation_type="samples", n_resamples=np.inf)
    assert sign_flips(few) == pytest.approx(exact.pvalue, abs=1e-12)
    drawn = stats.permutation_test((many,), means, permutation_type="samples", n_resamples=100_000, random_state=1)
    assert sign_flips(many) == pytest.approx(drawn.pvalue, abs=5 * (drawn.pvalue / 10_000) ** 0.5)


def test_students_t():
    for n in (2, 3, 8, 400):
        x = RNG.normal(size=n)
        assert (mean(x).low, mean(x).high) == pytest.approx(stats.t.interval(0.95, n - 1, x.mean(), stats.sem(x)))


def test_bootstraps():
    groups = np.repeat(np.arange(30), 4)
    values = np.repeat(RNG.normal(size=30), 4) + 0.3 * RNG.normal(size=120)
    wanted = stats.bootstrap(
        (values.reshape(30, 4).mean(1),), np.mean, n_resamples=20_000, method="percentile", random_state=2
    )
    a, b = np.zeros(120), values
    for found in (clustered(values, groups.tolist()), paired_test(a, b, groups.tolist()).difference):
        assert (found.low, found.high) == pytest.approx(wanted.confidence_interval, abs=0.015)
    wanted = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=2)
    found = paired_difference(values, a)
    assert (found.low, found.high) == pytest.approx(wanted.confidence_interval, abs=0.01)


def test_bradley_terry_is_the_maximum_that_bfgs_finds():
    for models in (2, 3, 6):
        wins = RNG.integers(1, 20, (models, models)).astype(float)
        np.fill_diagonal(wins, 0)

        def loss(free, wins=wins):
            s = np.r_[0, free]
            return (wins * np.logaddexp(0, s[None, :] - s[:, None])).sum()

        found = np.r_[0, optimize.minimize(loss, np.zeros(models - 1), method="BFGS", options={"gtol": 1e-7}).x]
        assert bradley_terry(wins, prior=0) == pytest.approx(found - found.mean(), abs=1e-5)


def test_the_power_of_a_t_test_is_the_noncentral_ts():
    for df in (1, 2, 3, 8, 40, 300):
        for shift in (0.0, 0.5, 2.0, 2.8, 4.0, 6.0):
            t = stats.t.ppf(0.975, df)
            wanted = stats.nct.sf(t, df, shift) + stats.nct.cdf(-t, df, shift)
            assert t_power(shift, df) == pytest.approx(wanted, abs=1e-4)


def test_items_needed_give_their_power():
    for difference, spread in ((0.1, 0.5), (0.02, 0.3)):
        n = items_needed(difference, spread)
        shift = difference / (spread / n**0.5)
        assert stats.norm.sf(stats.norm.ppf(0.975) - shift) == pytest.approx(0.8, abs=0.005)
