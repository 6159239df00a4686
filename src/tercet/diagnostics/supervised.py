"""The doctor's checks of the supervised stages and of preferences, from a run's records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

from tercet.diagnostics.findings import INF, Band, Finding, Records, banded, judged, late
from tercet.posttraining.preference.stage import WITH_REFERENCE
from tercet.posttraining.preference.train import chosen_fall

BANDS = (
    Band("reward_margin", "chosen reward − rejected reward", "above 0", (0.0, INF), (0.0, INF),
         "the policy prefers the rejected answers: check which column is chosen, then lower --lr"),
    Band("accuracy", "training pairs in the right order", "above 0.6", (0.6, INF), (0.4, INF),
         "the pairs are hardly learnt: more --steps, a higher --lr; below 0.4 chosen and rejected may be swapped"),
)  # fmt: skip


# -- supervised stages ------------------------------------------------------------------------------------------------


def check_loss(r: Records) -> list[Finding]:
    """Whether the loss fell, stayed down, and was still falling."""
    x = r.series("loss")
    k = max(3, len(x) // 10)
    if len(x) < 10:
        return []
    start, end = fmean(x[:k]), fmean(x[-k:])
    lowest = min(fmean(x[i : i + k]) for i in range(len(x) - k + 1))
    back = (end - lowest) / max(start - lowest, 0.01 * abs(start))  # 0: at its lowest, 1: where it began
    advice = (
        "training diverges: lower --lr" if back > 0.5 else "hardly anything is learnt: a higher --lr; check the data"
    )
    found = f"{start:.3f} to {end:.3f}, lowest {lowest:.3f}"
    limits = 0.5 if end < 0.99 * start else -1.0, 0.7 if lowest < 0.9 * start else 1.2
    out = [judged("loss", back, "falls", advice, look=(-INF, limits[0]), wrong=(-INF, limits[1]), found=found)]
    if len(x) >= 40 and start > end:
        third, fourth = x[len(x) // 2 : -len(x) // 4], x[-len(x) // 4 :]
        noise = math.hypot(pstdev(third), pstdev(fourth)) / math.sqrt(len(fourth))
        most = (fmean(third) - fmean(fourth) + 2 * noise) / (start - end)  # it may have been as much as that
        advice = "flat in the second half of the run: fewer --steps would do, or a higher --lr"
        out.append(judged("share of the fall in the last quarter", most, "above 0.01", advice, look=(0.01, INF)))
    return out


def check_heldout(r: Records) -> list[Finding]:
    """Whether what was learnt holds elsewhere."""
    x = r.series("heldout")
    if len(x) < 2:
        return []
    change = f"{x[0]:.3f} to {x[-1]:.3f}, lowest {min(x):.3f}"
    advice = "worse than before training: lower --lr, fewer --steps, or held-out rows that are like the training rows"
    out = [
        judged("held-out loss / before", x[-1] / x[0], "below 1", advice, look=(0, 1), wrong=(0, 1.02), found=change)
    ]
    advice = "the model learns by heart: fewer --steps, a lower --lr, more data, or LoRA"
    out.append(judged("held-out loss / its lowest", x[-1] / min(x), "below 1.02", advice, look=(0, 1.02)))
    if r.run.manifest["verb"] == "sft":  # in the same unit as the training loss
        gap = x[-1] - fmean(late(r.series("loss")) or [x[-1]])
        out.append(judged("held-out loss − training loss", gap, "below 0.5 nats", advice, look=(-INF, 0.5)))
    return out


def check_answers_end(r: Records) -> list[Finding]:
    """Whether a tuned model ends its answers, where the run has asked it."""
    x = r.series("finished")
    advice = "chat will not stop: tune longer, and look at the end tokens that are trained on (below)"
    return [judged("answers that end themselves", x[-1], "near 1", advice, look=(0.8, INF))] if len(x) > 1 else []


# -- preferences ------------------------------------------------------------------------------------------------------


def check_order(r: Records) -> list[Finding]:
    """Whether held-out pairs come out in the right order, and more often than by length alone."""
    right, longer = r.run.manifest.get("accuracy"), r.run.manifest.get("longer_wins")
    if right is None:
        x = r.series("heldout_accuracy")
        return (
            [judged("held-out accuracy", x[-1], "above 0.5", "too early, or nothing learnt", look=(0.5, 1.0))]
            if x
            else []
        )
    low, high = right["low"], right["high"]
    found = f"{right['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    advice = "not told from guessing: more comparisons, more --steps"
    if high is not None and high < 0.5:
        advice = "the wrong answer wins: chosen and rejected look swapped; check which column is which, and that rank 1 is the best"
    verdict = "wrong" if high is not None and high < 0.5 else "look" if low is None or low <= 0.5 else "ok"
    out = [Finding("held-out accuracy", right["value"], found, "above 0.5", verdict, "" if verdict == "ok" else advice)]
    if longer is not None:
        advice = "always taking the longer answer does as well: the model may know length and nothing else"
        gain = right["value"] - longer["value"]
        found = f"{right['value']:.3f} against {longer['value']:.3f}"
        out.append(judged("accuracy against 'the longer one'", gain, "above it", advice, look=(1e-9, INF), found=found))
    return out


def check_reward_model(r: Records) -> list[Finding]:
    """What the reward model is worth as a judge: where its zero lies, its taste for length, its certainty."""
    out = []
    if (mean := r.run.manifest.get("demonstrations_mean")) is not None:
        advice = "the bias of the checkpoint is not that of these demonstrations: train it again"
        out.append(judged("mean score of the demonstrations", mean, "0", advice, look=(-0.05, 0.05), wrong=(-0.5, 0.5)))
    file = r.run.path / "calibration.json"
    if file.is_file():
        try:
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            ours, theirs, error = (
                found[n] for n in ("prefers_longer", "annotator_prefers_longer", "calibration_error")
            )
        except (OSError, ValueError, KeyError, TypeError) as damage:
            return [
                *out,
                Finding(
                    "calibration.json",
                    math.nan,
                    f"{type(damage).__name__}: {damage}",
                    "can be read",
                    "wrong",
                    "damaged: train again",
                ),
            ]
        if ours and theirs:
            advice = "RL will make answers long: give comparisons in which the shorter one is better, or punish length"
            out.append(judged("preference for the longer, beyond people's", ours["value"] - theirs["value"], "below 0.15",
                              advice, look=(-INF, 0.15)))  # fmt: skip
        advice = "its certainty is not to be trusted: fewer --steps, more comparisons, or an ensemble"
        out.append(judged("calibration error", error["value"], "below 0.15", advice, look=(0, 0.15)))
    return out


def check_preferences(r: Records) -> list[Finding]:
    """Whether training began at the reference, and whether the chosen answers became less likely."""
    out, logp = banded(r, BANDS), r.series("chosen_logp")
    first = [abs(x) for n in ("chosen_reward", "rejected_reward") if (x := r.first(n)) is not None]
    if first and r.config.get("loss") in WITH_REFERENCE:
        limit = 1e-3 if r.config.get("precision", "float32") == "float32" else 0.1
        advice = (
            "policy and reference must be one model before the first step: remove reference.safetensors and train again"
        )
        out.append(judged("log-ratio to the reference at step 1", max(first), "0", advice, wrong=(0, limit)))
    if len(logp) >= 20:
        start, now = chosen_fall(logp) or (fmean(logp[:10]), fmean(logp[-10:]))
        advice = "the margin grows by unlearning what people chose: a larger --beta, lower --lr, fewer --steps, or --loss orpo"
        fell, found = chosen_fall(logp) is not None, f"{start:.1f} to {now:.1f} nats"
        out.append(judged("log-probability of the chosen", now - start, "does not fall", advice, found=found,
                          look=(0 if fell else -INF, INF), wrong=(-abs(start) - 1, INF)))  # fmt: skip
    return out


Check = Callable[[Records], list[Finding]]
SUPERVISED: tuple[Check, ...] = (check_loss, check_heldout)
SFT = (*SUPERVISED, check_answers_end)
REWARD = (*SUPERVISED, check_order, check_reward_model)
PREFERENCES = (*SUPERVISED, check_order, check_preferences)
