"""Where heads look: attention patterns, and the scores by which induction heads are known (Olsson et al. 2022).

An induction head continues a repetition: at a token it attends to what came after the same token before. It is made of
two: a head of an earlier layer that attends to the token before, and one that looks for its own token in what that left.
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
    """Causal attention weights [L, B, H, T, T] (layer, row, head, from, to) of sequences that are one text each.

    The model computes attention without ever holding the weights; here they are made again from each layer's queries
    and keys. Memory: L · B · H · T² floats.
    """
    T, c = tokens_BT.shape[1], model.config.head_dim
    later = torch.ones(T, T, dtype=torch.bool, device=tokens_BT.device).triu(1)
    (x, rope), out = model.with_positions(model.model.embed_tokens(tokens_BT)), list[Tensor]()
    for number, layer in enumerate(model.model.layers):
        assert isinstance(layer, Block)
        attention, h = layer.self_attn, layer.input_layernorm(x)
        q, k, _ = attention.project(h, rope)
        k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        out.append((q @ k.mT / c**0.5).masked_fill(later, -torch.inf).softmax(-1))
        x = layer(x, rope, Dense(causal=True), None, number)
    return torch.stack(out)


def repeated_tokens(ids: Sequence[int], begin: int, length: int, copies: int, rows: int, seed: int) -> Tensor:
    """[rows, 1 + length · copies]: `begin`, then `length` different random ids of `ids`, `copies` times over.

    Raises ConfigError where there are fewer ids than `length`: the same token twice in a copy would blur the score.
    """
    if not 0 < length <= len(ids) or copies < 2:
        raise ConfigError(
            f"{copies} copies of {length} different tokens out of {len(ids)}; wanted at least 2 copies of at most {len(ids)}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.stack([torch.randperm(len(ids), generator=generator)[:length] for _ in range(rows)])
    passage = torch.tensor(ids)[drawn]
    return torch.cat([torch.full((rows, 1), begin), passage.repeat(1, copies)], dim=1)


def prefix_matching(patterns_LBHTT: Tensor, tokens_BT: Tensor, offset: int = 1) -> Tensor:
    """Each head's prefix-matching score [L, H]: how much it attends to tokens that follow an earlier copy of its own.

    The attention from a token to all earlier places whose previous token is the same, summed, then averaged over all
    tokens that came before (Olsson et al. 2022, "prefix matching score"; with two copies there is one such place). 1 is a
    perfect induction head. With `offset` 2 it is the place one further: what came after the token can be read there too,
    where a layer below has brought it along. Raises ConfigError where no token comes twice.
    """
    same = tokens_BT[:, :, None] == tokens_BT[:, None, :]  # [B, from, at]
    target = torch.zeros_like(same)
    target[:, :, offset:] = same[:, :, :-offset]  # so far behind an earlier copy
    target = target.tril()  # the copy must be earlier than the token; the place may be the token itself
    asked = same.tril(-1).any(-1)  # [B, from]
    if not asked.any():
        raise ConfigError(
            "prefix matching needs sequences in which a token comes twice; make them with repeated_tokens"
        )
    found = (patterns_LBHTT * target[None, :, None]).sum(-1)  # [L, B, H, T]
    return (found * asked[None, :, None]).sum((1, 3)) / asked.sum()


def previous_token(patterns_LBHTT: Tensor) -> Tensor:
    """Each head's mean attention to the token just before, [L, H]: what an induction head needs in a layer below."""
    return patterns_LBHTT.diagonal(offset=-1, dim1=-2, dim2=-1).mean((1, 3))
