"""Packed sequences of tokens as arrays, and the batches that the learner gets."""

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
# Tokens per forward pass in training: larger passes are not faster on a CPU and need more memory (docs/log.md).
TRAINING_PASS_TOKENS = 1024


def sequences_per_pass(micro_batch: int, tokens_per_row: float) -> int:
    """Return the rows per forward pass in training: `micro_batch`, or if 0, about TRAINING_PASS_TOKENS tokens."""
    return micro_batch or max(1, round(TRAINING_PASS_TOKENS / tokens_per_row))


def to_device(value: V, device: torch.device) -> V:
    """Move every tensor in `value` to `device`: a tensor, or a dataclass or tuple that may contain anything.

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
    """A batch for objectives on single tokens: predict `targets` from `tokens`, each with its weight.

    `segments` numbers the texts that are packed into a row (PAD_SEGMENT on padding); None means one text per row.
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
        """Yield micro-batches of at most `rows` rows."""
        for a in range(0, len(self.tokens), rows):
            s = slice(a, a + rows)
            yield Batch(
                self.tokens[s], self.targets[s], self.weights[s], None if self.segments is None else self.segments[s]
            )


@dataclass(frozen=True)
class PackedSequences:
    """N rows of packed sequences. The objective makes a `Batch` from some of them: it defines inputs and targets.

    `segments` numbers the texts of a row (PAD_SEGMENT on padding); `weights` is each token's weight as a target.
    """

    tokens: NDArray[np.int32]  # [N, W]
    segments: NDArray[np.int32]  # [N, W]
    weights: NDArray[np.float32]  # [N, W]

    def __len__(self) -> int:
        return len(self.tokens)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> PackedSequences:
        """Return the rows with these numbers, in this order."""
        return PackedSequences(self.tokens[rows], self.segments[rows], self.weights[rows])

    @classmethod
    def concatenate(cls, parts: Sequence[PackedSequences]) -> PackedSequences:
        """Return all rows of all parts, in order."""
        return cls(*(np.concatenate([getattr(p, name) for p in parts]) for name in ("tokens", "segments", "weights")))


def pack_stream(texts: Sequence[Sequence[int]], length: int, pad: int) -> PackedSequences:
    """Concatenate texts and cut them into rows of `length` + 1 tokens; a text may continue in the next row.

    Neighbouring rows share one token, so that every token except the very first is a target exactly once. The last row
    is padded with `pad`. Each text brings its own begin and end tokens. Raises DataError for fewer than two tokens.
    """
    total = sum(len(t) for t in texts)
    if total < 2:
        raise DataError(f"no text to learn from: {total} tokens in all; wanted at least 2, so give more text")
    count = -(-(total - 1) // length)
    stream = np.full(count * length + 1, pad, dtype=np.int32)
    segments = np.full(count * length + 1, PAD_SEGMENT, dtype=np.int32)
    start = 0
    for number, text in enumerate(texts):
        stream[start : start + len(text)] = text
        segments[start : start + len(text)] = number
        start += len(text)
    index = np.arange(count)[:, None] * length + np.arange(length + 1)[None]
    return PackedSequences(stream[index], segments[index], (segments[index] != PAD_SEGMENT).astype(np.float32))


def pack_whole(texts: Sequence[tuple[Sequence[int], Sequence[float]]], length: int, pad: int) -> PackedSequences:
    """Pack whole (tokens, weights) texts into rows of `length` + 1 tokens.

    The longest text comes first, and each goes into the fullest row that has room for it.

    Raises DataError if a text is longer than `length` + 1 tokens, or if there is none.
    """
    if not texts:
        raise DataError("no conversations to learn from; give a file with at least one")
    rows: list[list[int]] = []
    room_left: dict[int, list[int]] = {}  # free tokens → rows with exactly this many free tokens
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
        start = 0
        for segment, number in enumerate(members):
            ids, ws = texts[number]
            span = slice(start, start + len(ids))
            tokens[row, span], segments[row, span], weights[row, span] = ids, segment, ws
            start += len(ids)
    return PackedSequences(tokens, segments, weights)


def pad_right(texts: Sequence[Sequence[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Return tokens [B, T] padded on the right, and lengths [B]. Causal attention never attends to the padding."""
    longest = max(len(t) for t in texts)
    out = np.full((len(texts), longest), pad, dtype=np.int64)
    for row, text in enumerate(texts):
        out[row, : len(text)] = text
    return torch.from_numpy(out), torch.tensor([len(t) for t in texts])
