"""Figures of in-context learning: accuracy against examples and steps, the heads, tuning against prompting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from tercet.reporting.figures import COLOURS, DASHES, GRID, INK, MARKERS

Json = Mapping[str, Any]


def _band(axes: Any, x: Sequence[float], y: Sequence[Json], number: int, label: str, marks: bool = True) -> None:
    """A mean as a line and its interval as a band around it, cut off at 0 and 1."""
    look = {"color": COLOURS[number], "linestyle": DASHES[number % len(DASHES)], "label": label}
    axes.plot(x, [e["value"] for e in y], marker=MARKERS[number] if marks else None, markersize=4, **look)
    low, high = [max(0.0, e["low"]) for e in y], [min(1.0, e["high"]) for e in y]
    axes.fill_between(x, low, high, color=COLOURS[number], alpha=0.15, linewidth=0)


def shots(results: Json) -> Figure:
    """Draw accuracy on held-out mappings against the number of examples, for each size, and the best possible."""
    figure = Figure(figsize=(5.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for number, (name, size) in enumerate(results["sizes"].items()):
        rows = size["shots"]["heldout"]
        _band(axes, range(len(rows)), [r["accuracy"] for r in rows], number, name)
    axes.plot(
        range(len(rows)), [r["ceiling"]["value"] for r in rows], color=INK, linestyle=(0, (1, 2)), label="best possible"
    )
    axes.axhline(1 / results["words"], color=GRID, label="chance")
    axes.set_xticks(range(len(rows)), [str(r["shots"]) for r in rows])
    axes.set(xlabel="examples in the prompt", ylabel="accuracy, held-out mappings", ylim=(0, 1.02))
    axes.legend(fontsize=8, loc="upper left")
    return figure


def steps(results: Json) -> Figure:
    """Draw accuracy with the answer in context and the best prefix-matching score against training steps."""
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    panels = figure.subplots(1, 2)
    for number, (name, size) in enumerate(results["sizes"].items()):
        _band(panels[0], size["steps"], size["accuracy_by_step"], number, name, False)
        _band(panels[1], size["steps"], size["induction_by_step"], number, name, False)
    most = next(iter(results["sizes"].values()))["shots"]["heldout"][-1]["shots"]
    panels[0].set(xlabel="training steps", ylabel=f"accuracy, {most} examples, answer in context", ylim=(0, 1.02))
    panels[1].set(xlabel="training steps", ylabel="best prefix-matching score", ylim=(0, 1.02))
    for axes in panels:
        axes.legend(fontsize=8, loc="upper left")
    return figure


def heads(results: Json) -> Figure:
    """Draw the three scores of every head against training steps, for the largest model of the first seed."""
    figure = Figure(figsize=(8.0, 2.8), layout="constrained")
    rows = list(results["sizes"].values())[-1]["heads"]
    titles = (
        ("prefix_matching", "prefix matching"),
        ("one_further", "prefix matching, one position further"),
        ("previous_token", "attention to the previous token"),
    )
    for axes, (key, title) in zip(figure.subplots(1, 3, sharey=True), titles):
        for layer in range(len(rows[0][key])):
            for head in range(len(rows[0][key][0])):
                look = {"color": COLOURS[layer], "linestyle": DASHES[head % len(DASHES)]}
                label = f"layer {layer + 1}, head {head + 1}"
                axes.plot([r["step"] for r in rows], [r[key][layer][head] for r in rows], label=label, **look)
        axes.set(xlabel="training steps", ylim=(0, 1.02))
        axes.set_title(title, fontsize=9)
    figure.axes[0].set_ylabel("score")
    figure.axes[0].legend(fontsize=8, loc="upper left")
    return figure


def tuning(results: Json) -> Figure:
    """Draw accuracy and FLOPs per answer of prompting and of tuning with the same examples."""
    figure = Figure(figsize=(8.0, 3.0), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = list(results["sizes"].values())[-1]["tuning"]
    at = [r["shots"] for r in rows]
    for number, use in enumerate(("prompting", "tuning")):
        _band(left, at, [r[use]["accuracy"] for r in rows], number, use)
        flops = [r[use]["answer_flops"]["value"] for r in rows]
        right.plot(at, flops, color=COLOURS[number], marker=MARKERS[number], markersize=4, label=f"{use}, each answer")
    seen = [r["in_context"]["value"] for r in rows]
    left.plot(at, seen, color=INK, linestyle=(0, (1, 2)), label="share of pairs seen")
    for number, answers in enumerate((1, 100), 2):
        shared = [r["tuning"]["answer_flops"]["value"] + r["tuning"]["training_flops"]["value"] / answers for r in rows]
        look = {"color": COLOURS[number], "linestyle": DASHES[number - 1], "marker": MARKERS[number], "markersize": 4}
        right.plot(at, shared, label=f"tuning, with training, {answers} answer{'s' * (answers > 1)}", **look)
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(at, [str(k) for k in at])
        axes.set_xlabel("examples")
        axes.legend(fontsize=8, loc="upper left")
    right.set_yscale("log")
    right.margins(y=0.35)  # room for the legend
    right.set_ylabel("FLOPs per answer")
    left.set(ylabel="accuracy, held-out mappings", ylim=(0, 1.02))
    return figure


def figures(results: Json) -> dict[str, Figure]:
    """Draw the four figures by name."""
    drawn = (shots, steps, heads, tuning)
    return {function.__name__: function(results) for function in drawn}
