"""Win rates: orders, length, Bradley–Terry; against direct maximisation, known strengths and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tercet.errors import ConfigError, DataError
from tercet.statistics.pairwise import (
    Game,
    both_orders,
    bradley_terry,
    bradley_terry_ratings,
    difficulties,
    length_controlled,
)


def test_a_judge_that_prefers_the_first_gives_ties():
    wins, changed = both_orders([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (wins.tolist(), changed) == ([0.5] * 3, 1.0)
    wins, changed = both_orders([1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5])
    assert (wins.tolist(), changed) == ([1.0, 0.0, 0.5, 0.75], 0.0)
    with pytest.raises(DataError, match="outside 0 to 1"):
        both_orders([2.0], [0.0])


def newton(w):
    """Return the same maximum by Newton's method on the log-likelihood, with the first rating fixed."""
    s = np.zeros(len(w))
    for _ in range(60):
        d = s[:, None] - s[None, :]
        p = 1 / (1 + np.exp(-d))
        n = w + w.T
        gradient = (w - n * p).sum(1)
        curve = n * p * (1 - p)
        hessian = curve - np.diag(curve.sum(1))
        s[1:] -= np.linalg.solve(hessian[1:, 1:], gradient[1:])
    return s - s.mean()


def test_mm_finds_the_maximum_that_newton_finds():
    rng = np.random.default_rng(0)
    for m in (2, 3, 6):
        w = rng.integers(1, 20, (m, m)).astype(float) + 0.5
        np.fill_diagonal(w, 0)
        assert bradley_terry(w, prior=0) == pytest.approx(newton(w), abs=1e-8)
    two = bradley_terry(np.array([[0, 30.0], [10.0, 0]]), prior=0)
    assert two[0] - two[1] == pytest.approx(math.log(3))


