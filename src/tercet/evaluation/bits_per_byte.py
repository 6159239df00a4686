"""Bits per byte: how probable a model finds texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tercet.data.types import Document
from tercet.errors import DataError
from tercet.inference.language_model import LanguageModel
from tercet.statistics.intervals import Estimate, ratio


def document_bits(lm: LanguageModel, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return −log2 p of each text, [len(texts)].

    A long text is read in consecutive windows as long as the model's context. Each window begins with the last token of
    the one before (the first with `<|endoftext|>`), so that every token is predicted exactly once. The last window is
    not extended backwards.
    """
    return -np.array(lm.rolling(texts, reach_back=False)) / math.log(2)


def by_source(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Return the documents by their source, sources in alphabetical order. Raises DataError if there are none."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source, []).append(document)
    if not groups:
        raise DataError("found no held-out documents; wanted at least one with text")
    return dict(sorted(groups.items()))


def bits_per_byte(lm: LanguageModel, documents: Sequence[Document]) -> dict[str, Estimate]:
    """Return the bits per byte of the text of each source, with an interval that resamples documents."""
    out = {}
    for source, group in by_source(documents).items():
        bits = document_bits(lm, [d.text for d in group])
        out[source] = ratio(bits, [len(d.text.encode()) for d in group])
    return out


def average(estimates: Mapping[str, Estimate]) -> float:
    """Return the unweighted mean over sources, by which runs are compared."""
    return sum(e.value for e in estimates.values()) / len(estimates)


def limit_bytes(texts: Sequence[Document], limit: int) -> list[Document]:
    """Return the first documents of each source, as many as have at most `limit` bytes together.

    Each document is cut to `limit` / 8 characters. So a source has several documents, which an interval needs.
    """
    out: list[Document] = []
    for group in by_source(texts).values():
        used = 0
        for document in group:
            text = document.text[: max(1, limit // 8)]
            size = len(text.encode())
            if used and used + size > limit:
                continue
            out.append(replace(document, text=text))
            used += size
    return out
