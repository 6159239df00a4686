"""Attention: masks and patterns, the key-value cache, and the attention layer.

Shape legend: B batch, T queries, S keys, H heads, K key/value heads, C head dimension, D hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.model.config import ModelConfig
from tercet.model.layers import RMSNorm, Rope, rotate
from tercet.model.ops.linear import Linear

# -- kinds of attention: which tokens of its own text a token attends to ----------------------------------------------


@dataclass(frozen=True)
class Causal:
    """A token attends to itself and the tokens before it."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return whether each query index attends to each key index of the same text; the shapes broadcast."""
        return key <= query


@dataclass(frozen=True)
class Bidirectional:
    """A token attends to every token."""

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return True everywhere, in the broadcast shape of query and key."""
        return torch.ones_like(key <= query)


@dataclass(frozen=True)
class Prefix:
    """The first `length` tokens of a text attend to one another in both directions; the others are causal.

    `length` is one number, or a tensor that broadcasts to [B, T, 1]: one for each row, or for the text of each token
    (Raffel et al. 2020, section 3.2.1, "prefix LM").
    """

    length: int | Tensor

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return True for keys in the prefix and for keys up to the query's own."""
        return (key <= query) | (key < self.length)


@dataclass(frozen=True)
class Window:
    """A token attends to itself and the `size` − 1 tokens before it (Beltagy et al. 2020: sliding window)."""

    size: int

    def sees(self, query: Tensor, key: Tensor) -> Tensor:
        """Return True for the `size` keys up to the query's own."""
        return (key <= query) & (key > query - self.size)


@dataclass(frozen=True)
class PrefixPart:
    """A batch of the sequences of a `SharedPrefix`, padded on the right."""

    keys: Tensor  # [N, S] i64: where each sequence's tokens are in the batch row
    queries: Tensor | None = None  # [N, Q] i64: where its queries are; None: every key is also a query, causally
    mask: Tensor | None = None  # [N, 1, Q, S] bool: the keys that these queries attend to


@dataclass(frozen=True)
class SharedPrefix:
    """Shared-prefix (tree) attention: one batch row of T tokens holds several sequences, each shared token once.

    Only attention mixes tokens, so only attention works on whole sequences, one row for each. Everything else works on
    the T tokens. A part holds sequences of similar lengths, so that there is little padding. Each sequence is causal.
    """

    parts: tuple[PrefixPart, ...]
    output_rows: Tensor  # [T] i64: for each token, the row of its output when all parts' outputs are concatenated

    def split(self, q_1HTC: Tensor, k_1KTC: Tensor, v_1KTC: Tensor) -> Iterator[Piece]:
        """Yield one problem of dense attention for each part."""
        q, k, v = (x[0].transpose(0, 1) for x in (q_1HTC, k_1KTC, v_1KTC))
        for p in self.parts:
            queries = p.keys if p.queries is None else p.queries
            yield _gather(q, queries), _gather(k, p.keys), _gather(v, p.keys), p.mask, p.mask is None

    def join(self, outputs: list[Tensor]) -> Tensor:
        """Return the parts' outputs [N, H, Q, C] as one batch row, [1, H, T, C]."""
        flat = [out.transpose(1, 2).flatten(0, 1) for out in outputs]
        every = flat[0] if len(flat) == 1 else torch.cat(flat)
        return every.index_select(0, self.output_rows).transpose(0, 1)[None]


def _gather(x_THC: Tensor, index_NS: Tensor) -> Tensor:
    """Return the tokens of one batch row as sequences, [N, H, S, C]."""
    return x_THC.index_select(0, index_NS.flatten()).view(*index_NS.shape, *x_THC.shape[1:]).transpose(1, 2)


@dataclass(frozen=True)
class Dense:
    """Attention within each batch row. Without `mask`, a query attends to all keys, or up to its own if `causal`."""

    mask: Tensor | None = None  # [B or 1, 1, T, S] bool
    causal: bool = False

    def split(self, q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor) -> Iterator[Piece]:
        """Yield the single problem of dense attention."""
        yield q_BHTC, k_BKSC, v_BKSC, self.mask, self.causal

    def join(self, outputs: list[Tensor]) -> Tensor:
        """Return its output, [B, H, T, C]."""
        return outputs[0]


Kind = Causal | Bidirectional | Prefix | Window  # which tokens of a text attend to which
Pattern = Dense | SharedPrefix
Piece = tuple[Tensor, Tensor, Tensor, Tensor | None, bool]  # queries, keys, values, mask, causal: for torch's function
CAUSAL = Causal()


