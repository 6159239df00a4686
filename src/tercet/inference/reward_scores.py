"""Texts to rewards: a reward model's score of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tercet.model.heads import ScalarModel
from tercet.training.packing import pad_right

SCORED_TOKENS = 2048  # of a forward pass


@torch.no_grad()
def score_texts(model: ScalarModel, texts: Sequence[Sequence[int]], pad: int) -> list[float]:
    """The reward of each text (ids), read at its last token."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0.0] * len(texts)
    rows = max(1, SCORED_TOKENS // max(map(len, texts), default=1))
    for a in range(0, len(order), rows):
        part = order[a : a + rows]
        tokens, lengths = pad_right([texts[i] for i in part], pad)
        last = torch.arange(len(part)) * tokens.shape[1] + lengths - 1
        for i, score in zip(part, model.read(model.backbone.hidden(tokens, at=last)).tolist()):
            out[i] = score
    return out
