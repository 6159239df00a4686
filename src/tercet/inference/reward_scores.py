"""Scores of texts by a reward model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.training.packing import pad_right, to_device
from tercet.training.run import Run

REWARD_PASS_TOKENS = 2048  # tokens per forward pass, with padding


def last_hidden(model: Transformer, texts: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Return the hidden state [B, D] at the last token of each text (ids)."""
    tokens, lengths = pad_right(texts, pad)
    last = torch.arange(len(texts)) * tokens.shape[1] + lengths - 1
    tokens, last = to_device((tokens, last), model.device)
    return model.hidden(tokens, at=last)


@torch.no_grad()
def score_texts(model: ValueHeadModel, texts: Sequence[Sequence[int]], pad: int) -> list[float]:
    """Return the reward of each text (ids), which is the value head's output at its last token."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0.0] * len(texts)
    rows = max(1, REWARD_PASS_TOKENS // max(map(len, texts), default=1))
    for a in range(0, len(order), rows):
        part = order[a : a + rows]
        for i, score in zip(part, model.read(last_hidden(model.backbone, [texts[i] for i in part], pad)).tolist()):
            out[i] = score
    return out


def check_contexts(reward_model: ValueHeadModel, context_length: int, reward_run: Run, run: Run) -> None:
    """Check that the reward model can read all that the language model can write. Raises ConfigError if not."""
    if reward_model.config.context_length < context_length:
        raise ConfigError(
            f"the reward model {reward_run.path} has a context of {reward_model.config.context_length} tokens, but "
            f"{run.path} writes up to {context_length}; train the reward model from a model with at least that context"
        )
