"""Over-optimisation of a reward model: gold and proxy reward against KL, for best-of-n and along a PPO run."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from tercet.posttraining.rewards.best_of_n import best_of_k, kl_bon
from tercet.reporting.claims import Claim
from tercet.reporting.figures import COLOURS, DASHES, INK, MARKERS
from tercet.studies.estimates import Json, above, cell, interval, intervals, table, text
from tercet.studies.folder import StudyFolder
from tercet.studies.known_reward.world import SIZES, World, ppo_config, run_ppo

if TYPE_CHECKING:
    from tercet.studies.known_reward.over_optimisation_study import OverOptimisationConfig

Reals = NDArray[np.float64]
BEST_OF, BEST_PROMPTS = 256, 64
BLOCK = 8  # PPO steps whose rollouts are one point
PPO_STEPS = 12 * BLOCK
NEAR = 0.2  # points with a smaller d are left out of the fit: gold is noise there


def over_optimisation(config: OverOptimisationConfig, folder: StudyFolder) -> Json:
    """Measure every world; return the points of each and their summary."""
    worlds = folder.seeds(measure, config.seed, config.seeds, config.jobs)
    return {"worlds": worlds, "summary": summarise(worlds)}


# -- one world ----------------------------------------------------------------------------------------------------


def measure(seed: int) -> Json:
    """Return gold and proxy reward against KL, for best-of-n and PPO without a penalty, for every size of proxy."""
    world = World(seed)
    prompts, done = world.draw(world.fresh[:BEST_PROMPTS], 4, each=BEST_OF)
    gold = world.gold(prompts, done).reshape(BEST_PROMPTS, -1)
    best, ppo = {}, {}
    for size, proxy in world.proxies.items():
        best[str(size)] = best_of_n(world.proxy_scores(proxy, prompts, done).reshape(BEST_PROMPTS, -1), gold)
        _, points = run_ppo(world, proxy, ppo_config(steps=PPO_STEPS), watch=True)
        ppo[str(size)] = {"points": blocks(points), "even": blocks(points, 0), "odd": blocks(points, 1)}
    return {"agreement": {str(n): r for n, r in world.agreement().items()}, "best_of_n": best, "ppo": ppo}


def best_of_n(proxy: Reals, gold: Reals) -> list[dict[str, float]]:
    """Return KL, proxy and gold of the best of k for k = 1, 2, 4, …; `proxy` and `gold` are [prompts, answers]."""
    points = []
    for k in (2**i for i in range(proxy.shape[1].bit_length())):
        rows = [[best_of_k(p.tolist(), x.tolist(), k) for x in (p, g)] for p, g in zip(proxy, gold)]
        mean_proxy, mean_gold = np.mean(rows, axis=0)
        points.append({"k": k, "kl": kl_bon(k), "proxy": float(mean_proxy), "gold": float(mean_gold)})
    return points


def blocks(points: list[dict[str, float]], half: int | None = None) -> list[dict[str, float]]:
    """Return means over blocks of BLOCK steps; of their even or odd steps alone where `half` is 0 or 1."""
    out = []
    for a in range(0, len(points), BLOCK):
        steps = points[a : a + BLOCK] if half is None else points[a + half : a + BLOCK : 2]
        row = {name: float(np.mean([p[name] for p in steps])) for name in steps[0]}
        for name in ("gold_error", "proxy_error"):  # of a mean over so many steps
            row[name] /= len(steps) ** 0.5
        out.append(row)
    return out


# -- over worlds --------------------------------------------------------------------------------------------------


def distance(points: Sequence[Json]) -> Reals:
    """Return d = √KL of every point; a sampled KL below 0 counts as 0."""
    return np.array([math.sqrt(max(0.0, p["kl"])) for p in points])


def fit(d: Reals, gold: Reals, form: str) -> dict[str, float]:
    """Fit gold by least squares: "bon" d(α − βd), "rl" d(α − β ln d) (Gao et al. 2022, equations 1 and 2).

    "r2" is R² about the mean. "peak" is where the fitted curve is highest, α / 2β or exp(α/β − 1); infinite where it
    only rises.
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
    """Return where a PPO run's gold is highest, how far it then falls, and how far the proxy rises meanwhile.

    The position is chosen on the even steps and the values are of the odd steps, because the highest of many noisy
    points would be too high. The errors are half 95 % intervals from the spread among answers within this one run.
    """
    top = int(np.argmax([p["gold"] for p in run["even"]]))
    best, last, d = run["odd"][top], run["odd"][-2:], distance(run["points"])
    end = {n: float(np.mean([p[n] for p in last])) for n in ("gold", "proxy")}
    error = {
        n: 1.96 * math.hypot(best[f"{n}_error"], 0.5 * math.hypot(*(p[f"{n}_error"] for p in last)))
        for n in ("gold", "proxy")
    }
    return {
        "d": float(d[top]),
        "furthest": float(d.max()),
        "gold": best["gold"],
        "end": end["gold"],
        "fall": best["gold"] - end["gold"],
        "fall_error": error["gold"],
        "rise": end["proxy"] - best["proxy"],
        "rise_error": error["proxy"],
    }


