"""Group methods of RL: the answers to a prompt are each other's baseline. A method is data, not a trainer.

    method            advantage of an answer                    token weight  sum divided by   ratio
    grpo              (R − mean) / std of its group             1 / length    answers          token, clip 0.2
    dr_grpo           R − mean                                  1             answers · limit  token, clip 0.2
    dapo              (R − mean) / std; equal groups resampled  1             tokens           token, clip 0.2 / 0.28
    gspo              (R − mean) / std                          1 / length    answers          answer mean, 3e-4 / 4e-4
    cispo             (R − mean) / std                          1             tokens           clipped, no gradient
    rloo              R − mean of the others                    1 / length    answers          whole answer, clip 0.2
    reinforce++       rewards to go, whitened over the batch    1             tokens           token, clip 0.2
    expert_iteration  1 for the group's best, else 0            1             best tokens      none: likelihood
    online_dpo        best against worst: the DPO loss          -             groups           -

R is the score minus β · Σ (log π − log π_ref), or the score alone if the KL is in the loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.model.transformer import Transformer
from tercet.posttraining.rl.advantages import (
    by_group,
    centred,
    leave_one_out,
    place_rewards,
    standardised,
    to_go,
    totals,
    whiten,
)
from tercet.posttraining.rl.policy import Policy
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.rollouts import Rollouts, action_logprobs
from tercet.posttraining.rl.stage import GRPOConfig
from tercet.training.loader import BatchLoader


def of_answers(rollouts: Rollouts, advantage_N: Tensor) -> Rollouts:
    """Give every action of an answer the answer's advantage."""
    return replace(rollouts, advantages=advantage_N[:, None] * rollouts.action_mask)


def mean_per_answer(rollouts: Rollouts, config: GRPOConfig) -> Rollouts:
    """Weight tokens so that every answer counts once, and its tokens equally."""
    weights = rollouts.action_mask / rollouts.lengths()[:, None].to(rollouts.behaviour.dtype)
    return replace(rollouts, weights=weights, shares=torch.ones(len(weights), dtype=torch.float64))


def mean_per_token(rollouts: Rollouts, config: GRPOConfig) -> Rollouts:
    """Weight every token equally, so that long answers count more."""
    return replace(rollouts, shares=rollouts.lengths().double())


def over_the_limit(rollouts: Rollouts, config: GRPOConfig) -> Rollouts:
    """Weight every token equally, and divide the sum by answers times length limit (Liu et al. 2025)."""
    return replace(rollouts, shares=torch.full((len(rollouts.tokens),), float(config.max_new_tokens)))


def mean_of_the_best(rollouts: Rollouts, config: GRPOConfig) -> Rollouts:
    """Weight every token of the imitated answers equally."""
    assert rollouts.advantages is not None
    return replace(rollouts, shares=rollouts.advantages.sum(1, dtype=torch.float64))


def once_per_group(rollouts: Rollouts, config: GRPOConfig) -> Rollouts:
    """Divide the sum by the number of groups."""
    shares = torch.zeros(len(rollouts.tokens), dtype=torch.float64)
    shares[:: config.group_size] = 1.0
    return replace(rollouts, shares=shares)


def grpo_advantages(rollouts: Rollouts, beta: float) -> Rollouts:
    """Fill in GRPO's advantages (Shao et al. 2024, equation 3, outcome supervision), with the KL in the reward."""
    return of_answers(rollouts, standardised(by_group(totals(rollouts, beta), rollouts.group)).flatten())


def dr_grpo_advantages(rollouts: Rollouts, beta: float) -> Rollouts:
    """Fill in Dr. GRPO's advantages, which are not divided by the standard deviation (Liu et al. 2025)."""
    return of_answers(rollouts, centred(by_group(totals(rollouts, beta), rollouts.group)).flatten())


def rloo_advantages(rollouts: Rollouts, beta: float) -> Rollouts:
    """Fill in RLOO's leave-one-out advantages (Ahmadian et al. 2024, equation 8)."""
    return of_answers(rollouts, leave_one_out(by_group(totals(rollouts, beta), rollouts.group)).flatten())


def reinforce_pp_advantages(rollouts: Rollouts, beta: float) -> Rollouts:
    """Fill in REINFORCE++'s advantages: penalised rewards to go, whitened over the whole batch (Hu 2025)."""
    mask = rollouts.action_mask
    penalty = rollouts.kl() if beta > 0 else rollouts.behaviour.new_zeros(mask.shape)
    rewards = place_rewards(rollouts.rewards, penalty, mask, beta)
    return replace(rollouts, advantages=whiten(to_go(rewards, mask), mask))


def best_of_group(rollouts: Rollouts, beta: float) -> Rollouts:
    """Give the best answer of each group the advantage 1, and the others 0 (Anthony et al. 2017).

    Groups whose scores are all equal have no best answer. Of several best answers, the first is taken.
    """
    grouped, scores = by_group(totals(rollouts, beta), rollouts.group), by_group(rollouts.rewards, rollouts.group)
    # compare scores, not totals: with the penalty, rounding alone would make one of equal answers the best
    best = F.one_hot(grouped.argmax(1), grouped.shape[1]) * (scores.amax(1) > scores.amin(1))[:, None]
    return of_answers(rollouts, best.flatten().to(rollouts.behaviour.dtype))


def likelihood(model: Transformer, batch: Rollouts, config: GRPOConfig) -> tuple[Tensor, dict[str, float]]:
    """Return −Σ advantage · log π, the loss that imitates the selected answers, and its metrics."""
    logp, entropy = action_logprobs(model, batch, config.temperature)
    loss = -(batch.at_actions("advantages") * logp).double().sum()
    return loss, basic_metrics(loss, entropy)


