"""Scaling laws on points whose law is known, and against fits done another way."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from tercet.errors import ConfigError, DataError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.scaling import flops as counting
from tercet.scaling import laws
from tercet.scaling.laws import Points

TRUE = {"E": 1.0, "A": 60.0, "B": 120.0, "alpha": 0.36, "beta": 0.32}


def grid(seed: int, noise: float, sizes: int = 6, lengths: int = 5) -> Points:
    """Runs of every size and length by Hoffmann's law, with noise in ln L."""
    pairs = itertools.product(np.geomspace(2e4, 2e6, sizes), np.geomspace(1e5, 1e7, lengths))
    n, d = np.array(list(pairs)).T
    rng = np.random.default_rng(seed)
    loss = TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]
    return Points.of(n, d, loss * np.exp(noise * rng.standard_normal(n.size)))


def iso(seed: int, noise: float) -> tuple[Points, Any]:
    """Runs of 4 budgets and 7 sizes around the best ones; a law with equal exponents, so that N* ∝ C^.5."""
    c = np.repeat(np.geomspace(1e15, 1e18, 4), 7)
    n = 0.22 * c**0.5 * np.tile(np.geomspace(0.3, 3, 7), 4)
    loss = 1 + 60 / n**0.34 + 90 / (c / 6 / n) ** 0.34
    return Points.of(n, c / 6 / n, loss * np.exp(noise * np.random.default_rng(seed).standard_normal(n.size))), c


# -- recovery ---------------------------------------------------------------------------------------------------------


def test_the_parametric_law_comes_back_from_points_without_noise() -> None:
    found = laws.fit_parametric(grid(0, 0.0), draws=20).parameters()
    assert {k: e.value for k, e in found.items()} == pytest.approx(TRUE, rel=1e-3)


def test_intervals_hold_the_truth() -> None:
    """The full 100 draws of each law are in proofs/test_scaling.py; here 10, of which 2 may miss by chance."""
    hits = dict.fromkeys(TRUE, 0)
    for seed in range(10):
        for name, e in laws.fit_parametric(grid(seed, 0.01), draws=80, seed=seed).parameters().items():
            hits[name] += e.low <= TRUE[name] <= e.high
    assert min(hits.values()) >= 8, hits


def test_kaplans_law_comes_back() -> None:
    n, d = (p.ravel() for p in np.meshgrid(np.geomspace(2e4, 2e6, 5), np.geomspace(1e5, 1e7, 5)))
    power_n, power_d, nc, dc = 0.076, 0.095, 8.8e13, 5.4e13  # Kaplan et al. 2020, table 2
    loss = ((nc / n) ** (power_n / power_d) + dc / d) ** power_d
    found = {k: e.value for k, e in laws.fit_kaplan(Points.of(n, d, loss), draws=20).parameters().items()}
    assert found == pytest.approx({"Nc": nc, "Dc": dc, "aN": power_n, "aD": power_d}, rel=1e-3)


def test_the_simple_law_comes_back() -> None:
    n, d = (p.ravel() for p in np.meshgrid(np.geomspace(2e4, 2e6, 4), np.geomspace(1e5, 1e7, 4)))
    found = laws.fit_simple(Points.of(n, d, 20 / n**0.21 + 35 / d**0.21), draws=20).parameters()
    assert {k: e.value for k, e in found.items()} == pytest.approx({"A": 20, "B": 35, "a": 0.21}, rel=1e-3)


def test_a_forecast_is_the_mean_of_laws_and_holds_all_of_them() -> None:
    """By hand: two laws without noise, whose draws are themselves."""
    first, second = (
        laws.Fit("simple", np.array([a, a, 0.3]), np.array([[a, a, 0.3]] * 20), np.zeros(9)) for a in (1.0, 1.2)
    )
    each = [float(f.loss(1e5, 1e6)[0]) for f in (first, second)]
    e = laws.forecast([first, second], 1e5, 1e6, 0.9)
    assert e.value == pytest.approx(math.sqrt(each[0] * each[1]))
    wider = 1.9432 / 1.6449  # t with 9 − 3 degrees of freedom over z
    assert (e.low, e.high) == pytest.approx(
        (e.value * math.exp(-0.1 * wider), e.value * math.exp(0.1 * wider)), rel=1e-4
    )
    alone = laws.forecast([first], 1e5, 1e6)
    assert alone == first.predict(1e5, 1e6)
    assert alone.low == pytest.approx(each[0]) == pytest.approx(alone.high)


