"""From the points of every seed to claims with intervals: fits, peaks, falls, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from curves_measure import BETAS, GAMMAS
from curves_world import SIZES
from numpy.typing import NDArray

from tercet.statistics.intervals import over_seeds

Json = dict[str, Any]
Reals = NDArray[np.float64]
NEAR = 0.2  # points with d below this say nothing of the form: gold is noise there


def distance(points: Sequence[Json]) -> Reals:
    """d = √KL of every point; a sampled KL that is below 0 counts as 0."""
    return np.array([math.sqrt(max(0.0, p["kl"])) for p in points])


def fit(d: Reals, gold: Reals, form: str) -> dict[str, float]:
    """Least squares of Gao et al. 2022: "bon" d(α − βd) (equation 1), "rl" d(α − β ln d) (equation 2); R² about the mean.

    "peak" is where the fitted curve is highest: α / 2β, and exp(α/β − 1); infinite where it only rises.
    """
    kept = d > NEAR
    x, y = d[kept], gold[kept]
    bend = x * x if form == "bon" else x * np.log(x)
    (alpha, beta), *_ = np.linalg.lstsq(np.stack([x, -bend], 1), y, rcond=None)
    rest = y - (alpha * x - beta * bend)
    peak = math.inf
    if beta > 0:
        peak = alpha / (2 * beta) if form == "bon" else math.exp(min(alpha / beta - 1, 50.0))
    r2 = 1 - float((rest**2).sum() / ((y - y.mean()) ** 2).sum())
    return {"alpha": float(alpha), "beta": float(beta), "r2": r2, "peak": float(peak)}


def peak(run: Json) -> dict[str, float]:
    """Where a PPO run's gold is highest, how far it then falls and what the proxy does meanwhile.

    The place is chosen on the even steps, the values are of the odd steps: the highest of many noisy points would be too
    high. The errors are half 95 % intervals from the spread among answers, within this one run.
    """
    top = int(np.argmax([p["gold"] for p in run["even"]]))
    best, last, d = run["odd"][top], run["odd"][-2:], distance(run["points"])
    end = {n: float(np.mean([p[n] for p in last])) for n in ("gold", "proxy")}
    error = {
        n: 1.96 * math.hypot(best[f"{n}_error"], 0.5 * math.hypot(*(p[f"{n}_error"] for p in last)))
        for n in ("gold", "proxy")
    }
    return {
        "d": float(d[top]), "furthest": float(d.max()), "gold": best["gold"], "end": end["gold"],
        "fall": best["gold"] - end["gold"], "fall_error": error["gold"],
        "rise": end["proxy"] - best["proxy"], "rise_error": error["proxy"],
    }  # fmt: skip


def interval(values: Sequence[float]) -> Json:
    """Mean over seeds with Student's t interval, and the values themselves."""
    return {**over_seeds(list(values)).to_json(), "seeds": list(values)}


def over(rows: Sequence[dict[str, float]]) -> dict[str, Json]:
    """An interval for every name."""
    return {name: interval([r[name] for r in rows]) for name in rows[0]}


def over_optimisation(seeds: Sequence[Json]) -> Json:
    """Curve (a): peaks, falls and fits for every size, and small against large paired by seed."""
    out: Json = {"agreement": {}, "peak": {}, "fit": {}}
    peaks = {}
    for size in map(str, SIZES):
        runs = [s["ppo"][size] for s in seeds]
        peaks[size] = [peak(r) for r in runs]
        out["agreement"][size] = interval([s["agreement"][size] for s in seeds])
        out["peak"][size] = over(peaks[size])
        out["fit"][size] = {}
        for form, sets in (("rl", [r["points"] for r in runs]), ("bon", [s["best_of_n"][size] for s in seeds])):
            each = [fit(distance(p), np.array([x["gold"] for x in p]), form) for p in sets]
            out["fit"][size][form] = over([{k: f[k] for k in ("alpha", "beta", "r2")} for f in each])
    small, large = str(SIZES[0]), str(SIZES[-1])
    out["moves"] = {
        name: interval([b[name] - a[name] for a, b in zip(peaks[small], peaks[large])]) for name in ("d", "gold", "end")
    }
    return out


def sweep(seeds: Sequence[Json], keys: Sequence[str]) -> Json:
    """Curves (b), (c), (f): every setting with intervals, and each setting minus the one before it, paired by seed."""
    out: Json = {"points": {k: over([s[k] for s in seeds]) for k in keys}, "steps": {}}
    for i, later in enumerate(keys):
        for earlier in keys[:i]:
            names = seeds[0][later]
            out["steps"][f"{later} - {earlier}"] = {
                n: interval([s[later][n] - s[earlier][n] for s in seeds]) for n in names
            }
    return out


def summarise(curve: str, seeds: Sequence[Json]) -> Json:
    """The claims of one curve."""
    if curve == "a":
        return over_optimisation(seeds)
    keys = {"b": [f"{b:g}" for b in BETAS], "c": [f"{g:g}" for g in GAMMAS], "f": list(seeds[0])}[curve]
    return sweep(seeds, keys)
