"""How probable a model finds texts: bits per byte."""

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
    """−log2 p of each text, [len(texts)].

    Long texts are read in windows of the context that follow one another, each with one token of context (the last of
    the window before; `<|endoftext|>` for the first), so that every token is predicted exactly once. The last window
    does not reach back.
    """
    return -np.array(lm.rolling(texts, reach_back=False)) / math.log(2)


def by_source(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents grouped by their source, sources in alphabetical order. Raises DataError where there are none."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source, []).append(document)
    if not groups:
        raise DataError("no held-out documents to measure on")
    return dict(sorted(groups.items()))


def bits_per_byte(lm: LanguageModel, documents: Sequence[Document]) -> dict[str, Estimate]:
    """Bits per byte of the source text, per source, with an interval that resamples documents."""
    out = {}
    for source, group in by_source(documents).items():
        bits = document_bits(lm, [d.text for d in group])
        out[source] = ratio(bits, [len(d.text.encode()) for d in group])
    return out


def average(estimates: Mapping[str, Estimate]) -> float:
    """Unweighted mean over sources: the one number to compare runs by."""
    return sum(e.value for e in estimates.values()) / len(estimates)


def limit_bytes(texts: Sequence[Document], limit: int) -> list[Document]:
    """The first documents of each source (in the order of their ids' hash they come in) with at most `limit` bytes.

    Each is cut to an eighth of the limit, so that several documents share it and an interval can be had.
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