@pytest.mark.parametrize("law", ["size", "tokens", "compute"])
def test_a_power_law_is_the_line_that_numpy_finds(law: str) -> None:
    rng = np.random.default_rng(1)
    n, d, c = np.geomspace(1e4, 1e7, 9), np.geomspace(1e6, 1e8, 9), np.geomspace(1e10, 1e16, 9)
    x = {"size": n, "tokens": d, "compute": c}[law]
    loss = (3e9 / x) ** 0.21 * np.exp(0.02 * rng.standard_normal(9))
    fit = laws.fit_power(law, Points.of(n, d, loss, c), draws=50)
    slope, height = np.polyfit(np.log(x), np.log(loss), 1)
    assert fit.theta[1] == pytest.approx(-slope, rel=1e-10)
    assert fit.theta[0] == pytest.approx(height / -slope, rel=1e-10)
    low, high = np.quantile(fit.draws[:, 1], (0.025, 0.975))
    assert low < 0.21 < high


def test_the_parabolas_minima_give_the_exponent() -> None:
    hits = 0
    for seed in range(10):
        points, budget = iso(seed, 0.002)
        e = laws.iso_flop(points, budget, seed=seed).exponents
        hits += e["a"].low <= 0.5 <= e["a"].high
        assert e["a"].value + e["b"].value == pytest.approx(1, abs=0.02)  # since C = 6 N D
    assert hits >= 8


# -- the minimiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("curve", "count"), [(laws.parametric, 5), (laws.kaplan, 4), (laws.simple, 3)])
def test_derivatives_are_autograds(curve: laws.Curve, count: int) -> None:
    rng = np.random.default_rng(0)
    theta, x, y = rng.uniform(0.2, 1.5, (3, count)), rng.normal(size=7), rng.normal(size=7)
    value, jacobian = curve(theta, x, y)
    tx, ty = torch.tensor(x), torch.tensor(y)

    def plain(t: torch.Tensor) -> torch.Tensor:
        if count == 5:
            return torch.log(torch.exp(t[0]) + torch.exp(t[1] - t[3] * tx) + torch.exp(t[2] - t[4] * ty))
        if count == 3:
            return torch.log(torch.exp(t[0] - t[2] * tx) + torch.exp(t[1] - t[2] * ty))
        return t[3] * torch.log(torch.exp(t[0] - t[2] * tx) + torch.exp(t[1] - ty))

    for m in range(3):
        t = torch.tensor(theta[m])
        assert value[m] == pytest.approx(plain(t).numpy(), rel=1e-12)
        assert jacobian[m] == pytest.approx(torch.autograd.functional.jacobian(plain, t).numpy(), rel=1e-9)


