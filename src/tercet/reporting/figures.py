"""Draw small charts as inline SVG, with matplotlib and without a window.

The colours are those of Okabe and Ito, which people with colour blindness can tell apart; line style and marker differ
as well. In the SVG they become CSS variables of the page, so the charts follow the reader's light or dark setting.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from tercet.reporting.blocks import Chart
from tercet.statistics.intervals import Estimate

Reals = NDArray[np.float64]

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, GRID = "#101112", "#c0c1c2"  # stand-ins that become currentColor and var(--grid)
WIDTH = 4.4  # inches; at 320 CSS pixels the 9 pt text is still 9 pixels high
MOST_POINTS = 240
STYLE: Any = {  # several to a line: it is one table of names and values
    "svg.fonttype": "none", "svg.hashsalt": "tercet", "text.parse_math": False, "font.size": 9, "axes.grid": True,
    "axes.spines.top": False, "axes.spines.right": False, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.edgecolor": INK, "grid.color": GRID, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False, "figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Curve:
    """The points of one line, with error bars where `intervals` are given."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    intervals: Sequence[Estimate] = ()

    def finite(self) -> tuple[Reals, Reals]:
        """Return x and y without the points where y is NaN or infinite."""
        x, y = np.asarray(self.x, dtype=np.float64), np.asarray(self.y, dtype=np.float64)
        kept = np.isfinite(y)
        return x[kept], y[kept]


def lines(
    name: str,
    caption: str,
    xlabel: str,
    ylabel: str,
    curves: Sequence[Curve],
    *,
    smooth: bool = False,
    levels: Mapping[str, float] | None = None,
    percent: bool = False,
) -> Chart | None:
    """Draw curves over steps or shots; return None where there is nothing to draw.

    `smooth` draws every step as a thin line and the moving average over a twentieth of the steps as a thick line.
    `levels` are horizontal lines with a name. `percent` labels shares in percent. `name` makes the ids of the SVG
    unique on the page.
    """
    drawn = [(c, *c.finite()) for c in curves]
    drawn = [(c, x, y) for c, x, y in drawn if len(x)]
    if not drawn:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
        axes = figure.add_subplot()
        handles: dict[str, Any] = {}
        for number, (curve, x, y) in enumerate(drawn):
            dash, marker = DASHES[number % len(DASHES)], MARKERS[number % len(MARKERS)]
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "linestyle": dash, "linewidth": 1.8}
            if len(x) <= 12:
                look |= {"marker": marker, "markersize": 5}
            elif smooth:
                axes.plot(*_thinned(x, y), color=look["color"], linewidth=0.7, alpha=0.35)
                x, y = _thinned(x, _moving_average(y))
            if curve.intervals:
                below = [max(0.0, v - e.low) for v, e in zip(y, curve.intervals)]
                above = [max(0.0, e.high - v) for v, e in zip(y, curve.intervals)]
                axes.errorbar(x, y, yerr=[below, above], fmt="none", ecolor=look["color"], elinewidth=1.2, capsize=3)
            (handles[curve.name],) = axes.plot(x, y, **look)
        for number, (label, value) in enumerate((levels or {}).items()):
            handles[label] = axes.axhline(value, color=INK, linewidth=1, linestyle=(0, (1, 2 + 3 * number)))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 2.5, 5, 10]))
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        if len(handles) > 1:
            _legend(figure, axes, handles)
        svg = _save(figure)
    told = "; ".join(f"{c.name} goes from {y[0]:.3g} at {x[0]:g} to {y[-1]:.3g} at {x[-1]:g}" for c, x, y in drawn)
    marks = "".join(f"; {label} is {value:.3g}" for label, value in (levels or {}).items())
    return _chart(name, svg, caption, f"Line chart. {caption} {ylabel} against {xlabel}: {told}{marks}.")


def standalone(chart: Chart) -> str:
    """Return the chart as an SVG file: on a white background, with fixed colours instead of the page's variables."""
    svg = str(chart.svg).replace("currentColor", "#333").replace("var(--grid)", "#ddd")
    for number, colour in enumerate(COLOURS):
        svg = svg.replace(f"var(--c{number})", colour)
    named = "" if "xmlns=" in svg.split(">", 1)[0] else ' xmlns="http://www.w3.org/2000/svg"'
    return svg.replace("<svg", f'<svg{named} style="background: white"', 1) + "\n"


def bars(
    name: str, caption: str, ylabel: str, groups: Sequence[str], values: Mapping[str, Sequence[float | None]]
) -> Chart | None:
    """Draw one group of bars for each of `groups`, with one bar for each key of `values`; a value of None has no bar.

    Returns None where there is nothing to draw.
    """
    if not groups or not values:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="x", visible=False)
        wide, handles = 0.8 / len(values), {}
        for number, (label, heights) in enumerate(values.items()):
            positions = [g + (number - (len(values) - 1) / 2) * wide for g in range(len(groups))]
            known = [(x, h) for x, h in zip(positions, heights) if h is not None and math.isfinite(h)]
            colour = COLOURS[number % len(COLOURS)]
            handles[label] = axes.bar([x for x, _ in known], [h for _, h in known], wide * 0.9, color=colour)
        axes.set_xticks(range(len(groups)), [_clean(g) for g in groups])
        axes.set_ylabel(ylabel)
        _legend(figure, axes, handles)
        svg = _save(figure)
    told = "; ".join(
        f"{group}: " + ", ".join(f"{label} {h[i]:.3g}" for label, h in values.items() if h[i] is not None)
        for i, group in enumerate(groups)
    )
    return _chart(name, svg, caption, f"Bar chart. {caption} {ylabel}: {told}.")


