"""What the demo claims of each stage, checked on its own numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tercet.reporting.claims import Claim
from tercet.statistics.intervals import Estimate, proportion
from tercet.training.run import Run


def _interval(value: dict[str, Any]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _answered(asked: Sequence[dict[str, Any]]) -> dict[int, Estimate]:
    """Accuracy by number of examples over the abilities of the first form, without the one whose answer never changes."""
    rows = [r for r in asked if r["form"] == asked[0]["form"] and r["ability"] not in ("all", "unknown")]
    out = {}
    for shots in sorted({r["shots"] for r in rows}):
        found = [r["accuracy"] for r in rows if r["shots"] == shots]
        out[shots] = proportion(round(sum(a["value"] * a["n"] for a in found)), sum(a["n"] for a in found))
    return out


def claims(
    below: dict[str, Any],
    asked: Sequence[dict[str, Any]],
    tuned: Run,
    judge: Run,
    aligned: Sequence[Run],
    scores: dict[str, Any],
) -> list[Claim]:
    """The claims of stages 2 to 7, in their order."""
    models = {m["verb"] + ("" if i < 3 else " γ=0"): m for i, m in enumerate(scores["models"].values())}
    mean = {
        k: sum(row[k] for row in below["sources"].values()) / len(below["sources"])
        for k in ("model", "unigram", "bigram", "trigram", "xz")
    }
    shots = _answered(asked)
    beaten = [s for s, r in below["sources"].items() if r["model"] < min(r["unigram"], r["bigram"], r["trigram"])]
    before, after = (tuned.metrics("exact_match")[i] for i in (0, -1))
    accuracy, longer = judge.manifest["accuracy"], judge.manifest["longer_wins"]
    bits = [[row["heldout"] for row in run.metrics("heldout")] for run in aligned]
    difference = models["ppo"]["against"]["rubric"]["difference"]
    rise = [100 * (b[-1] / b[0] - 1) for b in bits]
    most = max(shots)
    return [
        Claim("pretraining beats n-gram models of the same tokens, in bits per byte (mean over sources)",
              mean["model"] < min(mean["unigram"], mean["bigram"], mean["trigram"]),
              ", ".join(f"{k} {v:.3f}" for k, v in mean.items()) + f"; on {len(beaten)} of {len(below['sources'])} sources by itself"),
        Claim("the base model answers by completion alone (questions whose answer is not 'I do not know')", shots[most].low > 0.05,
              ", ".join(f"{s} examples {e}" for s, e in sorted(shots.items()))),
        Claim("instruction tuning makes it answer messages, and end its answers",
              after["exact_match"] > before["exact_match"] and after["finished"] > before["finished"],
              f"exact match {before['exact_match']:.3f} → {after['exact_match']:.3f}, finished {before['finished']:.3f} → {after['finished']:.3f}"),
        Claim("the reward model agrees with held-out rankings more often than 'longer is better'", accuracy["low"] > longer["high"],
              f"{_interval(accuracy)} against {_interval(longer)}"),
        Claim("the reward is scaled so that demonstrations score 0 on average", abs(judge.manifest["demonstrations_mean"]) < 1e-3, f"{judge.manifest['demonstrations_mean']:.1e}"),
        Claim("PPO beats SFT on the gold rubric on held-out prompts (paired)", difference["low"] > 0, _interval(difference)),
        Claim("held-out bits per byte rise by at most 2 % in PPO", rise[0] <= 2.0, f"{rise[0]:+.1f} % (without the pretraining term {rise[1]:+.1f} %)"),
    ]  # fmt: skip
