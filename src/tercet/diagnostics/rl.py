"""The doctor's checks of reinforcement learning, from a run's records."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

from tercet.diagnostics.findings import INF, SAMPLER_ADVICE, Band, Finding, Records, banded, judged, judged_kl, late
from tercet.evaluation.scoring.score_files import logged, scorer_label

EARLY = 20  # before this step a poor critic is not wrong yet

# one line per number and its bands is easier to compare than one argument per line
BANDS = (
    Band("finished", "share of answers that end by themselves", "near 1", (0.8, INF), (0.02, INF),
         "Answers are cut off at --max-new-tokens and get the score of unfinished ones. Run more sft steps before RL, "
         "raise --max-new-tokens, and check with `tercet doctor` that the sft run trained on the end token"),
    Band("equal_groups", "share of groups whose scores are all equal", "below 0.7", (-INF, 0.7), (-INF, 0.99),
         high="Such groups teach nothing. Use prompts that are neither too easy nor too hard, a finer reward (f1, not "
         "exact_match), a larger --group-size, or --method dapo, which replaces such prompts"),
    Band("advantage_std", "standard deviation of the advantages", "above 0", (1e-4, INF), (1e-6, INF),
         "All advantages are equal, so there is no gradient. Every answer gets the same score; look at samples"),
    Band("kl_k3", "KL to the reference, by k3", "0 or more", (-1e-6, INF), (-1e-6, INF),
         "k3 cannot be negative. The log-probabilities of policy and reference are not of the same tokens"),
    Band("clip_fraction", "share of clipped ratios", "below 0.3", (-INF, 0.3), (-INF, 0.5),
         high="The policy moves too far on one batch. Lower --lr, --epochs or --minibatches, or raise --batch-size"),
    Band("ptx_gradient_ratio", "pretraining gradient / RL gradient", "0.03 to 30", (0.03, 30.0), (1e-3, 300.0),
         "The pretraining term has no effect. Raise --gamma",
         "The pretraining term drowns out the reward. Lower --gamma"),
    Band("explained_variance", "variance explained by the critic", "0 to 1", (0.0, INF), (-1.0, INF),
         "The critic is worse than a constant. Raise --critic-lr or --epochs, and start it from the reward model"),
)  # fmt: skip


def check_bands(r: Records) -> list[Finding]:
    """Check the recent median of every number in `BANDS`."""
    # gspo and cispo have narrow or one-sided limits that are meant to clip often
    clips_often = r.config.get("method") in ("gspo", "cispo")
    mild = ("explained_variance",) if r.done < EARLY else ()
    return banded(r, [band for band in BANDS if not (clips_often and band.metric == "clip_fraction")], mild)


def check_ratio(r: Records) -> list[Finding]:
    """Check that the ratio starts each step at 1, and that sampler and trainer agree on log-probabilities.

    They must agree closely where the sampler has the newest weights; where its weights are older, a gap is normal.
    """
    out = []
    if ratios := r.series("first_ratio"):
        worst = max(ratios, key=lambda x: abs(x - 1))
        advice = (
            "The old policy is not the policy before the step. Temperature, mask or positions differ between sampling "
            "and training"
        )
        name = "probability ratio before the first update"
        out.append(judged(name, worst, "1", advice, look=(0.9999, 1.0001), wrong=(0.999, 1.001)))
    every = r.config.get("sync_every", 1)
    if fresh := r.series("first_sampler_gap", lambda step: (step - 1) % every == 0):
        name = "log-probability, sampler − trainer"
        out.append(judged(name, max(fresh), "below 1e-4", SAMPLER_ADVICE, look=(0, 1e-4), wrong=(0, 1e-3)))
    if stale := r.series("first_sampler_gap", lambda step: (step - 1) % every != 0):
        advice = "The rollouts are too old. Lower --sync-every or --lr"
        name = "log-probability gap of stale rollouts"
        out.append(judged(name, fmean(late(stale)), "below 0.2", advice, look=(0, 0.2)))
    return out


def check_kl(r: Records) -> list[Finding]:
    """Check that the KL is 0 at the start, never negative beyond noise, and not too large."""
    out, first, k1 = [], r.first("kl_k3"), late(r.series("kl"))
    if first is not None:
        advice = "The reference is not the model from which training started"
        out.append(judged("KL to the reference at step 1", first, "0", advice, wrong=(-1e-3, 1e-3)))
    if k1:
        out.append(judged_kl("KL to the reference, by k1", fmean(k1), pstdev(k1) / math.sqrt(len(k1))))
    if k1 and (target := r.config.get("target_kl")):
        advice = "--target-kl has not been reached. Use more --steps, a shorter --kl-horizon, or another --beta"
        out.append(judged("KL / --target-kl", fmean(k1) / target, "0.5 to 2", advice, look=(0.5, 2.0)))
    return out


def check_learning(r: Records) -> list[Finding]:
    """Check that the reward rises, that other scores do not fall, and that the policy still explores."""
    reward, entropy = r.trend("reward"), r.series("entropy")
    scores = {name: r.trend(key) for key, name in logged({key: None for row in r.rows for key in row}).items()}
    out, rises = [], reward is not None and reward[1] - reward[0] > 2 * reward[2]
    if reward is not None:
        advice = (
            "It has not risen beyond noise. Use more --steps, a larger --batch-size or --group-size, a higher --lr, or "
            "a lower --beta"
        )
        gain, floor = reward[1] - reward[0], -max(0.02, 3 * reward[2])
        if gain < floor:
            advice = "Training makes the policy worse. Use a lower --lr, fewer --epochs or a higher --beta"
        look, wrong = (0 if rises else INF, INF), (floor, INF)
        out.append(judged("reward", gain, "rising", advice, look=look, wrong=wrong, found=_change(reward)))
    for name, score in scores.items():
        if score is None:
            continue
        advice = "The answers get worse and the reward does not rise. Use a lower --lr or a higher --beta"
        if rises:
            advice = (
                "The policy exploits the reward (over-optimisation). Raise --beta, use fewer --steps, or train a "
                "better reward model"
            )
        band = (-max(0.02, 3 * score[2]), INF)
        check, fall = f"score by {scorer_label(name)}", score[1] - score[0]
        out.append(judged(check, fall, "not falling", advice, look=band, wrong=band, found=_change(score)))
    if entropy:
        advice = "The policy has stopped trying other answers. Lower --lr, or raise --beta or dapo's --clip-high"
        share, wrong = fmean(late(entropy)) / max(entropy[0], 1e-9), (-INF if rises else 0.05, INF)
        out.append(judged("entropy / entropy at the start", share, "above 0.3", advice, look=(0.3, INF), wrong=wrong))
    return out


def _change(trend: tuple[float, float, float]) -> str:
    return f"{trend[0]:.3f} to {trend[1]:.3f}"


def check_advantages(r: Records) -> list[Finding]:
    """Check that the advantages lie around 0."""
    mean, std = late(r.series("advantage_mean")), late(r.series("advantage_std"))
    if not mean or not fmean(std) > 1e-6:
        return []
    ratio = abs(fmean(mean)) / fmean(std)
    advice = "The critic's baseline is off. Train the critic more, with a higher --critic-lr or more --epochs"
    return [judged("mean advantage / standard deviation", ratio, "below 1", advice, look=(0, 1))]


def check_tax(r: Records) -> list[Finding]:
    """Check that the policy has not become much worse on held-out text (the alignment tax)."""
    x = r.series("heldout")
    if len(x) < 2:
        return []
    advice = "The policy forgets what it knew. Raise --gamma (with --pretrain-data) or --beta, or lower --lr"
    name, found = "bits per byte of held-out text / before training", f"{x[0]:.3f} to {x[-1]:.3f} bits per byte"
    return [judged(name, x[-1] / x[0], "below 1.05", advice, look=(0, 1.05), wrong=(0, 1.5), found=found)]


def check_time(r: Records) -> list[Finding]:
    """Show how the time of a step is spent."""
    seconds = {n: fmean(r.series(n)) for n in {n: None for row in r.rows for n in row if n.startswith("seconds/")}}
    total = sum(seconds.values())
    if not total:
        return []
    shares = ", ".join(f"{n.removeprefix('seconds/')} {100 * s / total:.0f} %" for n, s in seconds.items())
    return [judged("time per step", total, "for information", found=f"{total:.2g} s: {shares}")]


CHECKS = (check_ratio, check_kl, check_bands, check_advantages, check_learning, check_tax, check_time)
