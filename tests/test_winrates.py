"""Win rates: orders, length, Bradley–Terry; against direct maximisation, known strengths and coverage."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tercet.errors import ConfigError, DataError
from tercet.evaluation.winrates import Game, both_orders, bradley_terry, length_controlled, strengths


def test_a_judge_that_prefers_the_first_gives_ties():
    wins, changed = both_orders([1.0, 1.0, 1.0], [1.0, 1.0, 1.0])
    assert (wins.tolist(), changed) == ([0.5] * 3, 1.0)
    wins, changed = both_orders([1.0, 0.0, 0.5, 1.0], [0.0, 1.0, 0.5, 0.5])
    assert (wins.tolist(), changed) == ([1.0, 0.0, 0.5, 0.75], 0.0)
    with pytest.raises(DataError, match="outside 0 to 1"):
        both_orders([2.0], [0.0])


def newton(w):
    """The same maximum by Newton's method on the log-likelihood, with the first strength fixed."""
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
    found = bradley_terry(never)
    assert found[0] - found[1] == pytest.approx(math.log(5.5 / 0.5))
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
        found = strengths(games, 3, seed=trial, draws=120)
        covered += sum(e.low <= t <= e.high for e, t in zip(found, truth))
        assert found[0].n == 80
    assert covered / 90 > 0.85


def test_length_bought_wins_are_taken_back():
    rng = np.random.default_rng(2)
    n = 3000
    lengths, others = rng.normal(160, 40, n), rng.normal(100, 40, n)  # A is longer and not better
    delta = lengths - others
    wins = (rng.random(n) < 1 / (1 + np.exp(-1.5 * np.tanh(delta / delta.std())))).astype(float)
    assert wins.mean() > 0.65
    found = length_controlled(wins, lengths, others, draws=60)
    assert found.value == pytest.approx(0.5, abs=0.05)
    assert found.low < 0.5 < found.high
    better = (rng.random(n) < 1 / (1 + np.exp(-1.0 - 1.5 * np.tanh(delta / delta.std())))).astype(float)
    assert length_controlled(better, lengths, others, draws=20).value == pytest.approx(1 / (1 + math.exp(-1)), abs=0.03)


def test_length_model_without_a_difference_of_lengths_is_the_rate():
    wins = [1.0, 1.0, 0.5, 0.0, 1.0] * 40
    found = length_controlled(wins, [5.0] * 200, [5.0] * 200, draws=50)
    assert found.value == pytest.approx(0.7, abs=1e-3)
    gradient_zero = length_controlled(
        [1.0] * 50, list(range(50)), [0.0] * 50, draws=10
    )  # separable: finite all the same
    assert 0.5 < gradient_zero.value < 1.0
    ties = length_controlled([0.5] * 12, list(range(12)), [0.0] * 12)
    assert ties.low < 0.5 < ties.high
    with pytest.raises(ConfigError, match="as many"):
        length_controlled([1.0], [1.0, 2.0], [1.0])
