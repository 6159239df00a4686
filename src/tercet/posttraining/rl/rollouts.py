"""Rollouts: what the policy said, with everything that a policy-gradient method needs to know of every token."""

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

PASS_TOKENS = 2048  # of a forward pass without gradients, filling included: 8192 were a quarter slower (docs/log.md)

# (number of the prompt, completion) of every rollout → its score
Scorer = Callable[[Sequence[int], Sequence[Completion]], Sequence[float]]


@dataclass(frozen=True)
class Rollouts:
    """Prompts with their sampled answers; column t of the [N, T − 1] arrays is about token t + 1 (the action).

    `behaviour` and `version` say what the tokens were sampled from: their log-probability then, and after how many
    optimizer steps. `logp` is the policy's before this update (π_old); None means that it is the policy that is being
    trained, so that the first ratio is exactly 1. A method fills in `advantages`, how much each token's term counts
    (`weights`) and by what the sum is divided (`shares`).
    """

    tokens: Tensor  # [N, T] i64: prompt and answer, filled up on the right
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
        """By what the learner divides: the number of actions, or the sum of `shares`."""
        return float(self.action_mask.sum() if self.shares is None else self.shares.sum(dtype=torch.float64))

    def rows(self, which: Tensor | slice) -> Rollouts:
        """Some of the rollouts."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {name: v if v is None else v[which] for name, v in arrays.items()}
        return Rollouts(**chosen)

    def split(self, size: int) -> Iterator[Rollouts]:
        """Micro-batches of at most `size` rollouts."""
        for a in range(0, len(self.tokens), size):
            yield self.rows(slice(a, a + size))

    def passes(self) -> Iterator[Rollouts]:
        """Parts for forward passes without gradients, so that their memory is bounded whatever the batch."""
        return self.split(max(1, PASS_TOKENS // self.tokens.shape[1]))

    def lengths(self) -> Tensor:
        """Actions of every rollout, [N]."""
        return self.action_mask.sum(1)

    def kl(self) -> Tensor:
        """The k1 estimate log π − log π_ref of every action, [N, T − 1].

        π is π_old where it is filled in: stale rollouts pay for the policy that is updated, not for the one that sampled.
        """
        if self.ref_logp is None:
            raise ConfigError("these rollouts have no reference log-probabilities: set beta above 0, or log_kl")
        logp = self.behaviour if self.logp is None else self.logp
        return (logp - self.ref_logp) * self.action_mask

    def k3(self) -> Tensor:
        """The k3 estimate e^x − 1 − x, x = log π_ref − log π, of every action, [N, T − 1]: for the log, never negative."""
        kl = self.kl()
        return ((-kl).exp() - 1 + kl) * self.action_mask

    def at_actions(self, name: str) -> Tensor:
        """One of the [N, T − 1] arrays at the actions, in row order: [A]."""
        found: Tensor = getattr(self, name)[self.action_mask]
        return found


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add what passes inside to `phase`."""
        began = time.perf_counter()
        yield
        self.seconds[f"seconds/{phase}"] = self.seconds.get(f"seconds/{phase}", 0.0) + time.perf_counter() - began


def check_sampling(params: SamplingParams) -> None:
    """Raise ConfigError for top-k, top-p or temperature 0: they would bias the probability ratio."""
    if params.top_k or params.top_p < 1 or params.temperature == 0:
        raise ConfigError(
            "rollouts need plain sampling: top_k 0, top_p 1 and a temperature above 0, or π_old is not what was sampled from"
        )


