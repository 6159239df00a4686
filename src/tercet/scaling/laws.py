"""Scaling laws: how loss falls with size N, tokens D and FLOPs C, fitted to finished runs, with intervals.

    name        law                                         source
    size        L(N) = (Nc / N)^aN                          Kaplan et al. 2020, eq. 1.1
    tokens      L(D) = (Dc / D)^aD                          Kaplan et al. 2020, eq. 1.2
    compute     L(C) = (Cc / C)^aC                          Kaplan et al. 2020, eq. 1.3
    kaplan      L(N, D) = [(Nc / N)^(aN / aD) + Dc / D]^aD  Kaplan et al. 2020, eq. 1.5
    parametric  L(N, D) = E + A / N^alpha + B / D^beta      Hoffmann et al. 2022, approach 3
    simple      L(N, D) = A / N^a + B / D^a                 the same with E = 0 and one exponent, for short ladders
    iso-FLOP    N* = k C^a, the minima of parabolas in ln N Hoffmann et al. 2022, approach 2

Everything is fitted to ln L. The laws in two variables are fitted from many starts at once by the Levenberg–Marquardt
method, the parametric one with Hoffmann's Huber loss (delta = 1e-3) by iterative reweighting. Intervals are percentiles
of a bootstrap over runs, widened for few runs (`expanded_interval`), at 95 % by default. They describe the noise of the
runs, not whether the law holds beyond them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.errors import ConfigError, DataError
from tercet.statistics.intervals import LEVEL, Estimate, t_quantile

Reals = NDArray[np.float64]
# (theta [M, p], ln N [P], ln D [P]) → ln L [M, P] and its derivatives [M, P, p]
Curve = Callable[[Reals, Reals, Reals], tuple[Reals, Reals]]
Data = tuple[Reals, Reals, Reals]  # x, y and ln L of each run, each [P]
Bounds = tuple[Reals, Reals]  # least and greatest theta, each [p]

HUBER = 1e-3  # Hoffmann et al. 2022, section 3.3
DRAWS = 200
BLOCK = 400  # problems to minimise at a time


@dataclass(frozen=True)
class Points:
    """Finished runs: parameters N, training tokens D, training FLOPs C, held-out loss L; each [P] and above 0."""

    size: Reals
    tokens: Reals
    flops: Reals
    loss: Reals

    def __post_init__(self) -> None:
        shapes = {x.shape for x in (self.size, self.tokens, self.flops, self.loss)}
        if len(shapes) != 1 or len(self.size.shape) != 1:
            raise DataError(f"points of a scaling law have the shapes {shapes}; wanted four lists of one length")
        for name in ("size", "tokens", "flops", "loss"):
            x = getattr(self, name)
            if not (np.isfinite(x) & (x > 0)).all():
                raise DataError(f"a point of a scaling law has the {name} {x[~(x > 0)][:1]}; wanted a number above 0")

    def __len__(self) -> int:
        return len(self.size)

    def take(self, index: Any) -> Points:
        """Return some of the points, by indices or a mask."""
        return Points(self.size[index], self.tokens[index], self.flops[index], self.loss[index])

    @classmethod
    def of(cls, size: Any, tokens: Any, loss: Any, flops: Any = None) -> Points:
        """Make points from array-likes; without `flops`, C = 6 N D."""
        n, d = np.asarray(size, np.float64), np.asarray(tokens, np.float64)
        return cls(n, d, 6 * n * d if flops is None else np.asarray(flops, np.float64), np.asarray(loss, np.float64))


# -- the curves ---------------------------------------------------------------------------------------------------


def parametric(theta: Reals, x: Reals, y: Reals) -> tuple[Reals, Reals]:
    """Return ln(e^E' + e^(a − alpha·x) + e^(b − beta·y)), the log-sum-exp of Hoffmann et al., eq. 3.

    theta = (E', a, b, alpha, beta).
    """
    e, a, b, alpha, beta = (theta[:, i, None] for i in range(5))
    terms = np.stack(np.broadcast_arrays(e, a - alpha * x, b - beta * y))  # [3, M, P]
    top = terms.max(0)
    parts = np.exp(terms - top)
    total = parts.sum(0)
    we, wa, wb = parts / total
    return top + np.log(total), np.stack([we, wa, wb, -wa * x, -wb * y], axis=-1)


def kaplan(theta: Reals, x: Reals, y: Reals) -> tuple[Reals, Reals]:
    """Return aD · ln(e^(u − p·x) + e^(v − y)); theta = (u, v, p, aD), p = aN / aD, u = p · ln Nc, v = ln Dc."""
    u, v, p, power = theta.T
    both, d = parametric(np.stack([np.full_like(p, -np.inf), u, v, p, np.ones_like(p)], axis=1), x, y)
    return power[:, None] * both, np.concatenate([power[:, None, None] * d[..., 1:4], both[..., None]], axis=-1)


def simple(theta: Reals, x: Reals, y: Reals) -> tuple[Reals, Reals]:
    """Return ln(e^(a − p·x) + e^(b − p·y)), theta = (a, b, p): the parametric law with E = 0 and alpha = beta."""
    a, b, p = theta.T
    value, d = parametric(np.stack([np.full_like(p, -np.inf), a, b, p, p], axis=1), x, y)
    return value, np.stack([d[..., 1], d[..., 2], d[..., 3] + d[..., 4]], axis=-1)


def _huber(r: Reals, delta: float) -> Reals:
    size = np.abs(r)
    return np.where(size <= delta, r * r / 2, delta * (size - delta / 2))


def minimise(
    curve: Curve, data: Data, weights: Reals, starts: Reals, bounds: Bounds, delta: float, steps: int = 400
) -> tuple[Reals, Reals]:
    """Minimise Σ_p weights · Huber(curve − ln L) from M starts at once; return theta [M, p] and the sums [M].

    `weights` is [M, P]. The method is Levenberg–Marquardt, where a residual r beyond `delta` has the weight delta / |r|
    (Huber's weights: each step minimises an upper bound of the loss). A step is taken only if it lowers the loss.
    """
    x, y, target = data
    low, high = bounds
    theta = np.clip(starts, low, high)
    value, jacobian = curve(theta, x, y)
    residual = value - target
    loss = (weights * _huber(residual, delta)).sum(1)
    damping, still, alive = np.full(len(theta), 1e-2), np.zeros(len(theta), int), np.arange(len(theta))
    for _ in range(steps):
        r, j = residual[alive], jacobian[alive]
        w = weights[alive] * np.minimum(1.0, delta / np.maximum(np.abs(r), 1e-300))
        weighted = (j * w[..., None]).transpose(0, 2, 1)
        hessian, gradient = weighted @ j, (weighted @ r[..., None])[..., 0]
        # a parameter at its bound whose step would leave the bounds stays fixed
        held = ((theta[alive] <= low) & (gradient > 0)) | ((theta[alive] >= high) & (gradient < 0))
        hessian[held[:, :, None] | held[:, None, :]] = 0.0
        gradient[held] = 0.0
        i = np.arange(theta.shape[1])
        diagonal = hessian[:, i, i]
        hessian[:, i, i] += damping[alive, None] * diagonal + 1e-12 * (1 + diagonal.max(1, keepdims=True)) + held
        new = np.clip(theta[alive] - np.linalg.solve(hessian, gradient[..., None])[..., 0], low, high)
        value, j = curve(new, x, y)
        r = value - target
        now = (weights[alive] * _huber(r, delta)).sum(1)
        better = now < loss[alive]
        slow = (~better) | (loss[alive] - now < 1e-9 * loss[alive])
        still[alive] = np.where(slow, still[alive] + 1, 0)
        damping[alive] = np.clip(np.where(better, damping[alive] / 4, damping[alive] * 5), 1e-9, 1e9)
        moved = alive[better]
        theta[moved], residual[moved], jacobian[moved], loss[moved] = new[better], r[better], j[better], now[better]
        alive = alive[still[alive] < 12]
        if not len(alive):
            break
    return theta, loss


def _in_blocks(
    curve: Curve, data: Data, weights: Reals, starts: Reals, bounds: Bounds, delta: float
) -> tuple[Reals, Reals]:
    parts = [
        minimise(curve, data, weights[a : a + BLOCK], starts[a : a + BLOCK], bounds, delta)
        for a in range(0, len(starts), BLOCK)
    ]
    return np.concatenate([t for t, _ in parts]), np.concatenate([v for _, v in parts])


# -- fitted laws --------------------------------------------------------------------------------------------------

LAWS: dict[str, tuple[str, tuple[str, ...]]] = {  # name: (equation, parameters)
    "size": ("L(N) = (Nc / N)^aN", ("Nc", "aN")),
    "tokens": ("L(D) = (Dc / D)^aD", ("Dc", "aD")),
    "compute": ("L(C) = (Cc / C)^aC", ("Cc", "aC")),
    "kaplan": ("L(N, D) = [(Nc / N)^(aN / aD) + Dc / D]^aD", ("Nc", "Dc", "aN", "aD")),
    "parametric": ("L(N, D) = E + A / N^alpha + B / D^beta", ("E", "A", "B", "alpha", "beta")),
    "simple": ("L(N, D) = A / N^a + B / D^a", ("A", "B", "a")),
}
SCALES = {"Nc", "Dc", "Cc", "E", "A", "B"}  # stored as logarithms, because they span many powers of ten


def expanded_interval(value: float, draws: Reals, level: float, free: int) -> tuple[float, float]:
    """Return the percentile interval of draws [R], widened around `value` by t / z for `free` degrees of freedom.

    With `near_fit` this is the expanded percentile interval of Hesterberg 2015 ("What teachers should know about the
    bootstrap").
    """
    wider = t_quantile(max(free, 1), level) / NormalDist().inv_cdf((1 + level) / 2)
    low, high = np.quantile(draws, ((1 - level) / 2, (1 + level) / 2))
    return value + wider * min(float(low) - value, 0.0), value + wider * max(float(high) - value, 0.0)


def near_fit(runs: int, parameters: int) -> float:
    """Return √(P / (P − p)), which corrects residuals: a fit of p parameters is closer to its P runs than the truth."""
    return math.sqrt(runs / max(runs - parameters, 1))


def _log_loss(law: str, theta: Reals, x: Reals, y: Reals) -> Reals:
    """Return ln L [M, P] for each theta [M, p] at x = ln N (for `compute`, ln C) and y = ln D, each [P]."""
    if law == "parametric":
        return parametric(theta, x, y)[0]
    if law == "simple":
        return simple(theta, x, y)[0]
    if law == "kaplan":
        nc, dc, an, ad = theta.T
        return kaplan(np.stack([an / ad * nc, dc, an / ad, ad], axis=1), x, y)[0]
    return theta[:, 1, None] * (theta[:, 0, None] - (y if law == "tokens" else x))


@dataclass(frozen=True)
class Fit:
    """A fitted law: theta [p] (scales as logarithms), theta of each bootstrap draw [R, p], residuals of ln L [P]."""

    law: str
    theta: Reals
    draws: Reals
    residuals: Reals

    @classmethod
    def of(cls, law: str, theta: Reals, points: Points) -> Fit:
        """Make a fit from theta [1 + R, p]: first that of all runs, then those of the draws."""
        x = np.log(points.flops if law == "compute" else points.size)
        fitted = _log_loss(law, theta[:1], x, np.log(points.tokens))[0]
        return cls(law, theta[0], theta[1:], np.log(points.loss) - fitted)

    def parameters(self, level: float = LEVEL) -> dict[str, Estimate]:
        """Return each parameter of the equation with its interval; n is the number of runs."""
        out = {}
        for i, name in enumerate(LAWS[self.law][1]):
            ends = self.interval(float(self.theta[i]), self.draws[:, i], level)
            value, low, high = (math.exp(min(v, 700.0)) if name in SCALES else float(v) for v in (self.theta[i], *ends))
            out[name] = Estimate(value, low, high, len(self.residuals))
        return out

    def log_loss(self, size: Any, tokens: Any, theta: Reals | None = None) -> Reals:
        """Return ln L at points (N, D), [P], or with `theta` [M, p] for each theta, [M, P].

        Laws in one variable use only that variable.
        """
        x, y = (np.log(np.atleast_1d(np.asarray(v, np.float64))) for v in (size, tokens))
        out = _log_loss(self.law, self.theta[None] if theta is None else theta, x, y)
        return out[0] if theta is None else out

    def loss(self, size: Any, tokens: Any) -> Reals:
        """Return the law's loss at points (N, D), [P]."""
        return np.exp(self.log_loss(size, tokens))

    def around(self, value: float, draws: Reals) -> Reals:
        """Spread draws [R] around `value` so that they are as far from it as the truth may be (`near_fit`)."""
        return value + (draws - value) * near_fit(len(self.residuals), len(self.theta))

    def interval(self, value: float, draws: Reals, level: float) -> tuple[float, float]:
        """Return the interval of a quantity with the fitted `value` and the bootstrap `draws` [R]."""
        return expanded_interval(value, self.around(value, draws), level, len(self.residuals) - len(self.theta))

    def runs(self, size: float, tokens: float) -> tuple[float, Reals]:
        """Return the predicted ln L of a new run, and its draws [R · P]: every draw of the fit plus every residual."""
        value = float(self.log_loss(size, tokens)[0])
        scatter = self.around(0.0, self.residuals)
        return value, np.add.outer(self.around(value, self.log_loss(size, tokens, self.draws)[:, 0]), scatter).ravel()

    def predict(self, size: float, tokens: float, level: float = 0.9) -> Estimate:
        """Predict the loss of a new run by this law alone."""
        return forecast([self], size, tokens, level)

    def to_json(self) -> dict[str, Any]:
        """Return the fit for fit.json, with all that is needed to predict."""
        return {
            "law": self.law,
            "equation": LAWS[self.law][0],
            "parameters": {name: e.to_json() for name, e in self.parameters().items()},
            "theta": [float(v) for v in self.theta],
            "draws": [[float(f"{v:.7g}") for v in row] for row in self.draws],
            "residuals": [float(f"{v:.5g}") for v in self.residuals],
        }

    @classmethod
    def from_json(cls, value: Any, where: str) -> Fit:
        """Restore the result of `to_json`. Raises DataError if it is something else."""
        try:
            law = value["law"]
            theta, draws, residuals = (np.array(value[k], np.float64) for k in ("theta", "draws", "residuals"))
            count = len(LAWS[law][1])
            good = theta.shape == (count,) and draws.ndim == 2 and draws.shape[1] == count and residuals.ndim == 1
        except (KeyError, TypeError, ValueError):
            good = False
        if not good or not all(np.isfinite(v).all() and v.size for v in (theta, draws, residuals)):
            raise DataError(f"{where}: not a fitted law; wanted what `tercet scaling fit` writes into fit.json")
        return cls(law, theta, draws, residuals)


def resamples(count: int, draws: int, seed: int, distinct: int) -> Reals:
    """Return how often each of `count` runs occurs in each of `draws` bootstrap resamplings, [R, P].

    Each resampling has at least `distinct` different runs. Raises DataError if there are fewer runs than that.
    """
    if count < distinct:
        raise DataError(f"{count} runs; this law needs at least {distinct}: make more with `tercet scaling run`")
    rng = np.random.Generator(np.random.PCG64(seed))
    rows: list[Reals] = []
    while len(rows) < draws:
        row = np.bincount(rng.integers(count, size=count), minlength=count).astype(np.float64)
        if (row > 0).sum() >= distinct or count < distinct + 2:
            rows.append(row)
    return np.stack(rows) if rows else np.zeros((0, count))


def forecast(fits: Sequence[Fit], size: float, tokens: float, level: float = 0.9) -> Estimate:
    """Predict the loss of a new run by the geometric mean of several laws, with an interval from the draws of all.

    Laws that fit a ladder equally well can disagree at larger sizes. Their mean is right more often than the law that
    happens to fit best (Bates and Granger 1969, "The combination of forecasts"), and the interval covers all of them.
    """
    predictions = [fit.runs(size, tokens) for fit in fits]
    value = sum(v for v, _ in predictions) / len(predictions)
    free = min(len(fit.residuals) - len(fit.theta) for fit in fits)
    low, high = expanded_interval(value, np.concatenate([draws for _, draws in predictions]), level, free)
    return Estimate(math.exp(value), math.exp(low), math.exp(high), len(fits[0].residuals))


# -- the fits -----------------------------------------------------------------------------------------------------


def fit_power(law: str, points: Points, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit a pure power law in one variable ("size", "tokens" or "compute") by least squares of ln L on its logarithm.

    `points` should be only those that the law describes: `frontier` selects them. Raises DataError for fewer than 3
    different values of the variable.
    """
    x = np.log({"size": points.size, "tokens": points.tokens, "compute": points.flops}[law])
    y = np.log(points.loss)
    if len(np.unique(x)) < 3:
        raise DataError(
            f"the law {LAWS[law][0]} has runs at {len(np.unique(x))} different values; wanted at least 3: "
            "make more runs with `tercet scaling run`"
        )
    weights = np.concatenate([np.ones((1, len(x))), resamples(len(x), draws, seed, 3)])
    total = weights.sum(1)
    mx, my = weights @ x / total, weights @ y / total
    dx = x - mx[:, None]
    spread = (weights * dx * dx).sum(1)
    # a resampling with a single value of the variable has no slope: it is left out
    fine = spread > 1e-9 * float(((x - x.mean()) ** 2).sum())
    slope = (weights * dx * (y - my[:, None])).sum(1)[fine] / spread[fine]
    scale = mx[fine] + my[fine] / np.where(slope == 0, -1e-300, -slope)  # ln L = alpha · (ln Nc − ln N)
    return Fit.of(law, np.stack([scale, -slope], axis=1), points)


def frontier(points: Points, by: str) -> Points:
    """Return the runs that are better than every run with at most as much `by` ("size", "tokens" or "flops").

    L(N), L(D) and L(C) describe these runs. Kaplan's L(N) and L(D) are limits for unlimited data or size; here the best
    runs of each size stand for them, so the exponents are too small if the largest sizes had too few tokens.
    """
    key = getattr(points, by)
    order = np.lexsort((points.loss, key))
    best = np.minimum.accumulate(points.loss[order])
    return points.take(order[np.append(True, best[1:] < best[:-1])])


def _minima(
    curve: Curve, points: Points, starts: Reals, bounds: Bounds, delta: float, draws: int, seed: int
) -> tuple[Reals, Reals]:
    """Fit all runs from every start, then every resampling from the best three minima; return theta [1 + R, p].

    theta belongs to ln N and ln D minus their means, which are returned too, so that constants and exponents hardly
    depend on each other.
    """
    x, y = np.log(points.size), np.log(points.tokens)
    if len(np.unique(x)) < 3 or len(np.unique(y)) < 3:
        raise DataError(
            f"a law of size and tokens from {len(np.unique(x))} sizes and {len(np.unique(y))} numbers of tokens; "
            "wanted at least 3 of each"
        )
    data, count = (x - x.mean(), y - y.mean(), np.log(points.loss)), starts.shape[1]
    weights = resamples(len(points), draws, seed, count + 1)
    minima, loss = _in_blocks(curve, data, np.ones((len(starts), len(points))), starts, bounds, delta)
    order = np.argsort(loss)
    best = minima[order[0]]
    others = [i for i in order if np.abs(minima[i] - best).max() > 0.1][:2]
    seeds = np.stack([best, *(minima[i] for i in others)])
    many, losses = _in_blocks(
        curve, data, np.repeat(weights, len(seeds), axis=0), np.tile(seeds, (draws, 1)), bounds, delta
    )
    pick = losses.reshape(draws, len(seeds)).argmin(1)
    resampled = many.reshape(draws, len(seeds), count)[np.arange(draws), pick]
    return np.concatenate([best[None], resampled]), np.array([x.mean(), y.mean()])


def fit_parametric(points: Points, draws: int = DRAWS, seed: int = 0, delta: float = HUBER) -> Fit:
    """Fit E + A / N^alpha + B / D^beta by Hoffmann's approach 3.

    Exponents are bounded to 0 to 3, and E to a thousandth of the lowest loss or more: a resampling that does not
    determine them ends at a bound. Raises DataError for fewer than 6 runs, 3 sizes or 3 numbers of tokens.
    """
    least, most = float(np.log(points.loss.min())), float(np.log(points.loss.max()))
    shares, powers = (0.1, 0.4, 0.7, 0.95), (0.15, 0.4, 0.9)  # E starts as a share of the lowest loss
    starts = np.array(
        [
            (least + math.log(e), *(most + math.log((1 - e) * part) for part in (s, 1 - s)), alpha, beta)
            for e, s, alpha, beta in product(shares, (0.3, 0.7), powers, powers)
        ]
    )
    bounds = np.array([least - 7, least - 12, least - 12, 0, 0]), np.array([least, most + 5, most + 5, 3, 3])
    theta, middle = _minima(parametric, points, starts, bounds, delta, draws, seed)
    theta[:, 1:3] += theta[:, 3:] * middle
    return Fit.of("parametric", theta, points)


def fit_simple(points: Points, draws: int = DRAWS, seed: int = 0, delta: float = HUBER) -> Fit:
    """Fit A / N^a + B / D^a with the loss of approach 3.

    A ladder over one or two powers of ten in FLOPs hardly distinguishes a floor E from a smaller exponent, or two
    exponents from each other. A fit of all five parameters then extrapolates noise. Raises DataError for fewer than 4
    runs, 3 sizes or 3 numbers of tokens.
    """
    mean = float(np.log(points.loss).mean())
    grid = product((0.1, 0.3, 0.5, 0.7, 0.9), (0.05, 0.15, 0.3, 0.6))
    starts = np.array([(mean + math.log(s), mean + math.log(1 - s), p) for s, p in grid])
    bounds = np.array([-1e3, -1e3, 0]), np.array([1e3, 1e3, 3])
    theta, middle = _minima(simple, points, starts, bounds, delta, draws, seed)
    theta[:, :2] += theta[:, 2:] * middle
    return Fit.of("simple", theta, points)


def fit_kaplan(points: Points, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit Kaplan's L(N, D) by least squares of ln L.

    Raises DataError for fewer than 5 runs, 3 sizes or 3 numbers of tokens.
    """
    mean = float(np.log(points.loss).mean())
    grid = product((0.05, 0.1, 0.2, 0.4, 0.8), (0.3, 0.8, 2.0), (0.3, 0.7))
    starts = np.array([(mean / power + math.log(s), mean / power + math.log(1 - s), p, power) for power, p, s in grid])
    bounds = np.array([-1e3, -1e3, 0, 1e-3]), np.array([1e3, 1e3, 50, 5])
    theta, middle = _minima(kaplan, points, starts, bounds, math.inf, draws, seed)
    u, v, p, power = theta.T
    theta = np.stack([(u + p * middle[0]) / np.maximum(p, 1e-9), v + middle[1], p * power, power], axis=1)
    return Fit.of("kaplan", theta, points)


# -- results of the fits --------------------------------------------------------------------------------------------


def exponents(fit: Fit, level: float = LEVEL) -> dict[str, Estimate]:
    """Return a and b of N* ∝ C^a and D* ∝ C^b by the parametric law with C = 6 N D (Hoffmann et al. 2022, eq. 4)."""
    theta = np.concatenate([fit.theta[None], fit.draws])
    both = np.maximum(theta[:, 3] + theta[:, 4], 1e-12)
    out = {}
    for name, part in (("a", theta[:, 4] / both), ("b", theta[:, 3] / both)):
        low, high = fit.interval(float(part[0]), part[1:], level)
        out[name] = Estimate(float(part[0]), low, high, len(fit.residuals))
    return out


def optimum(fit: Fit, flops: float) -> tuple[float, float]:
    """Return (N*, D*) with the lowest loss for C = 6 N D (Hoffmann et al. 2022, eq. 4).

    Raises ConfigError if an exponent is 0.
    """
    _, a, b, alpha, beta = (float(v) for v in fit.theta)
    if not (alpha > 0 and beta > 0):
        raise ConfigError(
            f"the law has alpha = {alpha:g} and beta = {beta:g}, so it has no best size; fit it to more runs"
        )
    log_size = (math.log(alpha / beta) + a - b + beta * math.log(flops / 6)) / (alpha + beta)
    return math.exp(log_size), flops / 6 / math.exp(log_size)


@dataclass(frozen=True)
class IsoFlop:
    """The minima of the budgets' parabolas, and the exponents a and b of N* ∝ C^a and D* ∝ C^b through them."""

    budgets: Reals  # FLOPs [K]
    sizes: Reals  # N* [K]
    tokens: Reals  # D* [K]
    losses: Reals  # [K]
    parabolas: Reals  # coefficients of ln L in ln N, the highest first [K, 3]
    left_out: tuple[float, ...]  # budgets whose parabola has no minimum between their sizes
    exponents: Mapping[str, Estimate]

    def to_json(self) -> dict[str, Any]:
        """Return the result for fit.json."""
        rows = [
            {"flops": c, "size": n, "tokens": d, "loss": loss}
            for c, n, d, loss in zip(*(v.tolist() for v in (self.budgets, self.sizes, self.tokens, self.losses)))
        ]
        return {
            "minima": rows,
            "left_out": list(self.left_out),
            "exponents": {k: e.to_json() for k, e in self.exponents.items()},
        }


def iso_flop(points: Points, budgets: Sequence[float] | Reals, draws: int = DRAWS, seed: int = 0) -> IsoFlop:
    """Fit Hoffmann's approach 2: a parabola of ln L in ln N for each budget, then a power law through the minima.

    `budgets` [P] is the budget of each run. The bootstrap resamples the residuals of all parabolas together, because a
    budget has only a few sizes, and resampling these would often leave no parabola. Budgets without a minimum between
    their sizes are left out. Raises DataError if fewer than 2 remain.
    """
    key, x, y = np.asarray(budgets, np.float64), np.log(points.size), np.log(points.loss)
    groups = [np.flatnonzero(key == c) for c in np.unique(key)]
    groups = [g for g in groups if len(np.unique(x[g])) >= 3]
    kept, parabolas, tried = [], [], [float(key[g[0]]) for g in groups]
    for g in groups:
        curve = np.polyfit(x[g] - x[g].mean(), y[g], 2)
        vertex = x[g].mean() - curve[1] / (2 * curve[0])
        if curve[0] > 0 and x[g].min() < vertex < x[g].max():
            kept.append(g)
            parabolas.append(curve)
    if len(kept) < 2:
        raise DataError(
            f"{len(kept)} of {len(np.unique(key))} budgets have a minimum between their sizes (3 sizes or more each); "
            "wanted at least 2: run `tercet scaling run` with smaller and larger --widths"
        )
    residuals = np.concatenate([y[g] - np.polyval(p, x[g] - x[g].mean()) for g, p in zip(kept, parabolas)])
    free = len(residuals) - 3 * len(kept)
    residuals = (residuals - residuals.mean()) * near_fit(len(residuals), 3 * len(kept))
    rng = np.random.Generator(np.random.PCG64(seed))
    log_c = np.log([key[g[0]] for g in kept])
    minima = np.empty((draws + 1, len(kept)))
    tokens = np.empty_like(minima)
    for k, (g, p) in enumerate(zip(kept, parabolas)):
        centred = x[g] - x[g].mean()
        targets = np.concatenate(
            [y[g][None], np.polyval(p, centred) + residuals[rng.integers(len(residuals), size=(draws, len(g)))]]
        )
        square, slope, _ = np.polyfit(centred, targets.T, 2)  # each [R + 1]
        # a resampled parabola that opens downwards has its best size at the better end
        vertices = np.where(square > 0, -slope / (2 * np.where(square > 0, square, 1)), -np.sign(slope) * 1e9)
        minima[:, k] = x[g].mean() + np.clip(vertices, 2 * centred.min(), 2 * centred.max())
        line = np.polyfit(x[g], np.log(points.tokens[g]), 1)  # within a budget ln D is almost linear in ln N
        tokens[:, k] = np.polyval(line, minima[:, k])
    estimates = {}
    for name, values in (("a", minima), ("b", tokens)):
        slopes = np.polyfit(log_c, values.T, 1)[0]
        low, high = expanded_interval(float(slopes[0]), slopes[1:], LEVEL, free)
        estimates[name] = Estimate(float(slopes[0]), low, high, len(residuals))
    losses = [float(np.exp(p[2] - p[1] ** 2 / (4 * p[0]))) for p in parabolas]
    natural = [np.poly1d(p)(np.poly1d([1, -x[g].mean()])).coeffs for g, p in zip(kept, parabolas)]
    left = tuple(c for c in tried if c not in {float(key[g[0]]) for g in kept})
    return IsoFlop(
        np.exp(log_c), np.exp(minima[0]), np.exp(tokens[0]), np.array(losses), np.array(natural), left, estimates
    )
