"""The claims of the demo, each checked on the demo's own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tercet.reporting.blocks import plural
from tercet.reporting.claims import Claim
from tercet.statistics.intervals import Estimate, proportion
from tercet.training.run import Run


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _by_shots(rows: Sequence[dict[str, Any]]) -> dict[int, Estimate]:
    """Return accuracy by number of examples with the first template, without the questions that cannot be answered."""
    rows = [r for r in rows if r["form"] == rows[0]["form"] and r["ability"] not in ("all", "unknown")]
    out = {}
    for shots in sorted({r["shots"] for r in rows}):
        parts = [r["accuracy"] for r in rows if r["shots"] == shots]
        out[shots] = proportion(round(sum(a["value"] * a["n"] for a in parts)), sum(a["n"] for a in parts))
    return out


def demo_claims(
    baselines: dict[str, Any],
    prompts: Sequence[dict[str, Any]],
    tuned: Run,
    reward: Run,
    aligned: Sequence[Run],
    scores: dict[str, Any],
) -> list[Claim]:
    """Return the claims on pretraining, prompting, tuning, the reward model and PPO, in this order.

    `baselines`, `prompts` and `scores` are the contents of baselines.json, prompting.json and scores.json.
    """
    sources = baselines["sources"].values()
    names = ("model", "unigram", "bigram", "trigram", "xz")
    bits = {name: sum(row[name] for row in sources) / len(sources) for name in names}
    beaten = sum(row["model"] < min(row[n] for n in names[1:4]) for row in sources)
    shots = _by_shots(prompts)
    before, after = (tuned.metrics("exact_match")[i] for i in (0, -1))
    accuracy, longer = reward.manifest["accuracy"], reward.manifest["longer_wins"]
    offset = reward.manifest["demonstrations_mean"]
    answered = [f"{plural(count, 'example')} {value}" for count, value in shots.items()]
    verbs = {row["verb"]: row for row in reversed(scores["models"].values())}  # of two PPO runs the first
    difference = verbs["ppo"]["against"]["rubric"]["difference"]
    heldout = [[row["heldout"] for row in run.metrics("heldout")] for run in aligned]
    rise, without = (100 * (values[-1] / values[0] - 1) for values in heldout)
    return [
        Claim(
            "The base model predicts text better than n-gram models of the same tokens.",
            bits["model"] < min(bits[name] for name in names[1:4]),
            f"bits per byte, mean of the sources: {', '.join(f'{name} {value:.3f}' for name, value in bits.items())}; "
            f"better on {beaten} of {len(sources)} sources",
        ),
        Claim(
            "The base model answers more than 5 % of the questions in few-shot prompts.",
            shots[max(shots)].low > 0.05,
            f"accuracy with {', '.join(answered)} (without questions whose answer is 'I do not know')",
        ),
        Claim(
            "Instruction tuning teaches the model to answer messages and to end its answers.",
            after["exact_match"] > before["exact_match"] and after["finished"] > before["finished"],
            f"exact match {before['exact_match']:.3f} → {after['exact_match']:.3f}, "
            f"answers that it ends {before['finished']:.3f} → {after['finished']:.3f}",
        ),
        Claim(
            "The reward model agrees with held-out rankings more often than the rule 'longer is better'.",
            accuracy["low"] > longer["high"],
            f"accuracy {_interval(accuracy)} against {_interval(longer)}",
        ),
        Claim(
            "The mean reward of the demonstrations is 0.",
            abs(offset) < 1e-3,
            f"mean reward {offset:.1e}",
        ),
        Claim(
            "PPO improves the answers to held-out questions, scored by the rubric.",
            difference["low"] > 0,
            f"mean difference from SFT per question: {_interval(difference)}",
        ),
        Claim(
            "PPO raises held-out bits per byte by at most 2 %.",
            rise <= 2.0,
            f"change {rise:+.1f} %; without the pretraining term {without:+.1f} %",
        ),
    ]
