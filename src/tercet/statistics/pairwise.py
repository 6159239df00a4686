"""Win rates from judgements of pairs: length-controlled rates, and Bradley–Terry ratings of many models.

A judgement is 1 if the first answer wins, 0 if it loses and 1/2 for a tie. Some judges prefer the answer that comes
first. Such a judge compares each pair in both orders, and the mean counts: a win that changes when the two answers swap
places counts as a tie.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.errors import ConfigError, DataError
from tercet.statistics.intervals import LEVEL, Estimate, Reals, Values, _same_length, win_rate

DRAWS = 500
ROUNDS = 100
RIDGE = 0.01  # on the coefficients of the length model: a prior with standard deviation 10
NODES = 11  # quadrature nodes over a prompt's difficulty
PRIOR = 1.0  # ties added to every pair that met, so that a model that never lost has a finite rating


def both_orders(first: Values, second: Values) -> tuple[Reals, float]:
    """Return (judgements [N] of A against B, share of pairs whose winner changed with the order).

    `first` [N] are the judgements with A in first place, `second` [N] those with B in first place; each is 1 if the
    answer in first place wins.
    """
    x, y = _same_length(first, second, "both_orders")
    low, high = min(x.min(), y.min()), max(x.max(), y.max())
    if low < 0 or high > 1:
        raise DataError(
            f"both_orders: found judgements from {low:g} to {high:g}, outside 0 to 1; "
            "wanted 1 for a win, 0 for a loss, 1/2 for a tie"
        )
    return (x + 1 - y) / 2, float(((x > 0.5) == (y > 0.5))[(x != 0.5) & (y != 0.5)].sum() / x.size)


# -- length ------------------------------------------------------------------------------------------------------------


def length_controlled(
    wins: Values, lengths: Values, others: Values, seed: int = 0, draws: int = DRAWS, difficulty: Values | None = None
) -> Estimate:
    """Return the win rate of A if its answers were as long as B's (Dubois et al. 2024), bootstrapped over prompts.

    `wins` [N] are judgements of A against B; `lengths` and `others` [N] are the lengths of A's and B's answers. The
    model is P(win) = σ(θ + φ · tanh(Δ / sd(Δ)) + ψ · γ) with Δ = length − other. The rate is its prediction at Δ = 0,
    the mean over prompts of σ(θ + ψ · γ). γ [N] is the `difficulty` of each prompt, held fixed as in the paper;
    `difficulties` estimates it for three or more models. Without it that term is left out. A ridge keeps the
    coefficients finite. Raises ConfigError for inputs of unequal length.
    """
    w, a = _same_length(wins, lengths, "length_controlled")
    _, b = _same_length(wins, others, "length_controlled")
    _, gamma = _same_length(wins, np.zeros_like(w) if difficulty is None else difficulty, "length_controlled")
    delta = a - b
    rate = _rate(w, delta, gamma)
    if w.size < 2:
        return Estimate(rate, math.nan, math.nan, 1)
    if w.min() == w.max():  # resampling would show no spread, yet equal judgements are not certainty
        plain = win_rate(w, 1 - w)
        return Estimate(rate, plain.low, plain.high, w.size)
    rng = np.random.Generator(np.random.PCG64(seed))
    resampled = []
    for _ in range(draws):
        rows = rng.integers(w.size, size=w.size)
        resampled.append(_rate(w[rows], delta[rows], gamma[rows]))
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(rate, float(low), float(high), w.size)


def difficulties(wins: Reals, deltas: Reals) -> Reals:
    """Return the difficulty γ [P, N] of N prompts for each of P pairs of models, from the judgements of *other* pairs.

    `wins` [P, N] are judgements, `deltas` [P, N] differences of length. Each prompt has one unknown γ ~ N(0, 1), shared
    by all pairs: P(win) = σ(θ_p + φ_p · tanh(Δ / sd(Δ)) + ψ_p · γ) with ψ ~ N(0, 1). This is a two-parameter item
    response model whose items are the pairs, fitted by marginal maximum likelihood (EM over a quadrature; Bock and
    Aitkin 1981). A pair's own judgements are left out of its γ; otherwise γ would explain the judgements by themselves.

    Raises ConfigError for fewer than three pairs: with one pair there are as many γ as judgements, and two pairs give
    only one correlation for their two ψ.
    """
    pairs, prompts = wins.shape
    if pairs < 3 or deltas.shape != wins.shape:
        raise ConfigError(
            f"difficulties: found {wins.shape} judgements and {deltas.shape} differences of length; "
            "wanted equal shapes [pairs, prompts] with three or more pairs (of three models)"
        )
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    prior, ridge = np.log(weights / weights.sum()), np.array([RIDGE, RIDGE, 1.0])
    designs = [np.repeat(_design(d, np.zeros(prompts)), NODES, axis=0) for d in deltas]
    for x in designs:
        x[:, 2] = np.tile(nodes, prompts)
    coefs = np.zeros((pairs, 3))
    # The gradient is 0 at ψ = 0, so start at the direction in which the judgements vary most.
    coefs[:, 2] = np.linalg.svd(wins - wins.mean(1, keepdims=True), full_matrices=False)[0][:, 0] * math.sqrt(pairs)
    for _ in range(ROUNDS):
        logits = np.stack([(x @ c).reshape(prompts, NODES) for x, c in zip(designs, coefs)])
        likely = wins[:, :, None] * logits - np.logaddexp(0, logits)
        share = _posterior(likely.sum(0) + prior).ravel()
        fits = (_logistic(x, np.repeat(w, NODES), ridge, share, c) for x, w, c in zip(designs, wins, coefs))
        new = np.stack(list(fits))
        done = float(np.abs(new - coefs).max()) < 1e-3
        coefs = new
        if done:
            break
    return np.stack([_posterior(likely.sum(0) - own + prior) @ nodes for own in likely])


def _posterior(logs: Reals) -> Reals:
    """Return the softmax over the nodes: posterior weights [N, Q] from unnormalised log weights [N, Q]."""
    weights = np.exp(logs - logs.max(1, keepdims=True))
    normalised: Reals = weights / weights.sum(1, keepdims=True)
    return normalised


def _rate(wins: Reals, delta: Reals, difficulty: Reals) -> float:
    coef = _logistic(_design(delta, difficulty), wins, np.full(3, RIDGE))
    return float((1 / (1 + np.exp(-coef[0] - coef[2] * difficulty))).mean())


def _design(delta: Reals, difficulty: Reals) -> Reals:
    """Return the columns [N, 3] of the length model: 1, tanh(Δ / sd(Δ)), γ."""
    spread = float(delta.std())
    return np.stack(
        [np.ones_like(delta), np.tanh(delta / spread) if spread > 0 else np.zeros_like(delta), difficulty], 1
    )


def _logistic(x: Reals, y: Reals, ridge: Reals, weights: Reals | None = None, start: Reals | None = None) -> Reals:
    """Return the coefficients of the ridge logistic regression, by Newton's method."""
    coef = np.zeros(x.shape[1]) if start is None else start.copy()
    weighted = x if weights is None else x * weights[:, None]
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-(x @ coef)))
        gradient = weighted.T @ (y - p) - ridge * coef
        step = np.linalg.solve((weighted * (p * (1 - p))[:, None]).T @ x + np.diag(ridge), gradient)
        coef += np.clip(step, -2, 2)  # a long step from a flat region would overshoot
        if float(np.abs(step).max()) < 1e-10:
            break
    return coef


