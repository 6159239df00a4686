"""Texts to rewards: a reward model's score of each."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tercet.errors import ConfigError
from tercet.model.heads import ValueHeadModel
from tercet.training.packing import pad_right
from tercet.training.run import Run

REWARD_PASS_TOKENS = 2048  # of a forward pass


@torch.no_grad()
def score_texts(model: ValueHeadModel, texts: Sequence[Sequence[int]], pad: int) -> list[float]:
    """The reward of each text (ids), read at its last token."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0.0] * len(texts)
    rows = max(1, REWARD_PASS_TOKENS // max(map(len, texts), default=1))
    for a in range(0, len(order), rows):
        part = order[a : a + rows]
        tokens, lengths = pad_right([texts[i] for i in part], pad)
        last = torch.arange(len(part)) * tokens.shape[1] + lengths - 1
        for i, score in zip(part, model.read(model.backbone.hidden(tokens, at=last)).tolist()):
            out[i] = score
    return out


def check_contexts(judge: ValueHeadModel, context_length: int, judge_run: Run, run: Run) -> None:
    """Raises ConfigError where the reward model cannot read all that the language model can write."""
    if judge.config.context_length < context_length:
        raise ConfigError(
            f"the reward model {judge_run.path} reads {judge.config.context_length} tokens, but {run.path} writes up to "
            f"{context_length}; train the reward model from a model with as long a context"
        )
