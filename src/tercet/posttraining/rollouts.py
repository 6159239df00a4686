"""Rollouts: what the policy said, with everything that PPO needs to know of every token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.generation.sampler import Completion, SamplingParams, generate
from tercet.model.transformer import ScalarModel, Transformer
from tercet.training.batch import pad_right
from tercet.training.objectives import token_logprobs

PASS_ROWS = 64  # sequences per forward pass without gradients


@dataclass(frozen=True)
class Rollouts:
    """Prompts with their sampled answers; column t of the [N, T − 1] arrays is about token t + 1 (the action)."""

    tokens: Tensor  # [N, T] i64: prompt and answer, padded on the right
    action_mask: Tensor  # [N, T − 1] bool: True where token t + 1 was sampled (the end token included)
    logp: Tensor  # [N, T − 1] log π_old of the actions, 0 elsewhere
    ref_logp: Tensor  # [N, T − 1]
    values: Tensor  # [N, T − 1] critic's estimate before the action
    advantages: Tensor  # [N, T − 1]
    returns: Tensor  # [N, T − 1]
    rewards: Tensor  # [N] score of the whole answer

    @property
    def count(self) -> float:
        """By what the learner divides: the number of actions."""
        return float(self.action_mask.sum())

    def rows(self, which: Tensor | slice) -> Rollouts:
        """Some of the rollouts."""
        return replace(self, **{f.name: getattr(self, f.name)[which] for f in fields(self)})

    def split(self, size: int) -> Iterator[Rollouts]:
        """Micro-batches of at most `size` rollouts."""
        for a in range(0, len(self.tokens), size):
            yield self.rows(slice(a, a + size))


def sample(
    policy: Transformer, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int]
) -> list[Completion]:
    """One answer to each prompt. Raises ConfigError for top-k or top-p: they would bias the probability ratio."""
    if params.top_k or params.top_p < 1 or params.temperature == 0:
        raise ConfigError(
            "rollouts need plain sampling: top_k 0, top_p 1 and a temperature above 0, or π_old is not what was sampled from"
        )
    return generate(policy, prompts, params, seeds, batch_size=128)


def assemble(prompts: Sequence[Sequence[int]], done: Sequence[Completion], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens [N, T] and action mask [N, T − 1] of prompts with their completions. Ids stay as they were sampled."""
    tokens, _ = pad_right([[*p, *c.tokens] for p, c in zip(prompts, done)], pad)
    columns = torch.arange(1, tokens.shape[1])[None]
    first = torch.tensor([len(p) for p in prompts])[:, None]
    end = torch.tensor([len(p) + len(c.tokens) for p, c in zip(prompts, done)])[:, None]
    return tokens, (columns >= first) & (columns < end)


def action_logprobs(
    model: Transformer, tokens: Tensor, action_mask: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """log π and entropy at the actions, each [number of actions] in row order, with gradients."""
    hidden = model.hidden(tokens[:, :-1])
    return token_logprobs(model, hidden[action_mask], tokens[:, 1:][action_mask], temperature)


def spread(values: Tensor, action_mask: Tensor) -> Tensor:
    """Values of the actions at their places in [N, T − 1], 0 elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=values.dtype)
    out[action_mask] = values
    return out


@torch.no_grad()
def judge(tokens: Tensor, action_mask: Tensor, policy: Transformer, reference: Transformer, critic: ScalarModel,
          temperature: float) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """(log π, log π_ref, critic's values) at the actions, each [N, T − 1]."""
    parts: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
    for a in range(0, len(tokens), PASS_ROWS):
        t, m = tokens[a : a + PASS_ROWS], action_mask[a : a + PASS_ROWS]
        parts[0].append(spread(action_logprobs(policy, t, m, temperature)[0], m))
        parts[1].append(spread(action_logprobs(reference, t, m, temperature)[0], m))
        parts[2].append(critic(t[:, :-1]) * m)
    return torch.cat(parts[0]), torch.cat(parts[1]), torch.cat(parts[2])


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


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the entries where `mask` is True; 0 elsewhere."""
    chosen = values[mask]
    return torch.where(mask, (values - chosen.mean()) / (chosen.var(correction=0) + 1e-8).sqrt(), 0.0)
