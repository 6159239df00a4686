"""Draw the figures of scaling laws as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from tercet.reporting.figures import COLOURS, DASHES, INK, MARKERS, STYLE
from tercet.scaling.fit import LadderFit, budgets
from tercet.scaling.flops import HOFFMANN, KAPLAN_SIZES, OMEGA, fitted_exponents, local_exponents
from tercet.scaling.laws import LAWS, IsoFlop

WHITE = dict.fromkeys(("figure.facecolor", "axes.facecolor", "savefig.facecolor"), "white")
PNG: Any = {**STYLE, "text.parse_math": True, **WHITE}
BPB = "held-out bits per byte"


def _write(figure: Figure, path: Path) -> Path:
    # without date and version, so that the same fit gives the same file
    figure.savefig(path, dpi=150, metadata={"Software": None})
    return path


def loss_figure(ladder: LadderFit) -> Figure:
    """Draw the losses of the runs against FLOPs, with the law's curves, and measured against fitted losses."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    runs, fit = ladder.runs, ladder.law()
    reach = np.geomspace(runs.flops.min() / 1.5, runs.flops.max() * 8, 80)
    for number, size in enumerate(np.unique(runs.total)):
        mine = runs.total == size
        look = {"color": COLOURS[number % len(COLOURS)]}
        marker = MARKERS[number % len(MARKERS)]
        per_token = float((runs.flops[mine] / runs.tokens[mine])[0])
        left.plot(runs.flops[mine], runs.loss[mine], marker, markersize=4, label=f"N = {size:,.0f}", **look)
        left.plot(reach, fit.loss(size, reach / per_token), DASHES[number % len(DASHES)], linewidth=0.8, **look)
        right.plot(fit.loss(size, runs.tokens[mine]), runs.loss[mine], marker, markersize=4, **look)
    left.set_xscale("log")
    left.set_ylim(runs.loss.min() * 0.8, runs.loss.max() * 1.05)
    left.set_xlabel("training FLOPs C")
    left.set_ylabel(BPB)
    left.legend(fontsize=7)
    ends = [runs.loss.min(), runs.loss.max()]
    right.plot(ends, ends, color=INK, linewidth=0.8)
    right.set_xlabel(f"fitted: {LAWS[fit.law][0]}", fontsize=8)
    right.set_ylabel("measured")
    return figure


def iso_figure(ladder: LadderFit, iso: IsoFlop) -> Figure:
    """Draw each budget's parabola of loss by size, and the best sizes against the budgets."""
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    runs, key = ladder.runs, budgets(ladder.runs.flops)
    for number, c in enumerate(np.unique(key)):
        mine, colour = key == c, COLOURS[number % len(COLOURS)]
        look: dict[str, Any] = {"color": colour, "markersize": 4, "label": f"C = {c:.1e}"}
        left.plot(runs.total[mine], runs.loss[mine], MARKERS[number % len(MARKERS)], **look)
        where = np.flatnonzero(np.isclose(iso.budgets, c, rtol=1e-6))
        if len(where):
            k = int(where[0])
            x = np.linspace(np.log(runs.total[mine].min()), np.log(runs.total[mine].max()), 60)
            left.plot(np.exp(x), np.exp(np.polyval(iso.parabolas[k], x)), color=colour, linewidth=0.9)
            left.plot(iso.sizes[k], iso.losses[k], "x", color=INK, markersize=6)
    left.set_xscale("log")
    left.set_xlabel("parameters N, with embeddings")
    left.set_ylabel(BPB)
    left.legend(fontsize=7)
    slope = iso.exponents["a"]
    right.plot(iso.budgets, iso.sizes, "o", color=COLOURS[0], markersize=4)
    line = np.polyfit(np.log(iso.budgets), np.log(iso.sizes), 1)
    fitted = np.exp(np.polyval(line, np.log(iso.budgets)))
    label = f"N* ∝ C^a, a = {slope.value:.2f} [{slope.low:.2f}, {slope.high:.2f}]"
    right.plot(iso.budgets, fitted, color=COLOURS[0], linewidth=0.9, label=label)
    right.set_xscale("log")
    right.set_yscale("log")
    right.yaxis.set_minor_formatter(NullFormatter())
    right.set_yticks(iso.sizes, [f"{n:,.0f}" for n in iso.sizes])
    for axes in (left, right):
        axes.xaxis.set_minor_formatter(NullFormatter())
    right.set_xlabel("training FLOPs C")
    right.set_ylabel("best size N*")
    right.legend(fontsize=7)
    return figure


def disagreement_figure() -> Figure:
    """Draw the exponent of N* in C along the frontier of Hoffmann's law, with parameters counted as in each paper."""
    figure = Figure(figsize=(5.4, 3.2), layout="constrained")
    axes = figure.subplots()
    sizes = np.geomspace(1e3, 1e12, 300)
    whole, hidden = local_exponents(sizes, HOFFMANN, OMEGA)
    with_all, without = fitted_exponents()
    axes.axvspan(*KAPLAN_SIZES, color=COLOURS[5], alpha=0.15, label="sizes of Kaplan et al.")
    axes.plot(sizes, whole, DASHES[0], color=COLOURS[0], label=f"all parameters (line over the span: {with_all:.2f})")
    label = f"without embeddings (line over the span: {without:.2f})"
    axes.plot(sizes, hidden, DASHES[1], color=COLOURS[1], label=label)
    axes.axhline(0.73, color=INK, linestyle=":", linewidth=0.9, label="published by Kaplan et al.: 0.73")
    axes.set_xscale("log")
    axes.set_ylim(0.35, 1.3)
    axes.set_xlabel("parameters without embeddings")
    axes.set_ylabel("exponent of N* ∝ C^a")
    axes.legend(fontsize=7, loc="upper right")
    return figure


def write_figures(ladder: LadderFit, folder: Path) -> list[Path]:
    """Write disagreement.png, and loss.png and isoflop.png where their laws were fitted; return the files written."""
    with matplotlib.rc_context(PNG):
        out = [_write(disagreement_figure(), folder / "disagreement.png")]
        if "parametric" in ladder.laws:
            out.append(_write(loss_figure(ladder), folder / "loss.png"))
        if ladder.iso is not None:
            out.append(_write(iso_figure(ladder, ladder.iso), folder / "isoflop.png"))
    return out
