"""Scaling laws: intervals, predictions, minima, and published points.

Intervals contain the truth in at least 90 of 100 draws of known laws. Larger runs are predicted
(`scaling_prediction.py`). scipy finds the same minima. Published points give the published constants.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scaling_prediction
from scipy.optimize import least_squares, minimize

from tercet.scaling import laws
from tercet.scaling.flops import BESIROGLU
from tercet.scaling.laws import Points

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


# -- scipy as oracle ------------------------------------------------------------------------------------------------
# Equations, losses and starts are written again here: nothing of `laws` but its fits is used.

Residuals = Callable[[np.ndarray], np.ndarray]


def hoffmann_residuals(p: Points) -> Residuals:
    """ln(E + A / N^alpha + B / D^beta) − ln L of t = (ln E, ln A, ln B, alpha, beta)."""
    return lambda t: (
        np.log(np.exp(t[0]) + np.exp(t[1]) * p.size ** -t[3] + np.exp(t[2]) * p.tokens ** -t[4]) - np.log(p.loss)
    )


def kaplan_residuals(p: Points) -> Residuals:
    """aD · ln((Nc / N)^(aN / aD) + Dc / D) − ln L of t = (ln Nc, ln Dc, aN, aD)."""
    return lambda t: (
        t[3] * np.logaddexp(t[2] / t[3] * (t[0] - np.log(p.size)), t[1] - np.log(p.tokens)) - np.log(p.loss)
    )


def huber(r: np.ndarray, delta: float = 1e-3) -> float:
    """Hoffmann et al. 2022, section 3.3."""
    return float(np.where(np.abs(r) <= delta, r * r / 2, delta * (np.abs(r) - delta / 2)).sum())


def scipys_parametric_law(points: Points) -> np.ndarray:
    """Return (ln E, ln A, ln B, alpha, beta) of the least Huber loss: three of scipy's methods, twelve starts."""
    residuals = hoffmann_residuals(points)
    tight = {"x_scale": "jac", "xtol": 1e-12, "ftol": 1e-14, "gtol": 1e-14, "max_nfev": 5000}
    simplex = {"maxiter": 20000, "maxfev": 20000, "xatol": 1e-9, "fatol": 1e-15, "adaptive": True}
    ends = []
    for share, alpha, beta in itertools.product((0.3, 0.6, 0.9), (0.2, 0.5), (0.2, 0.5)):
        e, x, y = share * points.loss.min(), np.log(points.size).mean(), np.log(points.tokens).mean()
        at = np.array([np.log(e), alpha * x, beta * y, alpha, beta])
        at = least_squares(residuals, at, loss="huber", f_scale=1e-3, **tight).x
        # where the kinks of Huber's loss stop one method, another goes on
        at = minimize(lambda t: huber(residuals(t)), at, method="L-BFGS-B", options={"ftol": 1e-15}).x
        at = minimize(lambda t: huber(residuals(t)), at, method="Nelder-Mead", options=simplex).x
        ends.append(at)
    return min(ends, key=lambda t: huber(residuals(t)))


def assert_same_minimum(fit: laws.Fit, scipys: np.ndarray, points: Points) -> None:
    """The objective to 1e-6, the parameters to 1e-3."""
    residuals = hoffmann_residuals(points)
    ours, theirs = huber(residuals(fit.theta)), huber(residuals(scipys))
    print(f"objective: ours {ours:.9g}, scipy's {theirs:.9g}", np.exp(fit.theta[:3]), np.exp(scipys[:3]))
    assert ours == pytest.approx(theirs, rel=1e-6)
    assert np.exp(fit.theta[:3]) == pytest.approx(np.exp(scipys[:3]), rel=1e-3)
    assert fit.theta[3:] == pytest.approx(scipys[3:], rel=1e-3)


@pytest.mark.parametrize("seed", range(5))
def test_scipy_finds_the_same_parametric_law(seed: int) -> None:
    n, d = grid(6, 6)
    points = Points.of(n, d, noisy(1 + 60 / n**0.36 + 120 / d**0.32, seed))
    assert_same_minimum(laws.fit_parametric(points, draws=20), scipys_parametric_law(points), points)