def dots(
    name: str,
    caption: str,
    xlabel: str,
    rows: Sequence[str],
    values: Mapping[str, Sequence[Estimate | None]],
    *,
    percent: bool = False,
) -> Chart | None:
    """Draw values with their intervals as points: one row for each of `rows`, one point for each key of `values`.

    Returns None where there is nothing to draw.
    """
    if not rows or not values:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 0.9 + len(rows) * max(0.3, 0.11 * len(values))), layout="constrained")
        axes = figure.add_subplot()
        axes.grid(axis="y", visible=False)
        handles: dict[str, Any] = {}
        for number, (label, estimates) in enumerate(values.items()):
            offset = (number - (len(values) - 1) / 2) * 0.7 / len(values)
            placed = [(i + offset, e) for i, e in enumerate(estimates) if e is not None]
            colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
            for y, e in placed:
                if math.isfinite(e.low):
                    axes.plot([e.low, e.high], [y, y], color=colour, linewidth=1.4)
            x = [e.value for _, e in placed]
            (handles[label],) = axes.plot(x, [y for y, _ in placed], marker, color=colour, markersize=5)
        for border in range(1, len(rows)):
            axes.axhline(border - 0.5, color=GRID, linewidth=0.6)
        axes.set_yticks(range(len(rows)), [_clean(r) for r in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        if percent:
            axes.set_xlim(-0.02, 1.02)
            axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set_xlabel(xlabel)
        _legend(figure, axes, handles)
        svg = _save(figure)
    told = "; ".join(
        f"{row}: " + ", ".join(f"{label} {known.value:.3g}" for label, es in values.items() if (known := es[i]))
        for i, row in enumerate(rows)
    )
    return _chart(name, svg, caption, f"Dot chart. {caption} {xlabel}: {told}.")


def _moving_average(y: Reals) -> Reals:
    """Return the mean over a window of a twentieth of the points, narrower at both ends."""
    window = np.ones(2 * (len(y) // 40) + 1)
    out: Reals = np.convolve(y, window, "same") / np.convolve(np.ones(len(y)), window, "same")
    return out


def _thinned(x: Reals, y: Reals) -> tuple[Reals, Reals]:
    """Return at most `MOST_POINTS` points, each the mean of the points that it replaces."""
    if len(x) <= MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), MOST_POINTS)
    return np.array([x[p].mean() for p in parts]), np.array([y[p].mean() for p in parts])


def _clean(label: str) -> str:
    """Return a name from the user as a label: one short line of printable characters."""
    text = "".join(c if c.isprintable() else "\ufffd" for c in label)
    return text if len(text) <= 26 else text[:25] + "…"


def _legend(figure: Figure, axes: Axes, handles: Mapping[str, Any]) -> None:
    """Put the legend above the axes, where it hides no data, in as many columns as fit."""
    labels = [_clean(h) for h in handles]
    wide = [40 + 5.4 * len(label) for label in labels]  # estimated width in points: line, gaps and text
    columns = len(labels) if sum(wide) < 72 * WIDTH else max(1, int(72 * WIDTH // max(wide)))
    # matplotlib leaves out labels that begin with "_", so each gets a space before it
    gaps = {"handlelength": 2.2, "columnspacing": 1.2}
    figure.legend([*handles.values()], [f" {h}" for h in labels], loc="outside upper left", ncols=columns, **gaps)


def _save(figure: Figure) -> str:
    out = io.StringIO()
    with warnings.catch_warnings():
        # the browser has its own fonts
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return out.getvalue()


def _chart(name: str, svg: str, caption: str, told: str) -> Chart:
    """Return matplotlib's SVG as a part of a page: no header, unique ids, the page's colours.

    Screen readers get the text `told`.
    """
    box = re.search(r'viewBox="([\d. ]+)"', svg)
    assert box is not None
    end = svg.index("</defs>") + len("</defs>")  # the first <defs> has a style that would apply to the whole page
    body = svg[end : svg.rindex("</svg>")]
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]*)"', lambda m: f' id="{name}-{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"font-family: [^;\"]*(; )?", "", body)
    body = re.sub(r"\n\s*", "\n", body)
    for number, colour in enumerate(COLOURS):
        body = body.replace(colour, f"var(--c{number})")
    body = body.replace(INK, "currentColor").replace(GRID, "var(--grid)")
    start = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">').format(box[1], told)
    return Chart(start + Markup(body) + Markup("</svg>"), caption)