# -- Bradley–Terry ratings ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Game:
    """One judged pair: two models by number, `score` 1 if `a` wins, and the prompt, the unit of the bootstrap."""

    a: int
    b: int
    score: float
    prompt: int


def bradley_terry(wins: NDArray[np.float64], prior: float = PRIOR) -> Reals:
    """Return log ratings [M] with mean 0 from wins [M, M]: wins[i, j] counts how often i beat j, ties as one half.

    The model is Bradley and Terry's (1952), fitted by Hunter's MM algorithm (2004): p_i ← W_i / Σ_j n_ij / (p_i + p_j),
    which increases the likelihood in every round. `prior` is the number of ties added to each pair that met. Raises
    ConfigError if the ratings are not finite: without a prior if some models never lost to the rest (Ford 1957), and
    always if some models never met the rest.
    """
    w = np.asarray(wins, dtype=np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or len(w) < 2 or (w < 0).any() or np.diag(w).any():
        raise ConfigError(
            f"bradley_terry: found a table of shape {w.shape}; wanted a square table of wins, none negative, of two or "
            "more models, with zeros on the diagonal"
        )
    met = (w + w.T) > 0
    w = w + prior / 2 * met
    if not _connected(w):
        raise ConfigError(
            "bradley_terry: some models never won against the others, or never met them, so that their ratings are not "
            "finite; compare every model with the rest, or give a prior above 0"
        )
    logs: Reals = _mm(w[None], 1e-12)[0]
    return logs


def _mm(wins: Reals, within: float) -> Reals:
    """Return log ratings [D, M] with mean 0 of D tables [D, M, M]; stops when none changes by `within` or more."""
    games, total = wins + wins.transpose(0, 2, 1), wins.sum(2)
    p = np.ones(total.shape)
    for _ in range(10_000):
        new = total / (games / (p[:, :, None] + p[:, None, :])).sum(2)
        new /= np.exp(np.log(new).mean(1, keepdims=True))
        done = float(np.abs(np.log(new / p)).max()) < within
        p = new
        if done:
            break
    logs: Reals = np.log(p)
    return logs


def _connected(w: Reals) -> bool:
    """Return whether a chain of wins leads from every model to every other."""
    reach = (w > 0) | np.eye(len(w), dtype=bool)
    for _ in range(len(w)):
        reach = reach @ reach
    return bool(reach.all())


def bradley_terry_ratings(games: Sequence[Game], models: int, seed: int = 0, draws: int = DRAWS) -> list[Estimate]:
    """Return the log rating of every model, bootstrapped over prompts; σ(difference) is the probability of a win."""
    prompts = sorted({g.prompt for g in games})
    if not prompts:
        raise ConfigError("bradley_terry_ratings: no games; wanted at least one judged pair")
    tables = np.zeros((len(prompts), models, models))
    index = {p: n for n, p in enumerate(prompts)}
    for g in games:
        tables[index[g.prompt], g.a, g.b] += g.score
        tables[index[g.prompt], g.b, g.a] += 1 - g.score
    value = bradley_terry(tables.sum(0))
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = np.stack([tables[rng.integers(len(prompts), size=len(prompts))].sum(0) for _ in range(draws)])
    met = tables.sum(0) + tables.sum(0).T > 0
    resampled = _mm(drawn + PRIOR / 2 * met, 1e-7)
    low, high = np.quantile(resampled, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return [Estimate(float(v), float(a), float(b), len(prompts)) for v, a, b in zip(value, low, high)]