def segment_mask(segments_BT: Tensor, kind: Kind = CAUSAL) -> Tensor:
    """Return a mask [B, 1, T, T]: True if query and key are in the same segment and `kind` lets the query see the key.

    A segment is a run of equal numbers in `segments_BT`; indices count from its first token.
    """
    column = torch.arange(segments_BT.shape[1], device=segments_BT.device)
    first = torch.ones_like(segments_BT, dtype=torch.bool)
    first[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    start = torch.where(first, column, 0).cummax(dim=1).values
    index = column - start
    same = start[:, :, None] == start[:, None, :]
    return (same & kind.sees(index[:, :, None], index[:, None, :]))[:, None]


def pattern(
    kind: Kind | SharedPrefix, tokens: int, segments_BT: Tensor | None, cache: KVCache | None, device: torch.device
) -> Pattern:
    """Return the pattern for `Attention`: a mask, or the flag for plain causal attention, which is faster.

    `tokens` is the number of queries, for which the cache has made room. Rows of a single segment need no mask.
    Raises ValueError if segments are combined with a shared-prefix layout or with a cache that holds earlier tokens.
    """
    filled = cache is not None and cache.width > tokens
    if segments_BT is not None and (filled or isinstance(kind, SharedPrefix)):
        raise ValueError("segments cannot be combined with a filled cache or a shared-prefix layout; leave them out")
    if isinstance(kind, SharedPrefix):
        return kind
    if segments_BT is not None and (segments_BT != segments_BT[:, :1]).any():
        return Dense(segment_mask(segments_BT, kind))
    if cache is not None and filled:
        return Dense(cache.mask(kind))
    if isinstance(kind, Causal | Bidirectional):
        return Dense(causal=isinstance(kind, Causal))
    index = torch.arange(tokens, device=device)
    return Dense(kind.sees(index[None, :, None], index[None, None, :])[:, None])


# -- keys and values of earlier tokens --------------------------------------------------------------------------------


class KVCache:
    """Keys and values of the earlier tokens, in memory that is allocated once: [L, B, K, capacity, C].

    Rows may have different lengths: the tokens of row b are in columns 0 to `lengths[b]` − 1, and new ones follow.
    """

    def __init__(self, config: ModelConfig, batch: int, capacity: int, like: Tensor) -> None:
        """Allocate `batch` rows of `capacity` tokens, with the dtype and on the device of `like`."""
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = like.new_zeros(shape), like.new_zeros(shape)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.width = 0  # the longest length; a Python number, so that reading it does not wait for the device
        self.columns = self.lengths[:, None]  # [B, T]: the columns of the newest tokens
        self._index = self.lengths  # [B · K · T]: the same columns, as indices of a layer's flattened vectors

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` new tokens in each row; every layer then calls `append` once."""
        self.columns = self.lengths[:, None] + torch.arange(tokens, device=self.lengths.device)
        self.lengths, self.width = self.lengths + tokens, self.width + tokens
        _, batch, heads, capacity, _ = self.keys.shape
        first = torch.arange(0, batch * heads * capacity, capacity, device=self.lengths.device).view(batch, heads, 1)
        self._index = (first + self.columns[:, None]).flatten()

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new tokens' keys and values, and return all keys and values of the layer, [B, K, width, C]."""
        for stored, new in ((self.keys[layer], k_BKTC), (self.values[layer], v_BKTC)):
            vectors = new.to(stored.dtype).reshape(-1, stored.shape[-1])
            stored.view(-1, stored.shape[-1]).index_copy_(0, self._index, vectors)
        return self.keys[layer, :, :, : self.width], self.values[layer, :, :, : self.width]

    def mask(self, kind: Kind) -> Tensor:
        """Return a mask [B, 1, T, width]: the tokens of its row that each of the newest tokens attends to."""
        key = torch.arange(self.width, device=self.lengths.device)[None, None]
        return (kind.sees(self.columns[:, :, None], key) & (key < self.lengths[:, None, None]))[:, None]

    def keep(self, rows: Tensor) -> None:
        """Drop every row of the batch except `rows` (indices)."""
        self.keys, self.values, self.lengths = self.keys[:, rows], self.values[:, rows], self.lengths[rows]


# -- the layer --------------------------------------------------------------------------------------------------------


def selected(x_BTD: Tensor, at: Tensor | None) -> Tensor:
    """Return the tokens at the flat indices `at` ([A], into B · T), [A, D]; `None` returns the input unchanged."""
    return x_BTD if at is None else x_BTD.flatten(0, 1).index_select(0, at)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023), by default with QK-norm (RMSNorm of queries and keys)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c = config.hidden_size, config.head_dim
        self.config = config
        bias = config.attention_bias != "none"
        self.q_proj = Linear(d, config.num_heads * c, bias)
        self.k_proj = Linear(d, config.num_kv_heads * c, bias)
        self.v_proj = Linear(d, config.num_kv_heads * c, bias)
        self.o_proj = Linear(config.num_heads * c, d, config.attention_bias == "qkvo")
        self.q_norm = RMSNorm(c, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c, config.norm_eps) if config.qk_norm else nn.Identity()

    def project(self, x_BTD: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries [B, H, T, C], keys and values [B, K, T, C]; `rope` rotates queries and keys."""
        heads = (*x_BTD.shape[:2], -1, self.config.head_dim)
        q = self.q_norm(self.q_proj(x_BTD).view(heads)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x_BTD).view(heads)).transpose(1, 2)
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        return q, k, self.v_proj(x_BTD).view(heads).transpose(1, 2)

    def forward(
        self, x_BTD: Tensor, rope: Rope, pattern: Pattern, cache: KVCache | None, layer: int, at: Tensor | None
    ) -> Tensor:
        """Attend to the keys that `pattern` gives each query: [B, T, D], or [A, D] for the flat indices `at` alone."""
        q, k, v = self.project(x_BTD, rope)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        share, outputs = q.shape[1] // k.shape[1], []
        for queries, keys, values, mask, causal in pattern.split(q, k, v):
            if share > 1:
                keys, values = keys.repeat_interleave(share, dim=1), values.repeat_interleave(share, dim=1)
            queries, keys = queries.to(values.dtype), keys.to(values.dtype)
            outputs.append(F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, is_causal=causal))
        out = pattern.join(outputs)
        return self.o_proj(selected(out.transpose(1, 2).flatten(2), at))  # type: ignore[no-any-return]
