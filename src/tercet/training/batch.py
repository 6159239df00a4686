"""Rows of tokens as arrays: packing texts into rows, and the batch that the learner sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import DataError

PAD_SEGMENT = -1
PASS_TOKENS = (
    1024  # of a forward pass in training: larger ones are not faster on a CPU, and take more memory (docs/log.md)
)


def rows_per_pass(micro_batch: int, tokens_per_row: float) -> int:
    """Rows of a forward pass in training: `micro_batch`, or with 0 as many as make about PASS_TOKENS tokens."""
    return micro_batch or max(1, round(PASS_TOKENS / tokens_per_row))


@dataclass(frozen=True)
class Batch:
    """What an objective works on: predict `targets` from `tokens`, counting each target `weights` times.

    `segments` numbers the texts packed into a row (PAD_SEGMENT on padding); None means one text a row.
    """

    tokens: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T] float32
    segments: Tensor | None  # [B, T] int32

    @property
    def count(self) -> float:
        """By what the learner divides the summed loss: the sum of the weights."""
        return float(self.weights.sum(dtype=torch.float64))

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows."""
        for a in range(0, len(self.tokens), rows):
            s = slice(a, a + rows)
            yield Batch(
                self.tokens[s], self.targets[s], self.weights[s], None if self.segments is None else self.segments[s]
            )


@dataclass(frozen=True)
class Rows:
    """Packed rows, each one token longer than the context so that inputs and targets are two views of it."""

    tokens: NDArray[np.int32]  # [N, T + 1]
    segments: NDArray[np.int32]  # [N, T + 1]
    weights: NDArray[np.float32]  # [N, T + 1]: of predicting this token

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, rows: Sequence[int] | NDArray[np.int64]) -> Batch:
        """The rows as a batch. A target in another segment than its input has weight 0: nothing predicts across texts."""
        tokens, segments = self.tokens[rows], self.segments[rows]
        same = segments[:, 1:] == segments[:, :-1]
        weights = self.weights[rows][:, 1:] * (same & (segments[:, 1:] != PAD_SEGMENT))
        return Batch(
            tokens=torch.from_numpy(tokens[:, :-1].astype(np.int64)),
            targets=torch.from_numpy(tokens[:, 1:].astype(np.int64)),
            weights=torch.from_numpy(weights.astype(np.float32)),
            segments=torch.from_numpy(np.ascontiguousarray(segments[:, :-1])),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """All rows, in order."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "segments", "weights")))


def pack_stream(texts: Sequence[Sequence[int]], length: int, pad: int) -> Rows:
    """Chop texts, laid end to end, into rows of `length` targets; a text may run over into the next row.

    The last row is filled up with `pad`. Each text brings its own begin and end tokens. Raises DataError on no tokens.
    """
    total = sum(len(t) for t in texts)
    if total < 2:
        raise DataError("no text to learn from: fewer than two tokens in all")
    count = -(-(total - 1) // length)
    stream = np.full(count * length + 1, pad, dtype=np.int32)
    segments = np.full(count * length + 1, PAD_SEGMENT, dtype=np.int32)
    at = 0
    for number, text in enumerate(texts):
        stream[at : at + len(text)] = text
        segments[at : at + len(text)] = number
        at += len(text)
    index = np.arange(count)[:, None] * length + np.arange(length + 1)[None]
    return Rows(stream[index], segments[index], (segments[index] != PAD_SEGMENT).astype(np.float32))


def pack_whole(texts: Sequence[tuple[Sequence[int], Sequence[float]]], length: int, pad: int) -> Rows:
    """Put whole (tokens, weights) texts into rows of `length` targets, longest first into the fullest row with room.

    Raises DataError where a text is longer than `length + 1` tokens, or where there is none.
    """
    if not texts:
        raise DataError("no conversations to learn from")
    rows: list[list[int]] = []
    room_left: dict[int, list[int]] = {}  # free tokens → rows with exactly that many free
    for number in sorted(range(len(texts)), key=lambda i: (-len(texts[i][0]), i)):
        need = len(texts[number][0])
        if need > length + 1:
            raise DataError(f"a text of {need} tokens does not fit a row of {length + 1}; cut it first")
        room = next((r for r in range(need, length + 2) if room_left.get(r)), None)
        if room is None:
            row, room = len(rows), length + 1
            rows.append([])
        else:
            row = room_left[room].pop()
        rows[row].append(number)
        room_left.setdefault(room - need, []).append(row)
    tokens = np.full((len(rows), length + 1), pad, dtype=np.int32)
    segments = np.full((len(rows), length + 1), PAD_SEGMENT, dtype=np.int32)
    weights = np.zeros((len(rows), length + 1), dtype=np.float32)
    for row, members in enumerate(rows):
        at = 0
        for segment, number in enumerate(members):
            ids, ws = texts[number]
            span = slice(at, at + len(ids))
            tokens[row, span], segments[row, span], weights[row, span] = ids, segment, ws
            at += len(ids)
    return Rows(tokens, segments, weights)


def pad_right(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] filled up on the right, and each text's length [B]. Causal attention never looks at the filling."""
    longest = max(len(t) for t in texts)
    out = np.full((len(texts), longest), pad, dtype=np.int64)
    for row, text in enumerate(texts):
        out[row, : len(text)] = text
    return torch.from_numpy(out), torch.tensor([len(t) for t in texts])
