"""Sequences that begin alike, and every shared beginning computed once: a trie of ids laid end to end, without filling.

sequences  a b c d      places     a b c d e f g
           a b c e      positions  0 1 2 3 3 2 3
           a b f g      row 1 is the places 0 1 2 4, row 2 the places 0 1 5 6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.model.transformer import Branches, KVCache, Transformer


@dataclass(frozen=True)
class Layout:
    """N sequences as T places."""

    tokens: Tensor  # [1, T] i64
    positions: Tensor  # [1, T] i64
    branches: Branches  # which places make up each sequence

    @property
    def places(self) -> NDArray[np.int64]:
        """[N, S]: the place of each sequence's tokens; behind a sequence's end there is no meaning."""
        return self.branches.rows.numpy()

    def hidden(self, model: Transformer, cache: KVCache | None = None) -> Tensor:
        """Hidden states of all places, [T, D]; an empty `cache` (batch 1, capacity T) is filled by place."""
        return model.hidden(self.tokens, positions_BT=self.positions, mask=self.branches, cache=cache)[0]


def shared_length(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many ids `a` and `b` begin with alike."""
    size = min(len(a), len(b))
    different = np.flatnonzero(a[:size] != b[:size])
    return int(different[0]) if len(different) else size


def lay_out(sequences: Sequence[Sequence[int]]) -> Layout:
    """Sequences as a trie. Raises ValueError where one is empty.

    In alphabetical order the longest beginning that a sequence shares with any before it is that which it shares with
    its neighbour, so comparing neighbours finds the whole trie.
    """
    if not sequences or not all(sequences):
        raise ValueError("a layout needs at least one sequence, and every sequence at least one token")
    longest = max(map(len, sequences))
    rows = np.zeros((len(sequences), longest), dtype=np.int64)
    tokens, positions, home = list[NDArray[np.int64]](), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    at, before, previous = 0, -1, np.zeros(0, dtype=np.int64)
    for number in sorted(range(len(sequences)), key=lambda i: tuple(sequences[i])):
        ids = np.array(sequences[number], dtype=np.int64)
        shared = shared_length(previous, ids)
        if shared:
            rows[number, :shared] = rows[before, :shared]
        rows[number, shared : len(ids)] = np.arange(at, at + len(ids) - shared)
        steps = np.arange(shared, len(ids))
        tokens.append(ids[shared:])
        positions.append(steps)
        home.append(number * longest + steps)
        at, before, previous = at + len(ids) - shared, number, ids
    return Layout(
        torch.from_numpy(np.concatenate(tokens))[None],
        torch.from_numpy(np.concatenate(positions))[None],
        Branches(torch.from_numpy(rows), torch.from_numpy(np.concatenate(home))),
    )
