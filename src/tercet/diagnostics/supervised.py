"""The doctor's checks of pretraining, sft, reward models and preference methods, from a run's records."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from statistics import fmean, pstdev
from typing import Any

from tercet.diagnostics.findings import INF, Band, Finding, Records, banded, judged, late
from tercet.posttraining.preference.stage import WITH_REFERENCE
from tercet.posttraining.preference.train import chosen_fall

# one line per number and its bands is easier to compare than one argument per line
BANDS = (
    Band("reward_margin", "chosen reward − rejected reward", "above 0", (0.0, INF), (0.0, INF),
         "The policy prefers the rejected answers. Check which column is the chosen one, then lower --lr"),
    Band("accuracy", "share of training pairs in the right order", "above 0.6", (0.6, INF), (0.4, INF),
         "The pairs are hardly learned. Raise --steps or --lr. Below 0.4, chosen and rejected may be swapped"),
)  # fmt: skip


# -- supervised stages ------------------------------------------------------------------------------------------------


def check_loss(r: Records) -> list[Finding]:
    """Check whether the loss fell, stayed down, and was still falling at the end."""
    x = r.series("loss")
    k = max(3, len(x) // 10)
    if len(x) < 10:
        return []
    start, end = fmean(x[:k]), fmean(x[-k:])
    lowest = min(fmean(x[i : i + k]) for i in range(len(x) - k + 1))
    back = (end - lowest) / max(start - lowest, 0.01 * abs(start))  # 0: at its lowest, 1: where it began
    advice = "Hardly anything is learned. Raise --lr, and check the data"
    if back > 0.5:
        advice = "Training diverges. Lower --lr"
    found = f"{start:.3f} to {end:.3f}, lowest {lowest:.3f}"
    limits = 0.5 if end < 0.99 * start else -1.0, 0.7 if lowest < 0.9 * start else 1.2
    out = [judged("loss", back, "falling", advice, look=(-INF, limits[0]), wrong=(-INF, limits[1]), found=found)]
    if len(x) >= 40 and start > end:
        third, fourth = x[len(x) // 2 : -len(x) // 4], x[-len(x) // 4 :]
        noise = math.hypot(pstdev(third), pstdev(fourth)) / math.sqrt(len(fourth))
        most = (fmean(third) - fmean(fourth) + 2 * noise) / (start - end)  # the upper end of what it may have been
        advice = "The loss is flat in the second half of the run. Use fewer --steps, or a higher --lr"
        name = "share of the fall in the last quarter of the steps"
        out.append(judged(name, most, "above 0.01", advice, look=(0.01, INF)))
    return out


def check_heldout(r: Records) -> list[Finding]:
    """Check that the loss on held-out rows fell too, and did not rise again."""
    x = r.series("heldout")
    if len(x) < 2:
        return []
    change = f"{x[0]:.3f} to {x[-1]:.3f}, lowest {min(x):.3f}"
    advice = "It is worse than before training. Lower --lr or --steps, or hold out rows that are like the training rows"
    name = "held-out loss / before training"
    out = [judged(name, x[-1] / x[0], "below 1", advice, look=(0, 1), wrong=(0, 1.02), found=change)]
    advice = "The model learns the training rows by heart. Use fewer --steps, a lower --lr, more data, or LoRA"
    out.append(judged("held-out loss / its lowest", x[-1] / min(x), "below 1.02", advice, look=(0, 1.02)))
    if r.run.manifest["verb"] == "sft":  # in the same unit as the training loss
        gap = x[-1] - fmean(late(r.series("loss")) or [x[-1]])
        out.append(judged("held-out loss − training loss", gap, "below 0.5 nats", advice, look=(-INF, 0.5)))
    return out


def check_answers_end(r: Records) -> list[Finding]:
    """Check that a tuned model ends its answers, if the run measured it."""
    x = r.series("finished")
    if len(x) < 2:
        return []
    advice = "The model does not stop in a chat. Use more --steps, and see the check of end tokens in this list"
    return [judged("share of answers that end by themselves", x[-1], "near 1", advice, look=(0.8, INF))]


# -- preferences ------------------------------------------------------------------------------------------------------


def check_order(r: Records) -> list[Finding]:
    """Check that held-out pairs come out in the right order, and more often than by length alone."""
    right, longer = r.run.manifest.get("accuracy"), r.run.manifest.get("longer_wins")
    if right is None:
        x = r.series("heldout_accuracy")
        advice = "Nothing is learned yet. Wait for more steps, or use more --steps"
        return [judged("held-out accuracy", x[-1], "above 0.5", advice, look=(0.5, 1.0))] if x else []
    low, high = right["low"], right["high"]
    found = f"{right['value']:.3f}" + ("" if low is None else f" [{low:.3f}, {high:.3f}]")
    verdict, advice = "ok", ""
    if high is not None and high < 0.5:
        verdict, advice = (
            "wrong",
            (
                "The worse answer wins, so chosen and rejected look swapped. Check which column is the chosen one, and "
                "that rank 1 is the best"
            ),
        )
    elif low is None or low <= 0.5:
        verdict, advice = "look", "It cannot be told from guessing. Use more comparisons or more --steps"
    out = [Finding("held-out accuracy", right["value"], found, "above 0.5", verdict, advice)]
    if longer is not None:
        advice = "Always taking the longer answer does as well, so the model may have learned nothing but length"
        gain = right["value"] - longer["value"]
        found = f"{right['value']:.3f} against {longer['value']:.3f}"
        name = "accuracy against always taking the longer answer"
        out.append(judged(name, gain, "above it", advice, look=(1e-9, INF), found=found))
    return out


def check_reward_model(r: Records) -> list[Finding]:
    """Check a reward model's zero point, its preference for long answers, and its calibration."""
    out = []
    if (mean := r.run.manifest.get("demonstrations_mean")) is not None:
        advice = "The bias in the checkpoint does not fit these demonstrations. Train again"
        out.append(judged("mean score of the demonstrations", mean, "0", advice, look=(-0.05, 0.05), wrong=(-0.5, 0.5)))
    file = r.run.path / "calibration.json"
    if file.is_file():
        try:
            calibration: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            ours, theirs = calibration["prefers_longer"], calibration["annotator_prefers_longer"]
            error = calibration["calibration_error"]
        except (OSError, ValueError, KeyError, TypeError) as damage:
            found = f"not readable: {type(damage).__name__}: {damage}"
            return [*out, Finding(file.name, math.nan, found, "readable", "wrong", "The file is damaged. Train again")]
        if ours and theirs:
            advice = (
                "RL will make answers long. Add comparisons in which the shorter answer is better, or penalise length "
                "in the reward"
            )
            name, excess = "preference for longer answers, beyond the annotators'", ours["value"] - theirs["value"]
            out.append(judged(name, excess, "below 0.15", advice, look=(-INF, 0.15)))
        advice = "Its probabilities cannot be trusted. Use fewer --steps, more comparisons, or several reward models"
        out.append(judged("calibration error", error["value"], "below 0.15", advice, look=(0, 0.15)))
    return out