def summarise(worlds: Sequence[Json]) -> Json:
    """Return agreement, peaks and fits for every size of proxy.

    "moves" holds the peaks of the largest size minus those of the smallest, paired by world.
    """
    out: Json = {"agreement": {}, "peak": {}, "fit": {}}
    peaks = {}
    for size in map(str, SIZES):
        runs = [w["ppo"][size] for w in worlds]
        peaks[size] = [peak(run) for run in runs]
        out["agreement"][size] = interval([w["agreement"][size] for w in worlds])
        out["peak"][size] = intervals(peaks[size])
        out["fit"][size] = {}
        for form, sets in (("rl", [run["points"] for run in runs]), ("bon", [w["best_of_n"][size] for w in worlds])):
            each = [fit(distance(p), np.array([x["gold"] for x in p]), form) for p in sets]
            out["fit"][size][form] = intervals([{k: f[k] for k in ("alpha", "beta", "r2")} for f in each])
    small, large = peaks[str(SIZES[0])], peaks[str(SIZES[-1])]
    out["moves"] = {n: interval([b[n] - a[n] for a, b in zip(small, large)]) for n in ("d", "gold", "end")}
    return out


def fell(peaks: Json) -> list[bool]:
    """Return for each world whether its peak lies inside the run, gold falls from there and the proxy rises.

    Both moves must be larger than chance among the answers allows. `peaks` is a size's entry in the summary's "peak".
    """
    names = ("fall", "fall_error", "rise", "rise_error", "d", "furthest")
    return [
        fall > error and rise > rise_error and d < furthest
        for fall, error, rise, rise_error, d, furthest in zip(*(peaks[name]["seeds"] for name in names))
    ]


def claims(results: Json) -> list[Claim]:
    """State what Gao et al. 2022 found, with the numbers of these worlds."""
    summary = results["summary"]
    small, *_, large = map(str, SIZES)
    falls, moves, fits = fell(summary["peak"][small]), summary["moves"], summary["fit"]
    bends = fits[small]["rl"]["beta"]
    form = {size: fits[size]["bon"]["r2"] for size in fits}
    return [
        Claim(
            f"with {small} comparisons gold falls after a peak while the proxy rises, in at least half of the worlds",
            sum(falls) * 2 >= len(falls),
            f"{sum(falls)} of {len(falls)} worlds",
        ),
        Claim(
            f"with {large} comparisons the peak is farther out than with {small}",
            above(moves["d"]),
            f"d of the peak moves by {text(moves['d'])}",
        ),
        Claim(
            f"with {large} comparisons the peak is higher than with {small}",
            above(moves["gold"]),
            f"gold at the peak moves by {text(moves['gold'])}",
        ),
        Claim(
            f"PPO against the proxy of {small} comparisons bends down as d(α − β ln d) does",
            above(bends),
            f"β is {text(bends)}",
        ),
        Claim(
            "best-of-n follows d(α − βd) with R² above 0.9",
            all(above(r2, 0.9) for r2 in form.values()),
            ", ".join(f"{size} comparisons: R² {text(r2)}" for size, r2 in form.items()),
        ),
    ]


def tables(results: Json) -> str:
    """Return the peaks and the fits as Markdown tables."""
    summary = results["summary"]
    peaks, fits = [], []
    for size, top in summary["peak"].items():
        row = (summary["agreement"][size], top["d"], top["gold"], top["end"], top["rise"])
        peaks.append([size, *map(cell, row)])
        fits.append([size, *(cell(summary["fit"][size][form][n]) for form in ("bon", "rl") for n in FITTED)])
    head = ["comparisons", "correlation of proxy and gold", "d of the peak", "gold at the peak", "gold at the end"]
    moves = ["d of the peak", "gold at the peak", "gold at the end"]
    return "\n".join(
        [
            table([*head, "proxy: rise after the peak"], peaks),
            f"{SIZES[-1]} minus {SIZES[0]} comparisons, paired by world:\n",
            table(moves, [[cell(summary["moves"][name]) for name in ("d", "gold", "end")]]),
            table(["comparisons", "best of n: α", "β", "R²", "PPO: α", "β", "R²"], fits),
        ]
    )


FITTED = ("alpha", "beta", "r2")
FORMS: Any = {
    "bon": lambda d, alpha, beta: d * (alpha - beta * d),
    "rl": lambda d, alpha, beta: d * (alpha - beta * np.log(d)),
}


def figures(results: Json) -> dict[str, Figure]:
    """Draw best-of-n and PPO in every world: the proxy dashed, gold as points, its fitted form as a line."""
    summary = results["summary"]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, form, title in zip(panels, ("bon", "rl"), ("best of n", "PPO, no KL penalty")):
        for number, size in enumerate(summary["fit"]):
            look = {"color": COLOURS[number]}
            for i, world in enumerate(results["worlds"]):
                run = world["best_of_n"][size] if form == "bon" else world["ppo"][size]["points"]
                d = distance(run)
                axes.plot(d, [p["gold"] for p in run], MARKERS[number], markersize=2.5, **look)
                axes.plot(d, [p["proxy"] for p in run], DASHES[1], linewidth=0.6, **look)
                reach = np.linspace(0.05, float(d.max()), 60)
                curve = functools.partial(FORMS[form], reach)
                axes.plot(reach, curve(*(summary["fit"][size][form][n]["seeds"][i] for n in ("alpha", "beta"))), **look)
            axes.plot([], [], marker=MARKERS[number], markersize=3, label=f"{size} comparisons", **look)
        axes.set_xlabel("d = √KL (√nats)")
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel("reward (base policy: 0 ± 1)")
    panels[0].plot([], [], color=INK, label="gold as d(α − βd); right d(α − β ln d)")
    panels[0].plot([], [], DASHES[1], color=INK, linewidth=0.8, label="proxy")
    panels[0].legend(fontsize=8, loc="lower left")
    return {"over-optimisation": figure}
