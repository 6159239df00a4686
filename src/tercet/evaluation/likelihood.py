"""How probable a model finds texts: rolling log-likelihood and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from tercet.data.types import Document
from tercet.errors import DataError, NonFiniteError
from tercet.evaluation.metrics import Estimate, ratio
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.batch import pad_right

ROWS = 16  # windows per forward pass


@torch.no_grad()
def document_bits(model: Transformer, texts: Sequence[Sequence[int]], begin: int, pad: int) -> NDArray[np.float64]:
    """−log2 p of each text (ids without special tokens), [len(texts)].

    Long texts are read in windows of the context that follow one another, each beginning with one token of context (the
    last of the window before; `begin` for the first), so every token is predicted exactly once.
    """
    size = model.config.context_length
    windows: list[tuple[int, list[int]]] = []
    for number, text in enumerate(texts):
        ids = [begin, *text]
        windows += [(number, ids[a : a + size + 1]) for a in range(0, len(ids) - 1, size)]
    windows.sort(key=lambda w: len(w[1]))
    bits = np.zeros(len(texts))
    for a in range(0, len(windows), ROWS):
        part = windows[a : a + ROWS]
        tokens, lengths = pad_right([w for _, w in part], pad)
        logits = model(tokens[:, :-1])
        nats = F.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").double()
        real = torch.arange(tokens.shape[1] - 1)[None] < (lengths - 1)[:, None]
        for (number, _), value in zip(part, (nats * real).sum(1).tolist()):
            bits[number] += value / math.log(2)
    if not np.isfinite(bits).all():
        raise NonFiniteError("the held-out loss is not finite")
    return bits


def by_source(documents: Sequence[Document]) -> dict[str, list[Document]]:
    """Documents grouped by their source, sources in alphabetical order. Raises DataError where there are none."""
    groups: dict[str, list[Document]] = {}
    for document in documents:
        groups.setdefault(document.source, []).append(document)
    if not groups:
        raise DataError("no held-out documents to measure on")
    return dict(sorted(groups.items()))


def bits_per_byte(model: Transformer, tokenizer: Tokenizer, documents: Sequence[Document]) -> dict[str, Estimate]:
    """Bits per byte of the source text, per source, with an interval that resamples documents."""
    out = {}
    for source, group in by_source(documents).items():
        bits = document_bits(model, tokenizer.encode_batch([d.text for d in group]), tokenizer.endoftext, tokenizer.pad)
        out[source] = ratio(bits, [len(d.text.encode()) for d in group])
    return out


def average(estimates: Mapping[str, Estimate]) -> float:
    """Unweighted mean over sources: the one number to compare runs by."""
    return sum(e.value for e in estimates.values()) / len(estimates)
