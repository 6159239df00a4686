"""NEFTune (Jain et al. 2023, arXiv 2310.05914): uniform noise on the embeddings in training, never in evaluation.

    x + alpha / sqrt(L · D) · Uniform(-1, 1), for a text of L tokens and embeddings of size D (section 2, algorithm 1)

The noise on a text has the same expected norm, alpha / sqrt(3), whatever the text's length. The noise of a row is a
function of seed, step and the row's index in the batch. So a resumed run draws the same noise, and so does a run with
other micro-batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tercet.model.transformer import Transformer
from tercet.training.losses import next_token
from tercet.training.packing import PAD_SEGMENT, Batch


def text_lengths(tokens_BT: Tensor, segments_BT: Tensor | None) -> Tensor:
    """Return, for every token, the number of tokens of its text, [B, T]; 0 on padding."""
    if segments_BT is None:
        return torch.full_like(tokens_BT, tokens_BT.shape[1])
    same = segments_BT[:, :, None] == segments_BT[:, None, :]
    return same.sum(dim=-1) * (segments_BT != PAD_SEGMENT)


def embedding_noise(batch: Batch, size: int, alpha: float, seed: int, step: int, first_row: int) -> Tensor:
    """Return noise [B, T, size] for the rows of the batch of `step` from index `first_row` on; 0 on padding."""
    length = batch.tokens.shape[1]
    drawn = [
        np.random.default_rng([seed, 5, step, first_row + row]).random((length, size), dtype=np.float32)
        for row in range(len(batch.tokens))
    ]
    lengths = text_lengths(batch.tokens, batch.segments)
    scale = torch.where(lengths > 0, alpha / (lengths.clamp(min=1) * size).sqrt(), 0.0)
    return (torch.from_numpy(np.stack(drawn)).to(scale.device) * 2 - 1) * scale[:, :, None]


@dataclass(frozen=True)
class NoisyBatch:
    """A micro-batch with its step and the index of its first row, which determine its noise."""

    batch: Batch
    step: int
    first_row: int

    @property
    def count(self) -> float:
        """The divisor of the summed loss."""
        return self.batch.count

    @property
    def tokens(self) -> Tensor:
        """The tokens of the batch, [B, T]."""
        return self.batch.tokens


def noisy_batches(batches: Sequence[Batch], step: int) -> list[NoisyBatch]:
    """Return the micro-batches of a step, each with the index of its first row."""
    rows = np.cumsum([0, *(len(b.tokens) for b in batches)])
    return [NoisyBatch(b, step, int(first)) for b, first in zip(batches, rows)]


@dataclass(frozen=True)
class NoisyNextToken:
    """The objective `next_token` on noisy embeddings. The paper uses an `alpha` of 5 to 15."""

    alpha: float
    seed: int

    def __call__(self, model: Transformer, noisy: NoisyBatch) -> tuple[Tensor, dict[str, float]]:
        """Return the summed weighted negative log-likelihood in nats, and its metrics."""
        size = model.config.hidden_size
        noise = embedding_noise(noisy.batch, size, self.alpha, self.seed, noisy.step, noisy.first_row)
        return next_token(model, noisy.batch, noise.to(model.output_weight.dtype))
