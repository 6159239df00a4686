"""The doctor's checks of reinforcement learning, from a run's records."""

from __future__ import annotations

import math
from statistics import fmean, pstdev

from tercet.diagnostics.findings import INF, Band, Finding, Records, banded, judged, judged_kl, late
from tercet.evaluation.scoring.score_files import logged, scorer_label

EARLY = 20  # steps before which a critic is not blamed

BANDS = (
    Band("finished", "answers that end themselves", "near 1", (0.8, INF), (0.02, INF),
         "answers are cut off at max_new_tokens and score missing_eos_score: tune longer before RL, raise max_new_tokens, and check "
         "that the end token is trained on (`tercet doctor` on the sft run)"),
    Band("equal_groups", "groups whose scores are all equal", "below 0.7", (-INF, 0.7), (-INF, 0.99),
         high="such groups teach nothing: take prompts that are neither too easy nor too hard, a finer reward "
         "(f1 for exact_match), more answers to a prompt, or --method dapo, which draws other prompts"),
    Band("advantage_std", "spread of the advantages", "above 0", (1e-4, INF), (1e-6, INF),
         "all advantages are equal, so that there is no gradient: look at the rewards of samples, every answer scores alike"),
    Band("kl_k3", "KL to the reference, k3", "0 or more", (-1e-6, INF), (-1e-6, INF),
         "k3 cannot be negative: the log-probabilities of policy and reference are not of the same tokens"),
    Band("clip_fraction", "ratios that are clipped", "below 0.3", (-INF, 0.3), (-INF, 0.5),
         high="the policy goes too far on one batch: lower --lr, fewer --epochs or --minibatches, larger --batch-size"),
    Band("ptx_gradient_ratio", "pretraining gradient / RL gradient", "0.03 to 30", (0.03, 30.0), (1e-3, 300.0),
         "the pretraining term does nothing: raise --gamma", "the pretraining term drowns the reward: lower --gamma"),
    Band("explained_variance", "variance that the critic explains", "0 to 1", (0.0, INF), (-1.0, INF),
         "the critic is worse than a constant: raise --critic-lr, more --epochs, or check that it starts from the reward model"),
)  # fmt: skip


def check_bands(r: Records) -> list[Finding]:
    """Every number that is judged as it stands."""
    often = r.config.get("method") in ("gspo", "cispo")  # their narrow or one-sided limits are meant to cut often
    mild = ("explained_variance",) if r.done < EARLY else ()
    return banded(r, [band for band in BANDS if not (often and band.metric == "clip_fraction")], mild)


def check_ratio(r: Records) -> list[Finding]:
    """The first ratio of every step is 1, and the sampler's log-probabilities are the trainer's where it does not lag."""
    out = []
    if ratios := r.series("first_ratio"):
        worst = max(ratios, key=lambda x: abs(x - 1))
        advice = "π_old is not the policy before the step: temperature, mask or positions differ between sampling and training"
        out.append(
            judged("ratio before the first update", worst, "1", advice, look=(0.9999, 1.0001), wrong=(0.999, 1.001))
        )
    every = r.config.get("sync_every", 1)
    fresh = r.series("first_sampler_gap", lambda step: (step - 1) % every == 0)
    if fresh:
        advice = "sampler and trainer do not compute the same model: temperature, cache, positions, precision"
        out.append(
            judged(
                "sampler − trainer, log-probability", max(fresh), "below 1e-4", advice, look=(0, 1e-4), wrong=(0, 1e-3)
            )
        )
    if stale := r.series("first_sampler_gap", lambda step: (step - 1) % every != 0):
        advice = "the rollouts are too old: lower --sync-every or --lr"
        out.append(
            judged("log-probability gap of stale rollouts", fmean(late(stale)), "below 0.2", advice, look=(0, 0.2))
        )
    return out


