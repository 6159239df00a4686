"""From scores to advantages: per-token credit with a critic (GAE), or a baseline from the other answers of the group."""

from __future__ import annotations

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.posttraining.rl.rollouts import Rollouts

STD_EPS = 1e-4  # added to a group's standard deviation, as in the GRPO implementations in use


def place_rewards(scores: Tensor, kl: Tensor, action_mask: Tensor, beta: float) -> Tensor:
    """Reward of every action: −β · (log π − log π_ref), and the score on the last action (Ziegler et al. 2019)."""
    rewards = -beta * kl * action_mask
    columns = torch.arange(action_mask.shape[1])
    last = torch.where(action_mask, columns, -1).amax(dim=1)
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, action_mask: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (Schulman et al. 2016, equation 16) over the actions, and A + V; all [N, T].

    Gaps in the mask (tokens that the policy did not choose) are stepped over: the recursion carries on unchanged.
    """
    advantages = torch.zeros_like(rewards)
    running, next_value = torch.zeros(len(rewards), dtype=rewards.dtype), torch.zeros(len(rewards), dtype=rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        acts = action_mask[:, t]
        delta = rewards[:, t] + discount * next_value - values[:, t]
        running = torch.where(acts, delta + discount * lam * running, running)
        next_value = torch.where(acts, values[:, t], next_value)
        advantages[:, t] = torch.where(acts, running, 0.0)
    return advantages, (advantages + values) * action_mask


def whiten(values: Tensor, mask: Tensor, shift_mean: bool = True) -> Tensor:
    """Variance 1, and mean 0 unless `shift_mean` is off, over the entries where `mask` is True; 0 elsewhere."""
    chosen = values[mask]
    white = (values - chosen.mean()) / (chosen.var(correction=0) + 1e-8).sqrt()
    if not shift_mean:
        white = white + chosen.mean()
    return torch.where(mask, white, 0.0)


def totals(rollouts: Rollouts, beta: float) -> Tensor:
    """Score of every answer minus β · Σ (log π − log π_ref) over its actions, [N]: k1 in the reward."""
    return rollouts.rewards if beta == 0 else rollouts.rewards - beta * rollouts.kl().sum(1)


def by_group(values_N: Tensor, group_N: Tensor) -> Tensor:
    """[N] as [groups, K]. Raises ConfigError where the groups are not neighbours of one size, of 2 at least."""
    changes = int((group_N.diff() != 0).sum()) + 1
    size = len(group_N) // changes
    if size < 2 or (group_N.view(changes, -1) != group_N.view(changes, -1)[:, :1]).any():
        raise ConfigError(
            f"{len(group_N)} answers to {changes} prompts: a group baseline needs group_size of at least 2"
        )
    return values_N.view(changes, size)


def leave_one_out(totals_GK: Tensor) -> Tensor:
    """Each total minus the mean of the others of its group (Kool et al. 2019; Ahmadian et al. 2024, equation 8)."""
    k = totals_GK.shape[1]
    return totals_GK - (totals_GK.sum(1, keepdim=True) - totals_GK) / (k - 1)


def centred(totals_GK: Tensor) -> Tensor:
    """Each total minus its group's mean (Liu et al. 2025, Dr. GRPO)."""
    return totals_GK - totals_GK.mean(1, keepdim=True)


def standardised(totals_GK: Tensor) -> Tensor:
    """Minus the group's mean, divided by its standard deviation (Shao et al. 2024, section 4.1.2)."""
    return centred(totals_GK) / (totals_GK.std(1, keepdim=True) + STD_EPS)


def to_go(rewards: Tensor, action_mask: Tensor) -> Tensor:
    """Σ of the rewards of this action and all later ones, [N, T]; 0 where nothing was chosen."""
    return (rewards * action_mask).flip(1).cumsum(1).flip(1) * action_mask