@pytest.mark.parametrize("seed", range(5))
def test_scipy_finds_the_same_kaplan_law(seed: int) -> None:
    n, d = grid(6, 6)
    points = Points.of(n, d, noisy(((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095, seed))
    residuals = kaplan_residuals(points)
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = min(
        (
            least_squares(residuals, [np.log(nc), np.log(dc), an, ad], x_scale="jac", max_nfev=5000, **tight)
            for nc, dc, an, ad in itertools.product((1e10, 1e15), (1e10, 1e15), (0.05, 0.15), (0.05, 0.15))
        ),
        key=lambda f: f.cost,
    )  # fmt: skip
    ours = laws.fit_kaplan(points, draws=20).theta
    loss = float((residuals(ours) ** 2).sum() / 2)
    print(loss / found.cost - 1, np.exp(ours[:2] - found.x[:2]) - 1, ours[2:] / found.x[2:] - 1)
    assert loss == pytest.approx(found.cost, rel=1e-6)
    assert np.exp(ours[:2]) == pytest.approx(np.exp(found.x[:2]), rel=1e-3)
    assert ours[2:] == pytest.approx(found.x[2:], rel=1e-3)


# -- published points -----------------------------------------------------------------------------------------------

ERRORS = (0.03, 124.58, 1293.23, 0.02, 0.02)  # standard errors of E, A, B, alpha, beta: Besiroglu et al. 2024, table 1
OUTLIERS = 5  # that they leave out: the runs of the fewest tokens


@pytest.mark.skipif(
    not os.environ.get("TERCET_POINTS"),
    reason="no published points: name the file svg_extracted_data.csv of Besiroglu et al. (2024), which is not part of "
    "this project (github.com/epoch-research/analyzing-chinchilla, data/), in the environment variable TERCET_POINTS",
)
def test_published_points_give_the_published_constants() -> None:
    """The runs that Besiroglu et al. read off figure 4 of Hoffmann et al.: N and C are given, D = C / 6 N."""
    with Path(os.environ["TERCET_POINTS"]).open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"]]
    size, flops, loss = (np.array([float(r[name]) for r in rows]) for name in ("Model Size", "Training FLOP", "loss"))
    every = Points.of(size, flops / size / 6, loss, flops)
    assert len(every) == 245
    points = every.take(np.argsort(every.tokens)[OUTLIERS:])
    fit = laws.fit_parametric(points, draws=1000)
    residuals = hoffmann_residuals(points)
    theirs = huber(residuals(np.array([*np.log(BESIROGLU[:3]), *BESIROGLU[3:]])))
    ours = huber(residuals(fit.theta))
    print(f"objective: ours {ours:.6g}, published constants {theirs:.6g}")
    for (name, e), published, error in zip(fit.parameters().items(), BESIROGLU, ERRORS):
        print(f"{name}: {e.value:.4f} [{e.low:.4f}, {e.high:.4f}], published {published} ({error})")
        assert abs(e.value - published) < error
        assert e.low < published < e.high
    assert theirs * 0.99 < ours <= theirs  # theirs stopped, or were rounded, a little above the minimum
    assert_same_minimum(fit, scipys_parametric_law(points), points)
    a = laws.exponents(fit)["a"]
    print(f"N* ∝ C^a: {a.value:.4f} [{a.low:.4f}, {a.high:.4f}], published .5126 (.02)")
    assert a.low < 0.5126 < a.high


@pytest.mark.parametrize("name", list(scaling_prediction.DATA))
def test_a_larger_run_is_predicted(name: str, tmp_path: Path) -> None:
    """Fitted up to C, asked about 8 C, for a fourth of the budgets that docs/measurements/scaling.md reports."""
    flops = [c / 4 for c in scaling_prediction.FLOPS]
    row = scaling_prediction.one(tmp_path, name, os.cpu_count() or 1, flops, seeds=[0])
    print(row)
    assert row["factor"] >= 8
    assert row["inside"]
    assert abs(row["error"]) < 0.1