def assemble(prompts: Sequence[Sequence[int]], done: Sequence[Completion], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens [N, T] and action mask [N, T − 1] of prompts with their completions. Ids stay as they were sampled."""
    tokens, _ = pad_right([[*p, *c.tokens] for p, c in zip(prompts, done)], pad)
    columns = torch.arange(1, tokens.shape[1])[None]
    first = torch.tensor([len(p) for p in prompts])[:, None]
    end = torch.tensor([len(p) + len(c.tokens) for p, c in zip(prompts, done)])[:, None]
    return tokens, (columns >= first) & (columns < end)


def generate_rollouts(policy: Transformer, reference: Transformer | None, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int], score: Scorer,
            *, group_size: int, end_id: int, missing_eos_score: float, pad: int, version: int, clock: Clock) -> tuple[Rollouts, list[Completion]]:  # fmt: skip
    """`group_size` answers to every prompt, scored, with the reference's log-probabilities.

    `seeds` holds one seed a rollout. A missing end *replaces* the score by `missing_eos_score` (Ziegler et al. 2019).
    """
    check_sampling(params)
    numbers = [n for n in range(len(prompts)) for _ in range(group_size)]
    texts = [prompts[n] for n in numbers]
    with clock("sample"):
        done = generate(policy, texts, params, seeds, batch_size=128)
    with clock("reward"):
        scores = score(numbers, done)
    tokens, mask = assemble(texts, done, pad)
    kind = policy.output_weight.dtype
    finished = torch.tensor([c.tokens[-1] == end_id for c in done])
    rollouts = Rollouts(
        tokens, mask,
        behaviour=spread(torch.tensor([x for c in done for x in c.logprobs], dtype=kind), mask),
        version=torch.full((len(done),), version), group=torch.tensor(numbers),
        rewards=torch.where(finished, torch.tensor(scores, dtype=kind), missing_eos_score),
    )  # fmt: skip
    if reference is not None:
        with clock("reference"):
            rollouts = replace(rollouts, ref_logp=logprobs(reference, rollouts, params.temperature))
    return rollouts, done


def grouped(rollouts: Rollouts) -> PackedGroups:
    """The rollouts without filling, neighbours of one group sharing their prompt; its answer tokens are the actions."""
    prompts: list[list[int]] = []
    answers: list[list[list[int]]] = []
    mask, kept, before = rollouts.action_mask.numpy(), [], None
    first, end = mask.argmax(1), mask.shape[1] - mask[:, ::-1].argmax(1)  # of the actions, in columns of the mask
    for row, (number, ids) in enumerate(zip(rollouts.group.tolist(), rollouts.tokens.tolist())):
        a, b = int(first[row]), int(end[row])
        if number != before:
            prompts.append(ids[: a + 1])
            answers.append([])
            before = number
        answers[-1].append(ids[a + 1 : b + 1])
        kept.append(mask[row, a:b])
    acts, found = torch.from_numpy(np.concatenate(kept)), pack_groups(prompts, answers)
    return replace(found, before=found.before[acts], target=found.target[acts], answer=found.answer[acts])


def action_logprobs(model: Transformer, rollouts: Rollouts, temperature: float) -> tuple[Tensor, Tensor]:
    """log π (with gradients) and entropy (without) at the actions, each [A] in row order."""
    return grouped(rollouts).token_logprobs(model, temperature)


def action_values(critic: ValueHeadModel, rollouts: Rollouts) -> Tensor:
    """The critic's estimates before the actions, [A] in row order, with gradients."""
    rows = grouped(rollouts)
    return critic.read(rows.hidden(critic.backbone, rows.before))


def spread(values: Tensor, action_mask: Tensor) -> Tensor:
    """Values of the actions at their places in [N, T − 1], 0 elsewhere."""
    out = torch.zeros(action_mask.shape, dtype=values.dtype)
    out[action_mask] = values
    return out


@torch.no_grad()
def logprobs(model: Transformer, rollouts: Rollouts, temperature: float) -> Tensor:
    """log π of the actions under `model`, [N, T − 1], in passes of bounded memory."""
    return torch.cat([spread(action_logprobs(model, r, temperature)[0], r.action_mask) for r in rollouts.passes()])


@torch.no_grad()
def values(critic: ValueHeadModel, rollouts: Rollouts) -> Tensor:
    """The critic's estimates before the actions, [N, T − 1]."""
    return torch.cat([spread(action_values(critic, r), r.action_mask) for r in rollouts.passes()])
