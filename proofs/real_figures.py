"""What proofs/real_data.py found, put together: means over seeds with their intervals, and the two figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from real_text import HELD_OUT_PAIRS, Choice, ChoiceData, asked_pairs

from tercet.statistics.intervals import mean, over_seeds

BLUE, RED, GREY = "#0072b2", "#d55e00", "#9a9a9a"
CEILING = 0.873  # of people's choices that agree with the gold label
JUDGES = ("proxy", "gold", "words")  # PPO works against the first and never sees the others
MEASURED = (*JUDGES, "kl", "ended", "tokens")


def positive(result: dict[str, Any], judge: str) -> float:
    """Where a judge's scores change from negative to positive: half way between the held-out reviews of both kinds."""
    return float(result["reviews"]["pos"][judge] + result["reviews"]["neg"][judge]) / 2


def sentiment_summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds with Student's t intervals; differences are between policies of the same seed."""

    def at(when: str, name: str) -> list[float]:
        return [float(np.mean(r[when][name])) for r in found]

    def of_ended(when: str, name: str) -> list[float]:  # PPO also learns to end: is that all that it learns?
        return [float(np.mean(np.array(r[when][name])[np.array(r[when]["ended"]) > 0])) for r in found]

    def share(when: str, judge: str) -> list[float]:
        return [float(np.mean(np.array(r[when][judge]) > positive(r, judge))) for r in found]

    out: dict[str, Any] = {}
    for kind in ("auc", "accuracy"):
        out[kind] = {n: over_seeds([r[kind][n] for r in found]).to_json() for n in JUDGES}
    for when in ("before", "after"):
        out[when] = {n: over_seeds(at(when, n)).to_json() for n in MEASURED}
        out[when]["distinct_bigrams"] = over_seeds([r[when]["distinct_bigrams"] for r in found]).to_json()
        out[when]["positive"] = {j: over_seeds(share(when, j)).to_json() for j in JUDGES}
    out["gain"] = {n: over_seeds(np.subtract(at("after", n), at("before", n))).to_json() for n in JUDGES}
    shares = {j: np.subtract(share("after", j), share("before", j)) for j in JUDGES}
    out["gain"]["positive"] = {j: over_seeds(v).to_json() for j, v in shares.items()}
    ended = {j: np.subtract(of_ended("after", j), of_ended("before", j)) for j in JUDGES}
    out["gain"]["of those that ended"] = {j: over_seeds(v).to_json() for j, v in ended.items()}
    out["seeds"] = [{"kl": float(np.mean(r["after"]["kl"])), "gold": g} for r, g in zip(found, at("after", "gold"))]
    out["reviews"] = {
        k: {n: float(np.mean([r["reviews"][k][n] for r in found])) for n in JUDGES} for k in ("pos", "neg")
    }
    out["curves"] = [r["curve"] for r in found]
    out["samples"] = [r["samples"] for r in found]
    return out


def agreement(rights: dict[tuple[str, str], float], chosen: Sequence[Choice]) -> list[float]:
    """For each choice: 1 where the one whose `rights` these are (1: sides with the gold label) would choose alike."""
    return [rights[c.pair] if c.gold_agrees else 1 - rights[c.pair] for c in chosen]


