"""Scores to advantages: per-token credit with a critic (GAE), or a baseline from the other answers of the group."""

from __future__ import annotations

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.posttraining.rl.rollouts import Rollouts

STD_EPS = 1e-4  # added to a group's standard deviation, as in the GRPO implementations in use


def place_rewards(scores: Tensor, kl: Tensor, action_mask: Tensor, beta: float) -> Tensor:
    """Return the reward of every action: −β · (log π − log π_ref), plus the score on the last (Ziegler et al. 2019)."""
    rewards = -beta * kl * action_mask
    columns = torch.arange(action_mask.shape[1])
    last = torch.where(action_mask, columns, -1).amax(dim=1)
    rewards[torch.arange(len(scores)), last] += scores
    return rewards


def advantages_and_returns(
    rewards: Tensor, values: Tensor, action_mask: Tensor, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Return (A, A + V): generalised advantage estimates over the actions (Schulman et al. 2016, equation 16), [N, T].

    Tokens that the policy did not sample (gaps in the mask) are skipped: the recursion continues unchanged after them.
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
    """Scale the entries where `mask` is True to variance 1 and, if `shift_mean`, shift them to mean 0; 0 elsewhere."""
    selected = values[mask]
    white = (values - selected.mean()) / (selected.var(correction=0) + 1e-8).sqrt()
    if not shift_mean:
        white = white + selected.mean()
    return torch.where(mask, white, 0.0)


def totals(rollouts: Rollouts, beta: float) -> Tensor:
    """Return every answer's score minus β · Σ (log π − log π_ref) over its actions, [N]: k1 in the reward."""
    return rollouts.rewards if beta == 0 else rollouts.rewards - beta * rollouts.kl().sum(1)


def by_group(values_N: Tensor, group_N: Tensor) -> Tensor:
    """Return values [N] as [groups, K]. Raises ConfigError unless groups are contiguous, of one size, and K ≥ 2."""
    changes = int((group_N.diff() != 0).sum()) + 1
    size = len(group_N) // changes
    if size < 2 or (group_N.view(changes, -1) != group_N.view(changes, -1)[:, :1]).any():
        raise ConfigError(
            f"{len(group_N)} answers to {changes} prompts; wanted equally many answers to each, side by side, and at "
            "least 2, because they are each other's baseline: set --group-size to 2 or more"
        )
    return values_N.view(changes, size)


def leave_one_out(totals_GK: Tensor) -> Tensor:
    """Return each total minus the mean of the group's others (Kool et al. 2019; Ahmadian et al. 2024, equation 8)."""
    k = totals_GK.shape[1]
    return totals_GK - (totals_GK.sum(1, keepdim=True) - totals_GK) / (k - 1)


def centred(totals_GK: Tensor) -> Tensor:
    """Return each total minus its group's mean (Liu et al. 2025, Dr. GRPO)."""
    return totals_GK - totals_GK.mean(1, keepdim=True)


def standardised(totals_GK: Tensor) -> Tensor:
    """Return (total − mean) / standard deviation, both of the total's group (Shao et al. 2024, section 4.1.2)."""
    return centred(totals_GK) / (totals_GK.std(1, keepdim=True) + STD_EPS)


def to_go(rewards: Tensor, action_mask: Tensor) -> Tensor:
    """Return the rewards to go of every action, [N, T]: Σ of its reward and all later ones; 0 elsewhere."""
    return (rewards * action_mask).flip(1).cumsum(1).flip(1) * action_mask
