"""Packed sequences of tokens as arrays, and the batch that the learner sees."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import DataError

PAD_SEGMENT = -1
V = TypeVar("V")
# Tokens of a forward pass in training: larger passes are not faster on a CPU, and take more memory (docs/log.md).
TRAINING_PASS_TOKENS = 1024


def sequences_per_pass(micro_batch: int, tokens_per_row: float) -> int:
    """Rows of a forward pass in training: `micro_batch`, or with 0 as many as make about TRAINING_PASS_TOKENS tokens."""
    return micro_batch or max(1, round(TRAINING_PASS_TOKENS / tokens_per_row))


def to_device(value: V, device: torch.device) -> V:
    """`value` with every tensor in it on `device`: a tensor, or a dataclass or tuple of them (and of anything else).

    Batches are made on the CPU and moved once, here.
    """
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device)
    elif is_dataclass(value) and not isinstance(value, type):
        moved = replace(value, **{f.name: to_device(getattr(value, f.name), device) for f in fields(value) if f.init})
    elif isinstance(value, tuple):
        moved = tuple(to_device(one, device) for one in value)
    return moved  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Batch:
    """What an objective of single tokens works on: predict `targets` from `tokens`; each counts `weights` times.

    `segments` numbers the texts packed into a row (PAD_SEGMENT on padding); None means one text a row.
    """

    tokens: Tensor  # [B, T] int64
    targets: Tensor  # [B, T] int64
    weights: Tensor  # [B, T] float32
    segments: Tensor | None  # [B, T] int32

    @property
    def count(self) -> float:
        """The sum of the weights, by which the learner divides the summed loss."""
        return float(self.weights.sum(dtype=torch.float64))

    def split(self, rows: int) -> Iterator[Batch]:
        """Micro-batches of at most `rows` rows."""
        for a in range(0, len(self.tokens), rows):
            s = slice(a, a + rows)
            yield Batch(
                self.tokens[s], self.targets[s], self.weights[s], None if self.segments is None else self.segments[s]
            )


@dataclass(frozen=True)
class PackedSequences:
    """Packed sequences. What is predicted from them is the objective's affair: it makes a `Batch` of some rows.

    `segments` numbers the texts of a row (PAD_SEGMENT on padding); `weights` says how much each token counts as a
    target.
    """

    tokens: NDArray[np.int32]  # [N, W]
    segments: NDArray[np.int32]  # [N, W]
    weights: NDArray[np.float32]  # [N, W]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> PackedSequences:
        """The rows with these numbers, in this order."""
        return PackedSequences(self.tokens[rows], self.segments[rows], self.weights[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """All rows, in order."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "segments", "weights")))


def pack_stream(texts: Sequence[Sequence[int]], length: int, pad: int) -> PackedSequences:
    """Cut texts, laid end to end, into rows of `length` + 1 tokens; a text may run over into the next row.

    Neighbouring rows share one token, so that every token but the very first can be a target once. The last row is
    padded with `pad`. Each text brings its own begin and end tokens. Raises DataError where there are no tokens.
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
    return PackedSequences(stream[index], segments[index], (segments[index] != PAD_SEGMENT).astype(np.float32))


def pack_whole(texts: Sequence[tuple[Sequence[int], Sequence[float]]], length: int, pad: int) -> PackedSequences:
    """Put whole (tokens, weights) texts into rows of `length` + 1 tokens, longest first into the fullest row with room.

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
    return PackedSequences(tokens, segments, weights)


def pad_right(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Tokens [B, T] padded on the right, and each text's length [B]. Causal attention never looks at the padding."""
    longest = max(len(t) for t in texts)
    out = np.full((len(texts), longest), pad, dtype=np.int64)
    for row, text in enumerate(texts):
        out[row, : len(text)] = text
    return torch.from_numpy(out), torch.tensor([len(t) for t in texts])