def test_the_fit_is_not_above_torchs_lbfgs() -> None:
    """The same Huber loss written again, minimised by torch's L-BFGS from the truth: ours may not be worse."""
    points = grid(3, 0.02)
    n, d, target = (torch.log(torch.tensor(v)) for v in (points.size, points.tokens, points.loss))

    def loss(t: torch.Tensor) -> torch.Tensor:
        guess = torch.logsumexp(torch.stack([t[0].expand_as(n), t[1] - t[3] * n, t[2] - t[4] * d]), 0)
        return torch.nn.functional.huber_loss(guess, target, reduction="sum", delta=laws.HUBER)

    t = torch.tensor([0.0, math.log(60), math.log(120), 0.36, 0.32], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([t], max_iter=500, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> float:
        optimizer.zero_grad()
        value = loss(t)
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(closure)
    ours = float(loss(torch.tensor(laws.fit_parametric(points, draws=20).theta)))
    assert ours <= float(loss(t.detach())) * (1 + 1e-4)


def test_one_outlier_does_not_move_the_law() -> None:
    points = grid(0, 0.0)
    wrong = points.loss.copy()
    wrong[7] *= 1.5
    found = laws.fit_parametric(Points.of(points.size, points.tokens, wrong), draws=20).parameters()
    assert found["alpha"].value == pytest.approx(0.36, abs=0.01)
    assert found["beta"].value == pytest.approx(0.32, abs=0.01)


# -- prediction -------------------------------------------------------------------------------------------------------


def test_predictions_of_larger_runs_hold() -> None:
    """10 times, laws of runs of at most C predict one of 16 C: most 90 % intervals contain the noisy truth."""
    hits = 0
    for seed in range(10):
        points = grid(seed, 0.01, 5, 4)
        seen = points.take(points.flops <= points.flops.max() / 16)
        fit = laws.fit_parametric(seen, draws=60, seed=seed)
        e = fit.predict(2e6, 1e7)
        hits += e.low <= points.loss[-1] <= e.high
    assert hits >= 7


def test_the_best_size_is_the_least_of_a_grid() -> None:
    fit = laws.fit_parametric(grid(0, 0.0), draws=20)
    size, tokens = laws.optimum(fit, 1e14)
    assert 6 * size * tokens == pytest.approx(1e14)
    tried = np.geomspace(size / 30, size * 30, 4001)
    assert tried[np.argmin(fit.loss(tried, 1e14 / 6 / tried))] == pytest.approx(size, rel=5e-3)
    assert laws.exponents(fit)["a"].value == pytest.approx(0.32 / 0.68, rel=1e-3)


def test_the_frontier_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    points = Points.of(rng.uniform(1, 9, 40), rng.uniform(1, 9, 40), rng.uniform(1, 2, 40), rng.integers(1, 12, 40))
    for by in ("size", "tokens", "flops"):
        key, loss = getattr(points, by), points.loss
        kept = [i for i in range(40) if not any(j != i and key[j] <= key[i] and loss[j] <= loss[i] for j in range(40))]
        found = laws.frontier(points, by)
        assert sorted(found.loss) == sorted(loss[kept])


def test_a_fit_survives_json() -> None:
    fit = laws.fit_parametric(grid(0, 0.01), draws=30)
    again = laws.Fit.from_json(fit.to_json(), "here")
    assert again.predict(1e7, 1e9).value == fit.predict(1e7, 1e9).value
    assert again.predict(1e7, 1e9).low == pytest.approx(fit.predict(1e7, 1e9).low, rel=1e-4)


# -- counting ---------------------------------------------------------------------------------------------------------


def test_parameters_are_those_of_the_module(shape: ModelConfig) -> None:
    model = Transformer(shape)
    whole = sum(p.numel() for p in model.parameters())
    found = counting.Counts.of(shape, 1000)
    assert (found.total, found.hidden) == (whole, whole - model.output_weight.numel())
    assert found.kaplan_flops == 6e3 * found.hidden < found.hoffmann_flops == 6e3 * whole < found.flops


@pytest.mark.parametrize(("constants", "known"), [(counting.HOFFMANN, 28 / 62), (counting.BESIROGLU, 0.3658 / 0.7136)])
def test_counting_all_parameters_gives_hoffmanns_exponent(constants: tuple[float, ...], known: float) -> None:
    assert counting.fitted_exponents(constants)[0] == pytest.approx(known, abs=1e-6)  # beta / (alpha + beta)


def test_leaving_embeddings_out_gives_nearly_kaplans_exponent() -> None:
    """The frontier by brute force: the best of many sizes for each budget of 6 · n · D, then a line through these."""
    e, a, b, alpha, beta = counting.HOFFMANN
    n = np.geomspace(50, 1e11, 40_001)
    total = n + counting.OMEGA * n ** (1 / 3)
    budget = np.geomspace(1e12, 1e24, 400)
    best = np.array([n[np.argmin(e + a / total**alpha + b / (c / 6 / n) ** beta)] for c in budget])
    inside = (best > counting.KAPLAN_SIZES[0]) & (best < counting.KAPLAN_SIZES[1])
    assert inside.sum() > 100
    # the brute line weighs places otherwise: it is evenly spaced in ln C, ours in ln N
    brute = float(np.polyfit(np.log(budget[inside]), np.log(best[inside]), 1)[0])
    ours = counting.fitted_exponents()[1]
    assert ours == pytest.approx(brute, abs=0.02)
    assert abs(ours - 0.73) < 0.05
    slope = np.gradient(np.log(best), np.log(budget))
    k = int(np.argmin(np.abs(np.log(best / 1e7))))
    local = counting.local_exponents(np.array([best[k]]))[1][0]
    assert local == pytest.approx(float(slope[k - 5 : k + 6].mean()), abs=0.02)


def test_large_models_do_not_care() -> None:
    whole, hidden = counting.local_exponents(np.array([1e14]))
    assert hidden[0] == pytest.approx(whole[0], abs=1e-3)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_fitted_is_refused() -> None:
    one_size = Points.of([1e4] * 8, np.geomspace(1e5, 1e6, 8), np.linspace(3, 2, 8))
    with pytest.raises(DataError, match="from 1 sizes and 8 numbers of tokens; wanted at least 3"):
        laws.fit_parametric(one_size)
    with pytest.raises(DataError, match="4 runs; this law needs at least 6"):
        laws.fit_parametric(Points.of([1, 2, 3, 4], [1, 2, 3, 4], [4, 3, 2, 1]))
    with pytest.raises(DataError, match=r"at 1 different values; wanted at least 3"):
        laws.fit_power("size", one_size)
    with pytest.raises(DataError, match="0 of 8 budgets"):
        laws.iso_flop(one_size, one_size.flops)
    with pytest.raises(DataError, match="wanted a number above 0"):
        Points.of([1, 2], [1, 2], [math.nan, 1])
    with pytest.raises(DataError, match="not a fitted law"):
        laws.Fit.from_json({"law": "size", "theta": [1], "draws": [], "residuals": []}, "fit.json")
    with pytest.raises(ConfigError, match="wanted a number above 0"):
        counting.Counts.of(ModelConfig(300), 0)
