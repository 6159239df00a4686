"""Rollouts: the policy's sampled answers, with everything that a policy-gradient method needs for every token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.inference.generate import Completion, SamplingParams, generate
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.training.packing import pad_right
from tercet.training.shared_prompts import PackedGroups, pack_groups

# tokens of a forward pass without gradients, padding included; passes of 8192 were a quarter slower (docs/log.md)
ROLLOUT_PASS_TOKENS = 2048

# (prompt numbers, completions), one of each per rollout → one score per rollout
ScoreFunction = Callable[[Sequence[int], Sequence[Completion]], Sequence[float]]


@dataclass(frozen=True)
class Rollouts:
    """N prompts with their sampled answers. Column t of the [N, T − 1] arrays belongs to token t + 1 (the action).

    `behaviour` holds the sampler's log-probabilities, `version` the number of optimizer steps its weights had seen.
    `logp` holds the log-probabilities of π_old, the policy before this update. None means that π_old is the policy in
    training, so that the first ratio is exactly 1. A method fills in `advantages`, the weight of each token's term
    (`weights`) and the divisor of the sum (`shares`).
    """

    tokens: Tensor  # [N, T] i64: prompt and answer, padded on the right
    action_mask: Tensor  # [N, T − 1] bool: True where token t + 1 was sampled (the end token included)
    behaviour: Tensor  # [N, T − 1] log π of the sampler, 0 elsewhere
    version: Tensor  # [N] i64
    group: Tensor  # [N] i64: number of the prompt
    rewards: Tensor  # [N] score of the whole answer
    ref_logp: Tensor | None = None  # [N, T − 1]
    logp: Tensor | None = None  # [N, T − 1]
    values: Tensor | None = None  # [N, T − 1] critic's estimate before the action
    returns: Tensor | None = None  # [N, T − 1]
    advantages: Tensor | None = None  # [N, T − 1]
    weights: Tensor | None = None  # [N, T − 1]
    shares: Tensor | None = None  # [N]; None counts the actions

    @property
    def count(self) -> float:
        """The divisor of the summed loss: the number of actions, or the sum of `shares`."""
        return float(self.action_mask.sum() if self.shares is None else self.shares.sum(dtype=torch.float64))

    def rows(self, index: Tensor | slice) -> Rollouts:
        """Return the rollouts at `index`."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        selected: dict[str, Any] = {name: v if v is None else v[index] for name, v in arrays.items()}
        return Rollouts(**selected)

    def split(self, size: int) -> Iterator[Rollouts]:
        """Yield micro-batches of at most `size` rollouts."""
        for a in range(0, len(self.tokens), size):
            yield self.rows(slice(a, a + size))

    def passes(self) -> Iterator[Rollouts]:
        """Yield parts for forward passes without gradients; their memory does not depend on the batch size."""
        return self.split(max(1, ROLLOUT_PASS_TOKENS // self.tokens.shape[1]))

    def lengths(self) -> Tensor:
        """Return the number of actions of every rollout, [N]."""
        return self.action_mask.sum(1)

    def kl(self) -> Tensor:
        """Return the k1 estimate log π − log π_ref of every action, [N, T − 1].

        π is π_old where `logp` is filled in, so that stale rollouts are penalised for the policy that is updated and
        not for the one that sampled. Raises ConfigError without the reference's log-probabilities.
        """
        if self.ref_logp is None:
            raise ConfigError(
                "the rollouts have no log-probabilities of the reference model; set --beta above 0, or --log-kl"
            )
        logp = self.behaviour if self.logp is None else self.logp
        return (logp - self.ref_logp) * self.action_mask

    def k3(self) -> Tensor:
        """Return the k3 estimate e^x − 1 − x with x = log π_ref − log π of every action, [N, T − 1].

        It is never negative, and serves for the log only.
        """
        kl = self.kl()
        return ((-kl).exp() - 1 + kl) * self.action_mask

    def at_actions(self, name: str) -> Tensor:
        """Return the [N, T − 1] array `name` at the actions only, in row order: [A]."""
        values: Tensor = getattr(self, name)[self.action_mask]
        return values


class Clock:
    """Measures the seconds spent in each phase of a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add the time spent inside the `with` block to `phase`."""
        began = time.perf_counter()
        yield
        self.seconds[f"seconds/{phase}"] = self.seconds.get(f"seconds/{phase}", 0.0) + time.perf_counter() - began


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError for top-k, top-p or temperature 0, which would bias the probability ratio."""
    if params.top_k or params.top_p < 1 or params.temperature == 0:
        raise ConfigError(
            f"rollouts: top_k is {params.top_k}, top_p {params.top_p:g} and temperature {params.temperature:g}; wanted "
            "plain sampling (top_k 0, top_p 1, a temperature above 0), or answers would not be samples of π_old"
        )


def assemble(prompts: Sequence[Sequence[int]], done: Sequence[Completion], pad: int) -> tuple[Tensor, Tensor]:
    """Return tokens [N, T] and action mask [N, T − 1] of prompts with their completions. Ids stay as sampled."""
    tokens, _ = pad_right([[*p, *c.tokens] for p, c in zip(prompts, done)], pad)
    columns = torch.arange(1, tokens.shape[1])[None]
    first = torch.tensor([len(p) for p in prompts])[:, None]
    end = torch.tensor([len(p) + len(c.tokens) for p, c in zip(prompts, done)])[:, None]
    return tokens, (columns >= first) & (columns < end)


def generate_rollouts(
    policy: Transformer,
    reference: Transformer | None,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    score: ScoreFunction,
    *,
    group_size: int,
    end_id: int,
    missing_eos_score: float,
    pad: int,
    version: int,
    clock: Clock,
) -> tuple[Rollouts, list[Completion]]:
    """Sample and score `group_size` answers to every prompt, with the reference's log-probabilities if there is one.

    `seeds` holds one seed per rollout. An answer without an end token gets `missing_eos_score` *instead of* its score
    (Ziegler et al. 2019). Raises ConfigError for sampling that `check_sampling` refuses.
    """
    check_sampling(params)
    numbers = [n for n in range(len(prompts)) for _ in range(group_size)]
    texts = [prompts[n] for n in numbers]
    with clock("sample"):
        done = generate(policy, texts, params, seeds, batch_size=128)
    with clock("reward"):
        scores = score(numbers, done)
    tokens, mask = assemble(texts, done, pad)
    dtype = policy.output_weight.dtype
    finished = torch.tensor([c.tokens[-1] == end_id for c in done])
    rollouts = Rollouts(
        tokens,
        mask,
        behaviour=scatter_actions(torch.tensor([x for c in done for x in c.logprobs], dtype=dtype), mask),
        version=torch.full((len(done),), version),
        group=torch.tensor(numbers),
        rewards=torch.where(finished, torch.tensor(scores, dtype=dtype), missing_eos_score),
    )
    if reference is not None:
        with clock("reference"):
            rollouts = replace(rollouts, ref_logp=logprobs(reference, rollouts, params.temperature))
    return rollouts, done


def pack_rollouts(rollouts: Rollouts) -> PackedGroups:
    """Pack rollouts without padding; adjacent ones of a group share their prompt. Answer tokens are the actions."""
    prompts: list[list[int]] = []
    answers: list[list[list[int]]] = []
    mask, answer_masks, previous = rollouts.action_mask.numpy(), [], None
    first, end = mask.argmax(1), mask.shape[1] - mask[:, ::-1].argmax(1)  # columns of the actions
    for row, (number, ids) in enumerate(zip(rollouts.group.tolist(), rollouts.tokens.tolist())):
        a, b = int(first[row]), int(end[row])
        if number != previous:
            prompts.append(ids[: a + 1])
            answers.append([])
            previous = number
        answers[-1].append(ids[a + 1 : b + 1])
        answer_masks.append(mask[row, a:b])
    acts, packed = torch.from_numpy(np.concatenate(answer_masks)), pack_groups(prompts, answers)
    return replace(packed, before=packed.before[acts], target=packed.target[acts], answer=packed.answer[acts])


def action_logprobs(model: Transformer, rollouts: Rollouts, temperature: float) -> tuple[Tensor, Tensor]:
    """Return log π (with gradients) and the entropy (without) at the actions, each [A] in row order."""
    return pack_rollouts(rollouts).token_logprobs(model, temperature)


def action_values(critic: ValueHeadModel, rollouts: Rollouts) -> Tensor:
    """Return the critic's estimates before the actions, [A] in row order, with gradients."""
    packed = pack_rollouts(rollouts)
    return critic.read(packed.hidden(critic.backbone, packed.before))


def scatter_actions(values: Tensor, action_mask: Tensor) -> Tensor:
    """Return the actions' values [A] at their positions in [N, T − 1], and 0 elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=values.dtype)
    out[action_mask] = values
    return out


@torch.no_grad()
def logprobs(model: Transformer, rollouts: Rollouts, temperature: float) -> Tensor:
    """Return log π of the actions under `model`, [N, T − 1], computed in passes of bounded memory."""
    parts = [scatter_actions(action_logprobs(model, r, temperature)[0], r.action_mask) for r in rollouts.passes()]
    return torch.cat(parts)


@torch.no_grad()
def values(critic: ValueHeadModel, rollouts: Rollouts) -> Tensor:
    """Return the critic's estimates before the actions, [N, T − 1]."""
    return torch.cat([scatter_actions(action_values(critic, r), r.action_mask) for r in rollouts.passes()])
