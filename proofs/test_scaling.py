"""Intervals of scaling laws hold the truth in at least 90 of 100 draws of known laws; larger runs are predicted (`scaling_prediction.py`)."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest
import scaling_prediction

from tercet.pretraining import laws
from tercet.pretraining.laws import Points

DRAWS = 100
LEAST = 90
NOISE = 0.01  # of ln L; seeds of small runs scatter by about half of this


def grid(sizes: int, lengths: int) -> tuple[np.ndarray, np.ndarray]:
    pairs = itertools.product(np.geomspace(2e4, 2e6, sizes), np.geomspace(1e5, 1e7, lengths))
    n, d = np.array(list(pairs)).T
    return n, d


def noisy(loss: np.ndarray, seed: int, noise: float = NOISE) -> np.ndarray:
    scattered: np.ndarray = loss * np.exp(noise * np.random.default_rng(seed).standard_normal(loss.shape))
    return scattered


@pytest.mark.parametrize(
    "true",
    [
        {"E": 1.0, "A": 60.0, "B": 120.0, "alpha": 0.36, "beta": 0.32},
        {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28},  # Hoffmann et al. 2022
    ],
)
def test_the_parametric_law(true: dict[str, float]) -> None:
    n, d = grid(6, 6)
    loss = true["E"] + true["A"] / n ** true["alpha"] + true["B"] / d ** true["beta"]
    hits = dict.fromkeys([*true, "a", "predicted"], 0)
    exponent = true["beta"] / (true["alpha"] + true["beta"])
    bigger = true["E"] + true["A"] / 8e6 ** true["alpha"] + true["B"] / 4e7 ** true["beta"]
    for seed in range(DRAWS):
        fit = laws.fit_parametric(Points.of(n, d, noisy(loss, seed)), draws=100, seed=seed)
        for name, e in fit.parameters().items():
            hits[name] += e.low <= true[name] <= e.high
        e = laws.exponents(fit)["a"]
        hits["a"] += e.low <= exponent <= e.high
        e = fit.predict(8e6, 4e7, 0.95)
        hits["predicted"] += e.low <= noisy(np.array(bigger), 10_000 + seed) <= e.high
    print(hits)
    assert min(hits.values()) >= LEAST, hits


def test_kaplans_law() -> None:
    true = {"Nc": 8.8e13, "Dc": 5.4e13, "aN": 0.076, "aD": 0.095}
    n, d = grid(6, 6)
    loss = ((true["Nc"] / n) ** (true["aN"] / true["aD"]) + true["Dc"] / d) ** true["aD"]
    hits = dict.fromkeys(true, 0)
    for seed in range(DRAWS):
        fit = laws.fit_kaplan(Points.of(n, d, noisy(loss, seed)), draws=200, seed=seed)
        for name, e in fit.parameters().items():
            hits[name] += e.low <= true[name] <= e.high
    print(hits)
    assert min(hits.values()) >= LEAST, hits


@pytest.mark.parametrize("law", ["size", "tokens", "compute"])
def test_a_power_law(law: str) -> None:
    x = np.geomspace(1e4, 1e9, 24)
    hits = [0, 0]
    for seed in range(DRAWS):
        points = Points.of(x, x, noisy((3e12 / x) ** 0.1, seed), x)
        for i, (e, true) in enumerate(zip(laws.fit_power(law, points, seed=seed).parameters().values(), (3e12, 0.1))):
            hits[i] += e.low <= true <= e.high
    print(law, hits)
    assert min(hits) >= LEAST, hits


def test_iso_flop() -> None:
    """With equal exponents N* ∝ C^.5 exactly, and parabolas are symmetric."""
    c = np.repeat(np.geomspace(1e15, 1e18, 5), 7)
    n = 0.22 * c**0.5 * np.tile(np.geomspace(0.3, 3, 7), 5)
    loss = 1 + 60 / n**0.34 + 90 / (c / 6 / n) ** 0.34
    hits = 0
    for seed in range(DRAWS):
        e = laws.iso_flop(Points.of(n, c / 6 / n, noisy(loss, seed, 0.003)), c, seed=seed).exponents["a"]
        hits += e.low <= 0.5 <= e.high
    print(hits)
    assert hits >= LEAST


@pytest.mark.parametrize("name", list(scaling_prediction.DATA))
def test_a_larger_run_is_predicted(name: str, tmp_path: Path) -> None:
    """Fitted up to C, asked about 8 C, for a fourth of the budgets that docs/scaling.md reports."""
    flops = [c / 4 for c in scaling_prediction.FLOPS]
    row = scaling_prediction.one(tmp_path, name, os.cpu_count() or 1, flops, seeds=[0])
    print(row)
    assert row["factor"] >= 8
    assert row["inside"]
    assert abs(row["error"]) < 0.1