def check_preferences(r: Records) -> list[Finding]:
    """Check that training started at the reference, and that chosen answers did not become less likely."""
    out, logp = banded(r, BANDS), r.series("chosen_logp")
    first = [abs(x) for n in ("chosen_reward", "rejected_reward") if (x := r.first(n)) is not None]
    if first and r.config.get("loss") in WITH_REFERENCE:
        limit = 1e-3 if r.config.get("precision", "float32") == "float32" else 0.1
        advice = (
            "Policy and reference must be one model before the first step. Delete reference.safetensors and train again"
        )
        out.append(judged("log-ratio to the reference at step 1", max(first), "0", advice, wrong=(0, limit)))
    if len(logp) >= 20:
        fall = chosen_fall(logp)
        start, now = fall or (fmean(logp[:10]), fmean(logp[-10:]))
        advice = (
            "The margin grows because the model unlearns the chosen answers. Use a larger --beta, a lower --lr, fewer "
            "--steps, or --loss orpo"
        )
        name, found = "log-probability of the chosen answers", f"{start:.1f} to {now:.1f} nats"
        look, wrong = (0 if fall else -INF, INF), (-abs(start) - 1, INF)
        out.append(judged(name, now - start, "not falling", advice, look=look, wrong=wrong, found=found))
    return out


Check = Callable[[Records], list[Finding]]
SUPERVISED: tuple[Check, ...] = (check_loss, check_heldout)
SFT = (*SUPERVISED, check_answers_end)
REWARD = (*SUPERVISED, check_order, check_reward_model)
PREFERENCES = (*SUPERVISED, check_order, check_preferences)
