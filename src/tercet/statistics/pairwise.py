"""Win rates: from judgements of pairs to a rate that length cannot buy, and to strengths of many models.

A judgement is 1 where the first answer wins, 0 where it loses, 1/2 for a tie. A judge that prefers what stands first is
asked in both orders, and the mean of the two counts: who wins only by standing first has a tie.
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
NODES = 11  # of the quadrature over an instruction's difficulty
PRIOR = 1.0  # ties added to every pair that met, so that who never lost has a finite strength


def both_orders(first: Values, second: Values) -> tuple[Reals, float]:
    """(judgements [N] of A against B, share of pairs whose winner changed with the order).

    `first` [N] are judgements with A standing first, `second` [N] those with B first, each 1 where what stands first wins.
    """
    x, y = _same_length(first, second, "both_orders")
    if min(x.min(), y.min()) < 0 or max(x.max(), y.max()) > 1:
        raise DataError("both_orders: judgements outside 0 to 1; wanted 1 for a win, 0 for a loss, 1/2 for a tie")
    return (x + 1 - y) / 2, float(((x > 0.5) == (y > 0.5))[(x != 0.5) & (y != 0.5)].sum() / x.size)


# -- length ----------------------------------------------------------------------------------------------------------------


def length_controlled(
    wins: Values, lengths: Values, others: Values, seed: int = 0, draws: int = DRAWS, difficulty: Values | None = None
) -> Estimate:
    """The win rate that A would have had if its answers were as long as B's (Dubois et al. 2024), bootstrap over prompts.

    `wins` [N] are judgements of A against B, `lengths` and `others` [N] the answers' lengths. The model is
    P(win) = σ(θ + φ · tanh(Δ / sd(Δ)) + ψ · γ), Δ = length − other; the rate is the mean over prompts of σ(θ + ψ · γ), the
    prediction at Δ = 0. γ [N] is the `difficulty` of each instruction, held fixed as in their paper: `difficulties` has
    it from three models on; without it the term is left out. A ridge keeps all finite. Raises ConfigError for unequal lengths.
    """
    w, a = _same_length(wins, lengths, "length_controlled")
    _, b = _same_length(wins, others, "length_controlled")
    _, gamma = _same_length(wins, np.zeros_like(w) if difficulty is None else difficulty, "length_controlled")
    delta = a - b
    rate = _rate(w, delta, gamma)
    if w.size < 2:
        return Estimate(rate, math.nan, math.nan, 1)
    if w.min() == w.max():  # drawing again would show no spread, and all ties are not certainty
        plain = win_rate(w, 1 - w)
        return Estimate(rate, plain.low, plain.high, w.size)
    rng = np.random.Generator(np.random.PCG64(seed))
    found = []
    for _ in range(draws):
        rows = rng.integers(w.size, size=w.size)
        found.append(_rate(w[rows], delta[rows], gamma[rows]))
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
    return Estimate(rate, float(low), float(high), w.size)


def difficulties(wins: Reals, deltas: Reals) -> Reals:
    """γ [P, N] for each of P pairs of models on the same N prompts, from the judgements of the *other* pairs.

    `wins` [P, N] are judgements, `deltas` [P, N] differences of length. All pairs share one unknown γ ~ N(0, 1) of each
    prompt, P(win) = σ(θ_p + φ_p · tanh(Δ / sd(Δ)) + ψ_p · γ), ψ ~ N(0, 1): a two-parameter item response model whose items are
    the pairs, by marginal maximum likelihood (EM over a quadrature; Bock and Aitkin 1981). A pair's own judgements
    are left out of its γ, which else would explain them by themselves. Raises ConfigError for fewer than three pairs: γ
    of one pair is as many unknowns as judgements, and two pairs have one correlation for their two ψ.
    """
    pairs, prompts = wins.shape
    if pairs < 3 or deltas.shape != wins.shape:
        raise ConfigError(f"difficulties: {pairs} pairs; wanted three or more (of three models) on the same prompts")
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    prior, ridge = np.log(weights / weights.sum()), np.array([RIDGE, RIDGE, 1.0])
    designs = [np.repeat(_design(d, np.zeros(prompts)), NODES, axis=0) for d in deltas]
    for x in designs:
        x[:, 2] = np.tile(nodes, prompts)
    coefs = np.zeros((pairs, 3))
    # ψ = 0 is a flat place: begin at the direction in which the judgements vary most
    coefs[:, 2] = np.linalg.svd(wins - wins.mean(1, keepdims=True), full_matrices=False)[0][:, 0] * math.sqrt(pairs)
    for _ in range(ROUNDS):
        logits = np.stack([(x @ c).reshape(prompts, NODES) for x, c in zip(designs, coefs)])
        likely = wins[:, :, None] * logits - np.logaddexp(0, logits)
        share = _posterior(likely.sum(0) + prior)
        new = np.stack([
            _logistic(x, np.repeat(w, NODES), ridge, share.ravel(), c) for x, w, c in zip(designs, wins, coefs)
        ])  # fmt: skip
        done = float(np.abs(new - coefs).max()) < 1e-3
        coefs = new
        if done:
            break
    return np.stack([_posterior(likely.sum(0) - own + prior) @ nodes for own in likely])


def _posterior(logs: Reals) -> Reals:
    """Shares [N, Q] that sum to 1 over the nodes, from logs of what they are proportional to."""
    shares = np.exp(logs - logs.max(1, keepdims=True))
    whole: Reals = shares / shares.sum(1, keepdims=True)
    return whole


def _rate(wins: Reals, delta: Reals, difficulty: Reals) -> float:
    coef = _logistic(_design(delta, difficulty), wins, np.full(3, RIDGE))
    return float((1 / (1 + np.exp(-coef[0] - coef[2] * difficulty))).mean())


def _design(delta: Reals, difficulty: Reals) -> Reals:
    """Columns [N, 3] of the length model: 1, tanh(Δ / sd(Δ)), γ."""
    spread = float(delta.std())
    return np.stack(
        [np.ones_like(delta), np.tanh(delta / spread) if spread > 0 else np.zeros_like(delta), difficulty], 1
    )


def _logistic(x: Reals, y: Reals, ridge: Reals, weights: Reals | None = None, start: Reals | None = None) -> Reals:
    """Coefficients of the ridge logistic regression, by Newton's method."""
    coef = np.zeros(x.shape[1]) if start is None else start.copy()
    weighted = x if weights is None else x * weights[:, None]
    for _ in range(ROUNDS):
        p = 1 / (1 + np.exp(-(x @ coef)))
        gradient = weighted.T @ (y - p) - ridge * coef
        step = np.linalg.solve((weighted * (p * (1 - p))[:, None]).T @ x + np.diag(ridge), gradient)
        coef += np.clip(step, -2, 2)  # a long step from a flat place would overshoot
        if float(np.abs(step).max()) < 1e-10:
            break
    return coef


