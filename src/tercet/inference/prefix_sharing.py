"""Lay out sequences so that every shared prefix is computed once: a trie of ids as one row, without padding.

sequences  a b c d      tokens     a b c d e f g
           a b c e      positions  0 1 2 3 3 2 3      within each sequence
           a b f g      index      sequence 1 is at 0 1 2 4 of the row, sequence 2 at 0 1 5 6
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.model.attention import KVCache, PrefixPart, SharedPrefix
from tercet.model.transformer import Transformer
from tercet.training.packing import to_device


@dataclass(frozen=True)
class Layout:
    """N sequences, of at most S tokens, as one row of T tokens."""

    tokens: Tensor  # [1, T] i64
    positions: Tensor  # [1, T] i64: of each token within its sequence
    attention: SharedPrefix  # which tokens of the row make up each sequence
    index: NDArray[np.int64]  # [N, S]: where each sequence's tokens are in the row; undefined after a sequence's end
    lengths: NDArray[np.int64]  # [N]

    def hidden(self, model: Transformer, at: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Compute the hidden states of the row, [T, D], or only those at the indices `at`, [A, D].

        An empty `cache` (batch 1, capacity T) receives the keys and values of the whole row.
        """
        tokens, positions, attention, at = to_device((self.tokens, self.positions, self.attention, at), model.device)
        hidden = model.hidden(tokens, positions_BT=positions, attention=attention, cache=cache, at=at)
        return hidden[0] if at is None else hidden

    def ends(self) -> NDArray[np.int64]:
        """Return where each sequence's last token is in the row, [N]."""
        return self.index[np.arange(len(self.index)), self.lengths - 1]


def shared_length(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """Return the length of the longest common prefix of `a` and `b`."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def lay_out(sequences: Sequence[Sequence[int]]) -> Layout:
    """Lay out `sequences` as a trie. Raises ValueError if there is none or one is empty.

    In sorted order, the longest prefix that a sequence shares with any earlier one is the prefix that it shares with
    its neighbour. So comparing neighbours finds the whole trie.
    """
    if not sequences or not all(sequences):
        raise ValueError("a layout needs at least one sequence, and every sequence at least one token")
    lengths = np.array([len(ids) for ids in sequences])
    shared = np.zeros_like(lengths)
    rows = np.zeros((len(sequences), lengths.max()), dtype=np.int64)
    tokens, positions = list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    at, before, previous = 0, -1, np.zeros(0, dtype=np.int64)
    for number in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        ids = np.array(sequences[number], dtype=np.int64)
        same = shared[number] = shared_length(previous, ids)
        if same:
            rows[number, :same] = rows[before, :same]
        rows[number, same : len(ids)] = np.arange(at, at + len(ids) - same)
        tokens.append(ids[same:])
        positions.append(np.arange(same, len(ids)))
        at, before, previous = at + len(ids) - same, number, ids
    row, position = (torch.from_numpy(np.concatenate(parts))[None] for parts in (tokens, positions))
    return Layout(row, position, _shared_attention(rows, lengths, shared, at), rows, lengths)


def _shared_attention(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], shared: NDArray[np.int64], total: int
) -> SharedPrefix:
    """Group sequences of similar lengths (within a quarter) into the parts of shared-prefix attention.

    If more than half of a sequence's tokens are shared, only its own tokens are queries, which needs a mask. Otherwise
    plain causal attention is faster, although it computes the shared queries again: it skips later keys.
    """
    first = np.where(2 * shared > lengths, shared, 0)  # the first token that is a query
    groups = {
        int(i): (first[i] > 0, math.ceil(3 * math.log2(lengths[i] - first[i])), math.ceil(3 * math.log2(lengths[i])))
        for i in np.flatnonzero(shared < lengths)  # the others have no token of their own
    }
    parts, output_rows, outputs = list[PrefixPart](), np.zeros(total, dtype=np.int64), 0
    for group in sorted(set(groups.values())):
        members = np.array([i for i, g in groups.items() if g == group])
        widest, most_queries = lengths[members].max(), (lengths - first)[members].max()
        keys = rows[members, :widest]
        steps = first[members, None] + np.arange(most_queries)  # [N, Q]: which token of its sequence is a query
        # the other queries are padding, or belong to an earlier sequence
        own = (steps < lengths[members, None]) & (steps >= shared[members, None])
        index = np.take_along_axis(keys, np.minimum(steps, widest - 1), 1)
        output_rows[index[own]] = outputs + np.flatnonzero(own)
        queries = mask = None
        if group[0]:
            queries = torch.from_numpy(index)
            mask = torch.from_numpy(np.arange(widest) <= steps[:, :, None])[:, None]
        parts.append(PrefixPart(torch.from_numpy(keys), queries, mask))
        outputs += steps.size
    return SharedPrefix(tuple(parts), torch.from_numpy(output_rows))
