"""The sampler: prompts of ids to continuations, in batches, with a KV cache.

A continuation depends only on its prompt, its seed and the settings, not on what else is in the batch. With each token
comes its log-probability under softmax(logits / temperature), before top-k and top-p: the trainer's definition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import ConfigError, ContextError, NonFiniteError
from tercet.inference.prefix_sharing import lay_out
from tercet.model.attention import KVCache
from tercet.model.transformer import Transformer
from tercet.training.packing import to_device

_COMPACT_EVERY = 8  # steps between throwing finished sequences out of the batch


@dataclass(frozen=True)
class SamplingParams:
    """How to continue. Temperature 0 takes the likeliest token; `top_k` 0 and `top_p` 1 switch those off."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"temperature {self.temperature}, top_k {self.top_k}, top_p {self.top_p}: "
                "wanted temperature ≥ 0, top_k ≥ 0 and 0 < top_p ≤ 1"
            )


@dataclass
class Completion:
    """Sampled ids (a stop token included), the log-probability of each, and why it ended: "stop" or "length"."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"


def pick(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Next token [B] by inverting the cumulative distribution at `uniform_B` ∈ [0, 1), and its log-probability [B]."""
    logits = logits_BV.double()
    logp = F.log_softmax(logits / (params.temperature or 1.0), dim=-1)
    if torch.isnan(logp).any():
        raise NonFiniteError("the model's logits are not finite: its weights have diverged")
    if params.temperature == 0:
        selected = logits.argmax(-1)
    else:
        allowed = logp
        if params.top_k:
            kth = logp.topk(min(params.top_k, logp.shape[-1]), dim=-1).values[:, -1:]
            allowed = allowed.masked_fill(logp < kth, -torch.inf)
        if params.top_p < 1:
            ordered, order = allowed.softmax(-1).sort(dim=-1, descending=True)
            before = ordered.cumsum(-1) - ordered  # a token stays where the likelier ones do not yet reach top_p
            allowed = allowed.masked_fill(
                torch.zeros_like(allowed, dtype=torch.bool).scatter(1, order, before >= params.top_p), -torch.inf
            )
        cumulative = allowed.softmax(-1).cumsum(-1)
        # scaled by the last entry, so that rounding can never point behind the last allowed token
        selected = torch.searchsorted(cumulative, uniform_B[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return selected, logp.gather(1, selected[:, None])[:, 0]


def uniforms(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """The random numbers of one request: a counter-based stream of its own."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).random(count)


@torch.no_grad()
def generate(model: Transformer, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int], *,
             batch_size: int = 64, on_token: Callable[[int, int], None] | None = None,
             until: Callable[[int, Sequence[int]], bool] | None = None) -> list[Completion]:  # fmt: skip
    """Continue every prompt; `seeds` holds one seed a prompt. `on_token(prompt index, token)` is told of each token.

    `until(prompt index, ids so far)` is called after each token; where it is true, that continuation finishes with
    "stop".

    Raises ContextError where a prompt leaves no room in the context. A prompt near the end of the context gets the room
    that is left and finishes with "length".
    """
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts but {len(seeds)} seeds: wanted one each")
    limit = model.config.context_length
    for number, prompt in enumerate(prompts):
        if not 0 < len(prompt) < limit:
            raise ContextError(
                f"prompt {number} has {len(prompt)} tokens; "
                f"the context of {limit} leaves room for prompts of 1 to {limit - 1}"
            )
    out = [Completion() for _ in prompts]
    by_length = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for a in range(0, len(prompts), batch_size):
        _generate_batch(model, prompts, params, seeds, by_length[a : a + batch_size], out, on_token, until)
    return out


def _generate_batch(model: Transformer, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int],
                    which: list[int], out: list[Completion], on_token: Callable[[int, int], None] | None,
                    until: Callable[[int, Sequence[int]], bool] | None) -> None:  # fmt: skip
    limit, device = model.config.context_length, model.device
    uniform = torch.from_numpy(np.stack([uniforms(seeds[i], params.max_new_tokens) for i in which])).to(device)
    room = min(params.max_new_tokens, limit - min(len(prompts[i]) for i in which))
    capacity = max(len(prompts[i]) for i in which) + room
    # shared prefixes of prompts are read once; then each prompt's keys and values become a row of the cache
    texts = [tuple(prompts[i]) for i in which]
    number = {p: n for n, p in enumerate(dict.fromkeys(texts))}
    layout = lay_out(list(number))
    tokens, positions, branches, last = to_device(
        (layout.tokens, layout.positions, layout.attention, torch.from_numpy(layout.ends())), device
    )
    read = KVCache(model.config, 1, tokens.shape[1], model.output_weight)
    hidden = model.hidden(tokens, positions_BT=positions, attention=branches, cache=read, at=last)
    hidden = hidden[[number[p] for p in texts]]
    cache = _cache_rows(model, read, [layout.index[number[p], : len(p)] for p in texts], capacity)
    rows = list(range(len(which)))  # which of the batch are still in the cache
    alive = [True] * len(which)
    for step in range(params.max_new_tokens):
        selected, logp = pick(model.logits(hidden), params, uniform[rows, step])
        for row, token, value in zip(rows, selected.tolist(), logp.tolist()):
            if not alive[row]:
                continue
            done = out[which[row]]
            done.tokens.append(token)
            done.logprobs.append(value)
            if on_token is not None:
                on_token(which[row], token)
            if token in params.stop_ids or (until is not None and until(which[row], done.tokens)):
                done.finish, alive[row] = "stop", False
            elif len(prompts[which[row]]) + len(done.tokens) >= limit:
                alive[row] = False
        kept = [place for place, row in enumerate(rows) if alive[row]]
        if not kept or step == params.max_new_tokens - 1:
            return
        if step % _COMPACT_EVERY == _COMPACT_EVERY - 1 and len(kept) < len(rows):
            index = torch.tensor(kept, device=device)
            cache.keep(index)
            rows, selected = [rows[place] for place in kept], selected[index]
        # a sequence that ended at the border of the context may stay in the batch for some steps
        positions = cache.lengths.clamp(max=limit - 1)[:, None]
        hidden = model.hidden(selected[:, None], positions_BT=positions, cache=cache)[:, -1]


def _cache_rows(model: Transformer, read: KVCache, places: Sequence[NDArray[np.int64]], capacity: int) -> KVCache:
    """A cache with a row for every prompt, from one with the keys and values of all their tokens at `places`."""
    longest, like = max(map(len, places)), model.output_weight
    index = torch.zeros(len(places), longest, dtype=torch.long)
    for row, mine in enumerate(places):
        index[row, : len(mine)] = torch.from_numpy(mine)
    index = index.to(like.device)
    cache = KVCache(model.config, len(places), capacity, like)
    for layer in range(model.config.num_layers):
        for into, out in ((cache.keys, read.keys), (cache.values, read.values)):
            into[layer, :, :, :longest] = out[layer, 0].transpose(0, 1)[index].transpose(1, 2)
    cache.lengths, cache.width = torch.tensor([len(p) for p in places], device=like.device), longest
    return cache