def choice_summary(data: ChoiceData, base: dict[str, Any], found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Accuracy on people's choices, clustered by pair, and on held-out paradigms, clustered by paradigm."""
    pairs = asked_pairs(data)
    people = len({c.pair for c in data.choices})
    every = {**base["rights"], "reward model": np.mean([r["rights"] for r in found], axis=0).tolist()}
    parts = {
        "all": data.choices,
        "seen paradigms": [c for c in data.choices if c.paradigm not in data.unseen],
        "unseen paradigms": [c for c in data.choices if c.paradigm in data.unseen],
    }
    owner = [name for name, those in data.held_out.items() for _ in those[:HELD_OUT_PAIRS]]
    table = {who: dict(zip(pairs[:people], rights)) for who, rights in every.items()}

    def clustered(values: Sequence[float], chosen: Sequence[Choice]) -> dict[str, Any]:
        return mean(values, groups=[c.pair for c in chosen]).to_json()

    out: dict[str, Any] = {"choices": len(data.choices), "pairs": people, "people": {}, "held_out_paradigms": {}}
    gold = {c.pair: 1.0 for c in data.choices}
    for part, chosen in parts.items():
        out["people"][part] = {who: clustered(agreement(table[who], chosen), chosen) for who in every}
        out["people"][part]["gold label"] = clustered(agreement(gold, chosen), chosen)
    for who, rights in every.items():
        out["held_out_paradigms"][who] = mean(rights[people:], groups=owner).to_json()
        out.setdefault("gold", {})[who] = mean(rights[:people]).to_json()
    mine = np.array(agreement(table["reward model"], data.choices))
    out["reward model minus"] = {
        who: clustered((mine - agreement(table[who], data.choices)).tolist(), data.choices) for who in base["rights"]
    } | {"chance": clustered((mine - 0.5).tolist(), data.choices)}
    each = [dict(zip(pairs[:people], r["rights"])) for r in found]
    out["over seeds"] = over_seeds([float(np.mean(agreement(r, data.choices))) for r in each]).to_json()
    out["held out"] = sorted(data.held_out)
    return out


def brief(summary: dict[str, Any] | None) -> dict[str, Any]:
    """The summary of (d) without what is long."""
    return {k: v for k, v in (summary or {}).items() if k not in ("curves", "samples")}


def draw_sentiment(summary: dict[str, Any], file: Path) -> None:
    """Reward and gold score against KL, a thin line for each seed; and both judges before and after."""
    figure = Figure(figsize=(7.2, 2.9), dpi=90, layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, curve in enumerate(summary["curves"]):
        smooth = {k: np.convolve([p[k] for p in curve], np.ones(5) / 5, "valid") for k in ("kl", "reward", "gold")}
        for name, label, colour in (("reward", "reward (proxy; no end: −1)", BLUE), ("gold", "gold judge", RED)):
            left.plot(smooth["kl"], smooth[name], color=colour, linewidth=1.1, label=None if number else label)
    left.set_xlabel("KL from the base, nats per continuation")
    left.set_ylabel("score (sd of real reviews)")
    left.legend(frameon=False, fontsize=8)
    labels = {"proxy": "proxy", "gold": "gold\n(other half)", "words": "bag of words\n(other half)"}
    for number, judge in enumerate(JUDGES):
        for shift, when, colour in ((-0.17, "before", GREY), (0.17, "after", RED)):
            e = summary[when]["positive"][judge]
            error = [[e["value"] - (e["low"] or 0)], [(e["high"] or 1) - e["value"]]]
            right.bar(number + shift, e["value"], 0.32, color=colour, label=None if number else f"{when} PPO")
            right.errorbar(number + shift, e["value"], yerr=error, color="black", linewidth=1, capsize=3)
    right.set_xticks(range(len(JUDGES)), [labels[j] for j in JUDGES])
    right.set_ylabel("share judged positive")
    right.set_ylim(0, 1)
    right.legend(frameon=False, fontsize=8, loc="upper right", ncols=2)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)


def draw_choices(summary: dict[str, Any], file: Path) -> None:
    """Accuracy on people's choices with intervals, for seen and unseen paradigms, beside what people allow."""
    figure = Figure(figsize=(7.2, 2.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    people = summary["people"]
    names = [
        n for n in ("reward model", "bag of words", "base, sum", "base, per token", "gold label") if n in people["all"]
    ]
    for shift, part, colour, marker in (
        (-0.2, "all", "black", "o"),
        (0, "seen paradigms", BLUE, "s"),
        (0.2, "unseen paradigms", RED, "^"),
    ):
        for number, who in enumerate(names):
            e = people[part][who]
            axes.plot([e["low"], e["high"]], [number + shift] * 2, color=colour, linewidth=1.4)
            axes.plot(e["value"], number + shift, marker, color=colour, markersize=5, label=None if number else part)
    axes.axvline(CEILING, color=GREY, linestyle="--", linewidth=1)
    axes.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("share of people's choices foretold (dotted: chance; dashed: agreement with the gold label)")
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