# -- Bradley and Terry --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Game:
    """One judged pair: models by number, `score` 1 where `a` wins, and the prompt, which the bootstrap draws."""

    a: int
    b: int
    score: float
    prompt: int


def bradley_terry(wins: NDArray[np.float64], prior: float = PRIOR) -> Reals:
    """Log strengths [M] with mean 0 from wins[i, j], how often i beat j, ties as half (Bradley and Terry 1952).

    By Hunter's MM algorithm (2004): p_i ← W_i / Σ_j n_ij / (p_i + p_j), which rises in likelihood at every round. `prior`
    adds so many ties to each pair that met. Raises ConfigError where, without a prior, the strengths are not finite:
    models of which some never lost to the rest (Ford 1957), or that never met.
    """
    w = np.asarray(wins, dtype=np.float64)
    if w.ndim != 2 or w.shape[0] != w.shape[1] or len(w) < 2 or (w < 0).any() or np.diag(w).any():
        raise ConfigError("bradley_terry: wanted a square table of wins of two models or more, with an empty diagonal")
    met = (w + w.T) > 0
    w = w + prior / 2 * met
    if not _connected(w):
        raise ConfigError(
            "bradley_terry: some models never won against the others, or never met them, so that their strengths are not finite; "
            "compare every model with the rest, or give a prior above 0"
        )
    logs: Reals = _mm(w[None], 1e-12)[0]
    return logs


def _mm(wins: Reals, within: float) -> Reals:
    """Log strengths [D, M] with mean 0 of D tables [D, M, M] at once; ends when none moves by more than `within`."""
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
    """Whether from every model a chain of wins leads to every other."""
    reach = (w > 0) | np.eye(len(w), dtype=bool)
    for _ in range(len(w)):
        reach = reach @ reach
    return bool(reach.all())


def bradley_terry_ratings(games: Sequence[Game], models: int, seed: int = 0, draws: int = DRAWS) -> list[Estimate]:
    """Log strength of every model with its interval from drawing prompts again; σ(difference) is the chance to win."""
    prompts = sorted({g.prompt for g in games})
    if not prompts:
        raise ConfigError("strengths: no games; wanted at least one judged pair")
    tables = np.zeros((len(prompts), models, models))
    place = {p: n for n, p in enumerate(prompts)}
    for g in games:
        tables[place[g.prompt], g.a, g.b] += g.score
        tables[place[g.prompt], g.b, g.a] += 1 - g.score
    value = bradley_terry(tables.sum(0))
    rng = np.random.Generator(np.random.PCG64(seed))
    drawn = np.stack([tables[rng.integers(len(prompts), size=len(prompts))].sum(0) for _ in range(draws)])
    met = tables.sum(0) + tables.sum(0).T > 0
    found = _mm(drawn + PRIOR / 2 * met, 1e-7)
    low, high = np.quantile(found, ((1 - LEVEL) / 2, (1 + LEVEL) / 2), axis=0)
    return [Estimate(float(v), float(a), float(b), len(prompts)) for v, a, b in zip(value, low, high)]
