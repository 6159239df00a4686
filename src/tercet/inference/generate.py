"""The sampler: continue prompts of ids in batches, with a key-value cache.

A continuation depends only on its prompt, its seed and the settings, not on the rest of the batch. Each token has a
log-probability under softmax(logits / temperature), before top-k and top-p; the trainer uses the same definition.
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

_COMPACT_EVERY = 8  # steps between removals of finished sequences from the batch

OnToken = Callable[[int, int], None]  # (prompt index, token)
Until = Callable[[int, Sequence[int]], bool]  # (prompt index, ids so far) → whether the continuation is finished


@dataclass(frozen=True)
class SamplingParams:
    """Settings of sampling. Temperature 0 takes the likeliest token; `top_k` 0 and `top_p` 1 are no filters."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    stop_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 1")
        if not 0 <= self.temperature < math.inf or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(
                f"--temperature is {self.temperature}, --top-k {self.top_k} and --top-p {self.top_p}; "
                "wanted a temperature of at least 0, top-k of at least 0, and top-p above 0 and at most 1"
            )


@dataclass
class Completion:
    """Sampled ids (with the stop token), the log-probability of each, and the reason of the end: "stop" or "length"."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish: str = "length"


def pick(logits_BV: Tensor, params: SamplingParams, uniform_B: Tensor) -> tuple[Tensor, Tensor]:
    """Sample the next tokens: ids [B] and their log-probabilities [B].

    The cumulative distribution is inverted at `uniform_B` ∈ [0, 1). Raises NonFiniteError if the logits are not finite.
    """
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
            before = ordered.cumsum(-1) - ordered  # a token is allowed if all likelier ones together stay below top_p
            allowed = allowed.masked_fill(
                torch.zeros_like(allowed, dtype=torch.bool).scatter(1, order, before >= params.top_p), -torch.inf
            )
        cumulative = allowed.softmax(-1).cumsum(-1)
        # scaled by the last entry, so that rounding can never select a token after the last allowed one
        selected = torch.searchsorted(cumulative, uniform_B[:, None] * cumulative[:, -1:], right=True)[:, 0]
    return selected, logp.gather(1, selected[:, None])[:, 0]


def uniforms(seed: int, count: int) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return `count` random numbers in [0, 1) for one request, from its own counter-based stream."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64)).random(count)


# not one per line: the options are few and short
@torch.no_grad()
def generate(model: Transformer, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int], *,
             batch_size: int = 64, on_token: OnToken | None = None,
             until: Until | None = None) -> list[Completion]:  # fmt: skip
    """Continue every prompt; `seeds` contains one seed per prompt. `on_token` is called with each sampled token.

    `until` is called after each token; if it returns True, that continuation finishes with "stop".

    Raises ContextError if a prompt leaves no room in the context. A prompt near the end of the context gets the
    remaining room and finishes with "length".
    """
    if len(seeds) != len(prompts):
        raise ConfigError(f"{len(prompts)} prompts but {len(seeds)} seeds; wanted one seed per prompt")
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


def _generate_batch(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams,
    seeds: Sequence[int],
    which: list[int],
    out: list[Completion],
    on_token: OnToken | None,
    until: Until | None,
) -> None:
    limit, device = model.config.context_length, model.device
    uniform = torch.from_numpy(np.stack([uniforms(seeds[i], params.max_new_tokens) for i in which])).to(device)
    room = min(params.max_new_tokens, limit - min(len(prompts[i]) for i in which))
    capacity = max(len(prompts[i]) for i in which) + room
    # shared prefixes of prompts are computed once; then each prompt's keys and values become a row of the cache
    texts = [tuple(prompts[i]) for i in which]
    number = {p: n for n, p in enumerate(dict.fromkeys(texts))}
    layout = lay_out(list(number))
    tokens, positions, attention, last = to_device(
        (layout.tokens, layout.positions, layout.attention, torch.from_numpy(layout.ends())), device
    )
    shared = KVCache(model.config, 1, tokens.shape[1], model.output_weight)
    hidden = model.hidden(tokens, positions_BT=positions, attention=attention, cache=shared, at=last)
    hidden = hidden[[number[p] for p in texts]]
    cache = _cache_rows(model, shared, [layout.index[number[p], : len(p)] for p in texts], capacity)
    rows = list(range(len(which)))  # the sequences of the batch that are still in the cache
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
        kept = [i for i, row in enumerate(rows) if alive[row]]
        if not kept or step == params.max_new_tokens - 1:
            return
        if step % _COMPACT_EVERY == _COMPACT_EVERY - 1 and len(kept) < len(rows):
            index = torch.tensor(kept, device=device)
            cache.keep(index)
            rows, selected = [rows[i] for i in kept], selected[index]
        # a sequence that reached the end of the context may stay in the batch for some steps
        positions = cache.lengths.clamp(max=limit - 1)[:, None]
        hidden = model.hidden(selected[:, None], positions_BT=positions, cache=cache)[:, -1]


def _cache_rows(model: Transformer, shared: KVCache, columns: Sequence[NDArray[np.int64]], capacity: int) -> KVCache:
    """Make a cache with one row per prompt, from the one row of `shared`, where `columns` are each prompt's tokens."""
    longest, like = max(map(len, columns)), model.output_weight
    index = torch.zeros(len(columns), longest, dtype=torch.long)
    for row, own in enumerate(columns):
        index[row, : len(own)] = torch.from_numpy(own)
    index = index.to(like.device)
    cache = KVCache(model.config, len(columns), capacity, like)
    for layer in range(model.config.num_layers):
        for into, out in ((cache.keys, shared.keys), (cache.values, shared.values)):
            into[layer, :, :, :longest] = out[layer, 0].transpose(0, 1)[index].transpose(1, 2)
    cache.lengths, cache.width = torch.tensor([len(own) for own in columns], device=like.device), longest
    return cache