def check_kl(r: Records) -> list[Finding]:
    """KL is 0 at the start and never negative but for noise; far from the reference the reward is not to be trusted."""
    out, first, k1 = [], r.first("kl_k3"), late(r.series("kl"))
    if first is not None:
        advice = "the reference is not the model that training began from"
        out.append(judged("KL to the reference at step 1", first, "0", advice, wrong=(-1e-3, 1e-3)))
    if k1:
        out.append(judged_kl("KL to the reference, k1", fmean(k1), pstdev(k1) / math.sqrt(len(k1))))
    if k1 and (target := r.config.get("target_kl")):
        ratio, advice = (
            fmean(k1) / target,
            "β has not brought the KL there: more --steps, a shorter --kl-horizon, another --beta",
        )
        out.append(judged("KL / target_kl", ratio, "0.5 to 2", advice, look=(0.5, 2.0)))
    return out


def check_learning(r: Records) -> list[Finding]:
    """Whether the reward rises, and the true quality with it; whether the policy still explores."""
    reward, entropy = r.trend("reward"), r.series("entropy")
    scores = {name: r.trend(key) for key, name in logged({key: None for row in r.rows for key in row}).items()}
    out, rises = [], reward is not None and reward[1] - reward[0] > 2 * reward[2]
    if reward is not None:
        advice = "it has not risen beyond noise: more --steps, a larger --batch-size or --group-size, a higher --lr, a lower --beta"
        floor = -max(0.02, 3 * reward[2])
        if reward[1] - reward[0] < floor:
            advice = "training makes the policy worse: a lower --lr (in a new run), fewer --epochs, a higher --beta"
        found = f"{reward[0]:.3f} to {reward[1]:.3f}"
        out.append(
            judged(
                "reward",
                reward[1] - reward[0],
                "rises",
                advice,
                look=(0 if rises else INF, INF),
                wrong=(floor, INF),
                found=found,
            )
        )
    for name, score in scores.items():
        if score is None:
            continue
        fall = score[1] - score[0]
        advice = (
            "over-optimisation: the reward is being gamed; raise --beta, stop earlier, or train a better reward model"
            if rises
            else "the answers get worse while the reward does not rise: a lower --lr, a higher --beta"
        )
        limit = -max(0.02, 3 * score[2])
        found = f"{score[0]:.3f} to {score[1]:.3f}"
        out.append(
            judged(
                f"score by {scorer_label(name)}",
                fall,
                "does not fall",
                advice,
                look=(limit, INF),
                wrong=(limit, INF),
                found=found,
            )
        )
    if entropy:
        share, advice = (
            fmean(late(entropy)) / max(entropy[0], 1e-9),
            "the policy has stopped trying other answers: lower --lr, raise --beta, or dapo's clip_high",
        )
        out.append(
            judged(
                "entropy / at the start",
                share,
                "above 0.3",
                advice,
                look=(0.3, INF),
                wrong=(-INF if rises else 0.05, INF),
            )
        )
    return out


def check_advantages(r: Records) -> list[Finding]:
    """Whether the advantages lie around 0."""
    mean, std = late(r.series("advantage_mean")), late(r.series("advantage_std"))
    if not mean or not fmean(std) > 1e-6:
        return []
    ratio, advice = abs(fmean(mean)) / fmean(std), "the baseline is off: train the critic more (--critic-lr, --epochs)"
    return [judged("mean advantage / its spread", ratio, "below 1", advice, look=(0, 1))]


def check_tax(r: Records) -> list[Finding]:
    """What alignment costs on held-out text."""
    x = r.series("heldout")
    advice = "the policy forgets what it knew: raise --gamma (with --pretrain-data) or --beta, lower --lr"
    found = f"{x[0]:.3f} to {x[-1]:.3f} bits per byte" if x else ""
    normal = "below 1.05"
    return (
        [judged("held-out text / before", x[-1] / x[0], normal, advice, look=(0, 1.05), wrong=(0, 1.5), found=found)]
        if len(x) > 1
        else []
    )


def check_time(r: Records) -> list[Finding]:
    """Where a step's time goes."""
    seconds = {n: fmean(r.series(n)) for n in {n: None for row in r.rows for n in row if n.startswith("seconds/")}}
    total = sum(seconds.values())
    found = ", ".join(f"{n.removeprefix('seconds/')} {s / total:.0%}" for n, s in seconds.items()) if total else ""
    return [judged("seconds of a step", total, "for information", found=f"{total:.2g}: {found}")] if total else []


CHECKS = (check_ratio, check_kl, check_bands, check_advantages, check_learning, check_tax, check_time)
