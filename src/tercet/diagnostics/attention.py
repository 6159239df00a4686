"""Attention patterns of a model, and the scores that identify induction heads (Olsson et al. 2022).

An induction head continues a repetition: at a token it attends to the token that followed an earlier copy of it. This
takes two heads. One in an earlier layer attends to the previous token; the other searches its output for its own token.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.model.attention import Dense
from tercet.model.transformer import Block, Transformer


@torch.no_grad()
def attention_patterns(model: Transformer, tokens_BT: Tensor) -> Tensor:
    """Return the causal attention weights [L, B, H, T, T] (layer, row, head, from, to) of sequences of one text each.

    The model computes attention without keeping the weights, so they are computed again from each layer's queries and
    keys. Memory: L · B · H · T² floats.
    """
    T, c = tokens_BT.shape[1], model.config.head_dim
    future = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).triu(1)
    (x, rope), out = model.with_positions(model.model.embed_tokens(tokens_BT)), list[Tensor]()
    for number, layer in enumerate(model.model.layers):
        assert isinstance(layer, Block)
        attention, h = layer.self_attn, layer.input_layernorm(x)
        q, k, _ = attention.project(h, rope)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        out.append((q @ k.mT / c**0.5).masked_fill(future, -torch.inf).softmax(-1))
        x = layer(x, rope, Dense(causal=True), None, number)
    return torch.stack(out)


def repeated_tokens(ids: Sequence[int], begin: int, length: int, copies: int, rows: int, seed: int) -> Tensor:
    """Return sequences [rows, 1 + length · copies]: `begin`, then `length` different random ids, `copies` times over.

    Raises ConfigError if there are fewer `ids` than `length`: the same token twice in a copy would blur the score.
    """
    if not 0 < length <= len(ids) or copies < 2:
        raise ConfigError(
            f"repeated tokens: found {copies} copies of {length} different tokens out of {len(ids)}; "
            f"wanted at least 2 copies of 1 to {len(ids)} tokens"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(len(ids), generator=generator)[:length] for _ in range(rows)])
    passage = torch.tensor(ids)[drawn]
    return torch.cat([torch.full((rows, 1), begin), passage.repeat(1, copies)], dim=1)


def prefix_matching(patterns_LBHTT: Tensor, tokens_BT: Tensor, offset: int = 1) -> Tensor:
    """Return each head's prefix-matching score [L, H]: its attention to what followed earlier copies of a token.

    For each token that occurred before, this is the summed attention to all positions just after an earlier copy. The
    score is the mean over these tokens (Olsson et al. 2022, "prefix matching score"); 1 is a perfect induction head.
    With `offset` 2 it is the position one further, where a lower layer may have copied the same information. Raises
    ConfigError if no token occurs twice.
    """
    same = tokens_BT[:, :, None] == tokens_BT[:, None, :]  # [B, from, at]
    target = torch.zeros_like(same)
    target[:, :, offset:] = same[:, :, :-offset]  # `offset` positions after an earlier copy
    target = target.tril()  # the copy must be earlier than the token; the position may be the token itself
    repeated = same.tril(-1).any(-1)  # [B, from]
    if not repeated.any():
        raise ConfigError(
            "prefix matching: no token occurs twice; wanted sequences with repetitions, such as from repeated_tokens"
        )
    attention = (patterns_LBHTT * target[None, :, None]).sum(-1)  # [L, B, H, T]
    return (attention * repeated[None, :, None]).sum((1, 3)) / repeated.sum()


def previous_token(patterns_LBHTT: Tensor) -> Tensor:
    """Return each head's mean attention to the previous token [L, H]; an induction head needs such a head below it."""
    return patterns_LBHTT.diagonal(offset=-1, dim1=-2, dim2=-1).mean((1, 3))
