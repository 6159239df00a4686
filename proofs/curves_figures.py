"""The figures of the known curves, in the colours, dashes and markers of tercet's reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from curves_summary import distance
from matplotlib.figure import Figure
from PIL import Image

from tercet.reporting.figures import COLOURS, DASHES, GRID, INK, MARKERS, STYLE

Json = dict[str, Any]
PNG: Any = {**STYLE, "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white"}


def form(d: Any, fit: Json, kind: str) -> Any:
    """d(α − βd) or d(α − β ln d)."""
    return d * (fit["alpha"] - fit["beta"] * (d if kind == "bon" else np.log(d)))


def over_optimisation(summary: Json, seeds: Sequence[Json]) -> Figure:
    """Left best-of-n, right PPO: the proxy dashed, gold as points, its fitted form as a line; each for every seed."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, kind, title in zip(panels, ("bon", "rl"), ("best of n", "PPO, no KL penalty")):
        for number, size in enumerate(summary["fit"]):
            runs = [s["best_of_n"][size] if kind == "bon" else s["ppo"][size]["points"] for s in seeds]
            colour, marker = COLOURS[number], MARKERS[number]
            found = summary["fit"][size][kind]
            for i, run in enumerate(runs):
                d = distance(run)
                axes.plot(d, [p["gold"] for p in run], marker, color=colour, markersize=2.5)
                axes.plot(d, [p["proxy"] for p in run], DASHES[1], color=colour, linewidth=0.6)
                reach = np.linspace(0.05, float(d.max()), 60)
                axes.plot(reach, form(reach, {k: found[k]["seeds"][i] for k in ("alpha", "beta")}, kind), color=colour)
            axes.plot([], [], color=colour, marker=marker, markersize=3, label=f"{size} comparisons")
        axes.set_xlabel("d = √KL (√nats)")
        axes.set_title(title, fontsize=9)
    panels[0].set_ylabel("reward (base policy: 0 ± 1)")
    panels[0].plot([], [], color=INK, label="gold as d(α − βd); right d(α − β ln d)")
    panels[0].plot([], [], DASHES[1], color=INK, linewidth=0.8, label="proxy")
    panels[0].legend(fontsize=8, loc="lower left")
    return figure


def _bars(axes: Any, x: Sequence[float], y: Sequence[Json], number: int, label: str) -> None:
    middle = np.array([e["value"] for e in y])
    spread = [middle - [e["low"] for e in y], np.array([e["high"] for e in y]) - middle]
    axes.errorbar(
        x,
        middle,
        yerr=spread,
        color=COLOURS[number],
        marker=MARKERS[number],
        linestyle=DASHES[number],
        capsize=3,
        label=label,
    )


def frontier(summary: Json, seeds: Sequence[Json]) -> Figure:
    """Proxy and gold reward against KL, a point for every β."""
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")
    axes, points = figure.add_subplot(), summary["points"]
    x = [p["kl"]["value"] for p in points.values()]
    for number, name in enumerate(("proxy", "gold")):
        _bars(axes, x, [p[name] for p in points.values()], number, name)
    for beta, at, p in zip(points, x, points.values()):
        axes.annotate(
            f"β {beta}", (at, p["proxy"]["value"]), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_xlabel("KL to the base policy (nats)")
    axes.set_ylabel("reward (base policy: 0 ± 1)")
    axes.margins(y=0.15)
    axes.legend()
    return figure


def alignment_tax(summary: Json, seeds: Sequence[Json]) -> Figure:
    """Held-out nats per token above the base policy's, and the proxy reward, against γ."""
    figure = Figure(figsize=(6.6, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = summary["points"]
    at = list(range(len(points)))
    _bars(left, at, [p["tax"] for p in points.values()], 0, "tax")
    left.set_ylabel("alignment tax (nats per token)")
    left.set_yscale("symlog", linthresh=0.1)
    left.set_yticks([0, 0.1, 1, 3], ["0", "0.1", "1", "3"])
    for number, name in enumerate(("proxy", "gold")):
        _bars(right, at, [p[name] for p in points.values()], number, name)
    right.set_ylabel("reward (base policy: 0 ± 1)")
    right.legend()
    for axes in (left, right):
        axes.set_xticks(at, list(points))
        axes.set_xlabel("γ")
    return figure


def methods(summary: Json, seeds: Sequence[Json]) -> Figure:
    """Gold reward and KL of every method: mean with interval, and each seed as a dot."""
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    rows = list(summary["points"])
    for axes, name, label in zip(panels, ("gold", "kl"), ("gold reward (base policy: 0 ± 1)", "KL (nats)")):
        for at, row in enumerate(rows):
            found = summary["points"][row][name]
            axes.plot([found["low"], found["high"]], [at, at], color=COLOURS[0], linewidth=1.4)
            axes.plot([found["value"]], [at], MARKERS[0], color=COLOURS[0], markersize=5)
            axes.plot(found["seeds"], [at + 0.25] * len(found["seeds"]), "|", color=COLOURS[1], markersize=6)
        axes.set_xlabel(label)
        axes.axvline(0, color=GRID, linewidth=1)
    panels[0].set_yticks(range(len(rows)), rows)
    panels[0].set_ylim(len(rows) - 0.5, -0.5)
    return figure


DRAWN = {
    "a": ("over-optimisation", over_optimisation), "b": ("frontier", frontier), "c": ("alignment-tax", alignment_tax),
    "f": ("methods", methods),
}  # fmt: skip


def draw(curve: str, summary: Json, seeds: Sequence[Json], out: Path) -> Path:
    """Write the curve's figure as a PNG; returns its path."""
    name, function = DRAWN[curve]
    with matplotlib.rc_context(PNG):
        path = out / f"curves-{name}.png"
        function(summary, seeds).savefig(path, dpi=140, metadata={"Software": None})
    with Image.open(path) as image:  # 32 colours are enough, at half the size
        image.convert("RGB").quantize(32).save(path, optimize=True)
    return path