def basic_metrics(loss: Tensor, entropy: Tensor) -> dict[str, float]:
    """Return the metrics that every policy loss logs, as sums over the actions; `entropy` is [A]."""
    summed = float(entropy.double().sum())
    return {"policy_loss": float(loss.detach()), "actions": float(len(entropy)), "entropy": summed}


def online_dpo_loss(model: Transformer, batch: Rollouts, config: GRPOConfig) -> tuple[Tensor, dict[str, float]]:
    """Return Σ over groups of −log σ(β · (log-ratio of the best answer − log-ratio of the worst)) (Guo et al. 2024).

    The log-ratio of an answer is log π − log π_ref. Groups whose scores are all equal do not count.
    """
    logp, entropy = action_logprobs(model, batch, config.temperature)
    beta = config.dpo_beta
    owner = batch.action_mask.nonzero()[:, 0]
    ratios = logp.new_zeros(len(batch.tokens)).index_add(0, owner, logp - batch.at_actions("ref_logp"))
    scores, grouped = by_group(batch.rewards, batch.group), by_group(ratios, batch.group)
    best, worst = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)
    margin = (grouped.gather(1, best) - grouped.gather(1, worst)).double()[:, 0]
    differ = (scores.amax(1) > scores.amin(1)).double()
    loss = -(differ * F.logsigmoid(beta * margin)).sum()
    accuracy = float(((margin > 0) * differ).sum().detach())
    summed_margin = float((beta * margin * differ).sum().detach())
    return loss, basic_metrics(loss, entropy) | {"dpo_accuracy": accuracy, "dpo_margin": summed_margin}


@dataclass(frozen=True)
class Recipe:
    """A method's definition: advantages, token weights, level and clip range of the ratio, or a separate loss."""

    advantages: Callable[[Rollouts, float], Rollouts]
    count: Callable[[Rollouts, GRPOConfig], Rollouts]
    clip: tuple[float, float] = (0.2, 0.2)
    level: str = "token"
    stop_gradient: bool = False
    loss: Callable[[Transformer, Rollouts, GRPOConfig], tuple[Tensor, dict[str, float]]] | None = None


RECIPES = {
    "grpo": Recipe(grpo_advantages, mean_per_answer),
    "dr_grpo": Recipe(dr_grpo_advantages, over_the_limit),
    "dapo": Recipe(grpo_advantages, mean_per_token, clip=(0.2, 0.28)),  # Yu et al. 2025, equation 8
    "gspo": Recipe(grpo_advantages, mean_per_answer, clip=(3e-4, 4e-4), level="answer_mean"),  # Zheng et al. 2025
    "cispo": Recipe(grpo_advantages, mean_per_token, clip=(1.0, 4.0), stop_gradient=True),  # MiniMax 2025, equation 4
    "rloo": Recipe(rloo_advantages, mean_per_answer, level="answer"),
    "reinforce++": Recipe(reinforce_pp_advantages, mean_per_token),
    "expert_iteration": Recipe(best_of_group, mean_of_the_best, loss=likelihood),
    "online_dpo": Recipe(lambda rollouts, beta: rollouts, once_per_group, loss=online_dpo_loss),
}


class GroupMethod:
    """The update of a group method: weighted advantages, then the optimizer steps that all methods share."""

    def __init__(self, config: GRPOConfig, reference: Transformer, text: BatchLoader | None = None) -> None:
        self.config, self.reference, self.recipe = config, reference, RECIPES[config.method]
        self.policy = Policy(config, reference, text)
        self.resample = config.resample if config.method == "dapo" else 0

    def prepare(self, rollouts: Rollouts, beta: float) -> Rollouts:
        """Fill in the advantages, weights and shares of the method."""
        rollouts = self.recipe.advantages(rollouts, beta if self.config.kl == "reward" else 0.0)
        return self.recipe.count(rollouts, self.config)

    def objective(self, beta: float) -> Callable[[Transformer, Rollouts], tuple[Tensor, dict[str, float]]]:
        """Return the method's objective with KL weight `beta`."""
        config, recipe = self.config, self.recipe
        if (loss := recipe.loss) is not None:
            return lambda model, batch: loss(model, batch, config)
        low = recipe.clip[0] if config.clip_low is None else config.clip_low
        high = recipe.clip[1] if config.clip_high is None else config.clip_high
        reference = self.reference if config.kl == "exact_loss" else None
        return PolicyObjective(
            config.temperature, low, high, recipe.level, recipe.stop_gradient, config.kl, beta, reference
        )

    def update(self, step: int, rollouts: Rollouts, beta: float) -> dict[str, float]:
        """Take one optimizer step for every minibatch of every epoch; returns the metrics to log."""
        rollouts = self.prepare(self.policy.with_old(rollouts), beta)
        metrics: dict[str, float] = {}
        if rollouts.advantages is not None:
            advantages = rollouts.at_actions("advantages")
            metrics = {"advantage_mean": float(advantages.mean()), "advantage_std": float(advantages.std(correction=0))}
        objective = self.policy.on_policy(self.objective(beta))
        for batches in self.policy.minibatches(step, rollouts):
            done = self.policy.per_action(self.policy.learner.forward_backward(batches, objective))
            done |= self.policy.read_text()
            metrics = self.policy.step(step, done, metrics)
        return metrics

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of policy and optimizer."""
        return self.policy.state()

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned."""
        self.policy.load(tensors, updates)
