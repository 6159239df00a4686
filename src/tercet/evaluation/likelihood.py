"""How probable a model finds texts: bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.data.types import Document
from tercet.errors import DataError
from tercet.evaluation.metrics import Estimate, ratio
from tercet.evaluation.primitives import Primitives


def document_bits(lm: Primitives, texts: Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """−log2 p of each text (ids without special tokens), [len(texts)].

    Long texts are read in windows of the context that follow one another, each beginning with one token of context (the
    last of the window before; `<|endoftext|>` for the first), so every token is predicted exactly once. Unlike in
    `Primitives.rolling` the last window does not reach back.
    """
    size = lm.model.config.context_length
    windows, owners = list[tuple[list[int], list[int]]](), list[int]()
    for number, text in enumerate(texts):
        ids = [lm.tokenizer.endoftext, *text]
        mine = [(ids[a : a + 1], ids[a + 1 : a + size + 1]) for a in range(0, len(text), size)]
        windows += mine
        owners += [number] * len(mine)
    nats = [-scored.logprob for scored in lm.score(windows)]
    return np.bincount(np.array(owners, dtype=np.int64), nats, len(texts)) / math.log(2)


def by_source(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents grouped by their source, sources in alphabetical order. Raises DataError where there are none."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source, []).append(document)
    if not groups:
        raise DataError("no held-out documents to measure on")
    return dict(sorted(groups.items()))


def bits_per_byte(lm: Primitives, documents: Sequence[Document]) -> dict[str, Estimate]:
    """Bits per byte of the source text, per source, with an interval that resamples documents."""
    out = {}
    for source, group in by_source(documents).items():
        bits = document_bits(lm, lm.tokenizer.encode_batch([d.text for d in group]))
        out[source] = ratio(bits, [len(d.text.encode()) for d in group])
    return out


def average(estimates: Mapping[str, Estimate]) -> float:
    """Unweighted mean over sources: the one number to compare runs by."""
    return sum(e.value for e in estimates.values()) / len(estimates)
