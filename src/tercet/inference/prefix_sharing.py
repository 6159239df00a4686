"""Sequences with shared prefixes, and each prefix computed once: a trie of ids laid end to end, without padding.

sequences  a b c d      tokens     a b c d e f g
           a b c e      positions  0 1 2 3 3 2 3      within each sequence
           a b f g      sequence 1 is at the places 0 1 2 4 of the row, sequence 2 at 0 1 5 6
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
    """N sequences as one row of T tokens; a place is an index into that row."""

    tokens: Tensor  # [1, T] i64
    positions: Tensor  # [1, T] i64
    attention: SharedPrefix  # which places make up each sequence
    places: NDArray[np.int64]  # [N, S]: the place of each sequence's tokens; without meaning after a sequence's end
    lengths: NDArray[np.int64]  # [N]

    def hidden(self, model: Transformer, at: Tensor | None = None, cache: KVCache | None = None) -> Tensor:
        """Hidden states of all places, [T, D], or of the places `at` alone, [A, D].

        An empty `cache` (batch 1, capacity T) takes the keys and values of every place.
        """
        tokens, positions, branches, at = to_device((self.tokens, self.positions, self.attention, at), model.device)
        hidden = model.hidden(tokens, positions_BT=positions, attention=branches, cache=cache, at=at)
        return hidden[0] if at is None else hidden

    def ends(self) -> NDArray[np.int64]:
        """The place of each sequence's last token, [N]."""
        return self.places[np.arange(len(self.places)), self.lengths - 1]


def shared_length(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """The length of the longest common prefix of `a` and `b`."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def lay_out(sequences: Sequence[Sequence[int]]) -> Layout:
    """Sequences as a trie. Raises ValueError where one is empty.

    In alphabetical order, the longest prefix that a sequence shares with any earlier one is the one that it shares with
    its neighbour, so comparing neighbours finds the whole trie.
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
    return Layout(
        torch.from_numpy(np.concatenate(tokens))[None], torch.from_numpy(np.concatenate(positions))[None],
        _branches(rows, lengths, shared, at), rows, lengths,
    )  # fmt: skip


def _branches(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], shared: NDArray[np.int64], total: int
) -> SharedPrefix:
    """Group sequences by length, in steps of a quarter; where most tokens are shared, only the new ones are queries.

    Plain causal attention skips later keys, half of its work. So a mask, which cannot skip, only pays where less than
    half of a sequence's tokens are queries.
    """
    first = np.where(2 * shared > lengths, shared, 0)  # the first token that is a query
    kinds = {
        int(i): (first[i] > 0, math.ceil(3 * math.log2(lengths[i] - first[i])), math.ceil(3 * math.log2(lengths[i])))
        for i in np.flatnonzero(shared < lengths)  # the others have no token of their own
    }
    parts, home, outputs = list[PrefixPart](), np.zeros(total, dtype=np.int64), 0
    for kind in sorted(set(kinds.values())):
        mine = np.array([i for i, k in kinds.items() if k == kind])
        wide, asking = lengths[mine].max(), (lengths - first)[mine].max()
        keys = rows[mine, :wide]
        steps = first[mine, None] + np.arange(asking)  # [N, Q]: which token of its sequence is a query
        # the others are another sequence's, or padding
        there = (steps < lengths[mine, None]) & (steps >= shared[mine, None])
        places = np.take_along_axis(keys, np.minimum(steps, wide - 1), 1)
        home[places[there]] = outputs + np.flatnonzero(there)
        asked = mask = None
        if kind[0]:
            asked = torch.from_numpy(places)
            mask = torch.from_numpy(np.arange(wide) <= steps[:, :, None])[:, None]
        parts.append(PrefixPart(torch.from_numpy(keys), asked, mask))
        outputs += steps.size
    return SharedPrefix(tuple(parts), torch.from_numpy(home))