def test_strengths_that_are_not_finite_are_refused_or_given_a_prior():
    never = np.array([[0, 5.0], [0, 0]])
    with pytest.raises(ConfigError, match="not finite"):
        bradley_terry(never, prior=0)
    ratings = bradley_terry(never)
    assert ratings[0] - ratings[1] == pytest.approx(math.log(5.5 / 0.5))
    apart = np.array([[0, 1.0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    with pytest.raises(ConfigError, match="never met"):
        bradley_terry(apart)
    with pytest.raises(ConfigError, match="square table"):
        bradley_terry(np.ones((2, 2)))


def test_known_strengths_lie_in_their_intervals():
    rng = np.random.default_rng(1)
    truth = np.array([0.8, 0.0, -0.8])
    covered = 0
    for trial in range(30):
        games = []
        for prompt in range(80):
            for a, b in ((0, 1), (0, 2), (1, 2)):
                p = 1 / (1 + math.exp(truth[b] - truth[a]))
                games.append(Game(a, b, float(rng.random() < p), prompt))
        ratings = bradley_terry_ratings(games, 3, seed=trial, draws=120)
        covered += sum(e.low <= t <= e.high for e, t in zip(ratings, truth))
        assert ratings[0].n == 80
    assert covered / 90 > 0.85


def test_length_bought_wins_are_taken_back():
    rng = np.random.default_rng(2)
    n = 3000
    lengths, others = rng.normal(160, 40, n), rng.normal(100, 40, n)  # A is longer and not better
    delta = lengths - others
    wins = (rng.random(n) < 1 / (1 + np.exp(-1.5 * np.tanh(delta / delta.std())))).astype(float)
    assert wins.mean() > 0.65
    rate = length_controlled(wins, lengths, others, draws=60)
    assert rate.value == pytest.approx(0.5, abs=0.05)
    assert rate.low < 0.5 < rate.high
    better = (rng.random(n) < 1 / (1 + np.exp(-1.0 - 1.5 * np.tanh(delta / delta.std())))).astype(float)
    assert length_controlled(better, lengths, others, draws=20).value == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def naive_rate(wins, delta, gamma, ridge=0.01):
    """Return the same maximum by plain gradient ascent."""
    x = np.stack([np.ones_like(delta), np.tanh(delta / delta.std()), gamma], axis=1)
    c = np.zeros(3)
    for _ in range(6000):
        c += 4 / len(wins) * (x.T @ (wins - 1 / (1 + np.exp(-x @ c))) - ridge * c)
    return float((1 / (1 + np.exp(-c[0] - c[2] * gamma))).mean())


def test_length_model_is_the_maximum_that_gradient_ascent_finds():
    rng = np.random.default_rng(5)
    delta, gamma = rng.normal(10, 30, (2, 150))
    gamma /= 30
    wins = (rng.random(150) < 1 / (1 + np.exp(-0.4 - np.tanh(delta / 30) - gamma))).astype(float)
    for given, used in ((None, np.zeros(150)), (gamma, gamma)):
        rate = length_controlled(wins, delta, np.zeros(150), draws=1, difficulty=given)
        assert rate.value == pytest.approx(naive_rate(wins, delta, used), abs=1e-5)


PAIRS = ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1), (3, 2))


def world(seed, n=300, difficulty=0.0, length=0.0, longer=0.0):
    """Return (wins, deltas, true rates at equal length, γ) of four models on n prompts.

    With `longer`, a better model writes longer answers to the prompts that it is good at.
    """
    rng = np.random.default_rng(seed)
    gamma, theta, psi = rng.normal(size=n), np.array([0, 0.2, 0.4, 0.6]), difficulty * np.arange(4) / 3
    lengths = 100 + 20 * rng.normal(size=(4, n)) + np.arange(4)[:, None] * (8 + longer * gamma)
    deltas = np.stack([lengths[i] - lengths[j] for i, j in PAIRS])
    merit = np.stack([theta[i] - theta[j] + (psi[i] - psi[j]) * gamma for i, j in PAIRS])
    bought = length * np.tanh(deltas / deltas.std(1, keepdims=True))
    wins = (rng.random(merit.shape) < 1 / (1 + np.exp(-merit - bought))).astype(float)
    return wins, deltas, (1 / (1 + np.exp(-merit))).mean(1), gamma


def rates(wins, deltas, gamma):
    zeros = np.zeros(wins.shape[1])
    return np.array(
        [length_controlled(w, d, zeros, draws=1, difficulty=g).value for w, d, g in zip(wins, deltas, gamma)]
    )


def test_difficulty_is_found_from_the_other_pairs():
    wins, deltas, _, gamma = world(0, difficulty=4.0)
    gammas = difficulties(wins, deltas)
    # the sign is free, but one for all
    assert all(np.corrcoef(g, gammas[0])[0, 1] > 0.3 for g in gammas)
    assert all(abs(np.corrcoef(g, gamma)[0, 1]) > 0.5 for g in gammas)
    # with independent coins no pair's judgements are explained by its own γ
    coins = np.random.default_rng(1).integers(0, 2, (3, 400)).astype(float)
    of_coins = difficulties(coins, np.zeros((3, 400)))
    assert all(abs(np.corrcoef(g, w)[0, 1]) < 0.15 for g, w in zip(of_coins, coins))
    for few in (1, 2):
        with pytest.raises(ConfigError, match="three or more"):
            difficulties(wins[:few], deltas[:few])


def test_a_judge_of_length_alone_gives_one_half_with_difficulties_too():
    all_rates = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        lengths = 100 + 20 * rng.normal(size=(4, 300)) + 8 * np.arange(4)[:, None]
        deltas = np.stack([lengths[i] - lengths[j] for i, j in PAIRS])
        wins = (
            rng.random(deltas.shape) < 1 / (1 + np.exp(-3 * np.tanh(deltas / deltas.std(1, keepdims=True))))
        ).astype(float)
        assert wins[2].mean() > 0.65  # the longest against the shortest
        all_rates.append(rates(wins, deltas, difficulties(wins, deltas)))
    assert np.mean(all_rates) == pytest.approx(0.5, abs=0.03)


def test_difficulty_takes_back_what_length_was_blamed_for():
    """Without the third term, longer answers on topics that a model knows well are penalised as if length had won."""
    with_term, without = [], []
    for seed in range(20):
        wins, deltas, truth, _ = world(seed, difficulty=4.0, longer=14.0)
        with_term.append(rates(wins, deltas, difficulties(wins, deltas)) - truth)
        without.append(rates(wins, deltas, [None] * 6) - truth)
    for name, off in (("without", without), ("with", with_term)):
        each = np.mean(off, axis=1)
        print(f"off by {each.mean():.3f} {name} the third term, standard error {each.std(ddof=1) / math.sqrt(20):.3f}")
    assert np.mean(without) < -0.05  # better models come out too low
    assert np.mean(without) < np.mean(with_term) - 0.01
    assert np.mean(np.square(with_term)) < np.mean(np.square(without))
    for seed in range(3):  # and nothing changes where there is no such thing
        wins, deltas, truth, _ = world(seed)
        assert rates(wins, deltas, difficulties(wins, deltas)) == pytest.approx(
            rates(wins, deltas, [None] * 6), abs=0.03
        )


def test_length_model_without_a_difference_of_lengths_is_the_rate():
    wins = [1.0, 1.0, 0.5, 0.0, 1.0] * 40
    rate = length_controlled(wins, [5.0] * 200, [5.0] * 200, draws=50)
    assert rate.value == pytest.approx(0.7, abs=1e-3)
    gradient_zero = length_controlled(
        [1.0] * 50, list(range(50)), [0.0] * 50, draws=10
    )  # separable: finite all the same
    assert 0.5 < gradient_zero.value < 1.0
    ties = length_controlled([0.5] * 12, list(range(12)), [0.0] * 12)
    assert ties.low < 0.5 < ties.high
    with pytest.raises(ConfigError, match="the same number"):
        length_controlled([1.0], [1.0, 2.0], [1.0])
