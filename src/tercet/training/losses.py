"""Objectives: (model, batch) → summed loss and summed metrics. The learner divides them once by the global count.

An objective on packed rows also has a function that makes its batches from them: inputs and targets.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from tercet.model.ops import cross_entropy
from tercet.model.ops.cross_entropy import linear_cross_entropy, linear_token_logprobs
from tercet.model.transformer import Transformer
from tercet.training.packing import PAD_SEGMENT, Batch, PackedSequences, to_device


def next_token_batch(rows: PackedSequences, seed: int = 0, step: int = 0) -> Batch:
    """Make a batch in which every token is predicted from those before it: [N, W] rows give targets [N, W − 1].

    A target in another segment than its input has weight 0, so nothing is predicted across texts. `seed` and `step` are
    parameters of every such function; here nothing is random, so they have no effect.
    """
    same = rows.segments[:, 1:] == rows.segments[:, :-1]
    weights = rows.weights[:, 1:] * (same & (rows.segments[:, 1:] != PAD_SEGMENT))
    return Batch(
        tokens=torch.from_numpy(rows.tokens[:, :-1].astype(np.int64)),
        targets=torch.from_numpy(rows.tokens[:, 1:].astype(np.int64)),
        weights=torch.from_numpy(weights.astype(np.float32)),
        segments=torch.from_numpy(np.ascontiguousarray(rows.segments[:, :-1])),
    )


def next_token(model: Transformer, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
    """Return the summed weighted negative log-likelihood of the targets, in nats (pretraining and SFT).

    `noise` [B, T, D] is added to the embeddings.
    """
    trained = batch.weights.flatten().nonzero()[:, 0]
    hidden = model.hidden(batch.tokens, batch.segments, noise=noise, at=trained)
    targets, weights = batch.targets.flatten()[trained], batch.weights.flatten()[trained]
    loss = linear_cross_entropy(hidden, model.output_weight, targets, weights)
    return loss, {"loss": float(loss.detach())}


def token_logprobs(
    model: Transformer, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Return log π(target) and the entropy of π at each position, both [N], under softmax(logits / temperature).

    log π is differentiable, the entropy is not. Memory is bounded: see `linear_token_logprobs`.
    """
    return linear_token_logprobs(hidden_ND, model.output_weight, targets_N, temperature)


def token_kl(
    model: Transformer, hidden_ND: Tensor, reference: Transformer, ref_hidden_ND: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return KL(π ‖ π_ref) over the whole vocabulary at each position, [N], in nats; only `model` gets gradients."""

    def chunk(hidden: Tensor, ref_hidden: Tensor) -> Tensor:
        logp = F.log_softmax(model.logits(hidden) / temperature, dim=-1)
        with torch.no_grad():
            ref = F.log_softmax(reference.logits(ref_hidden) / temperature, dim=-1)
        return (logp.exp() * (logp - ref)).sum(-1)

    out = []
    size = cross_entropy.CHUNK
    for a in range(0, len(hidden_ND), size):
        # the logits are recomputed in the backward pass, so that memory stays bounded
        part = hidden_ND[a : a + size], ref_hidden_ND[a : a + size]
        out.append(torch.utils.checkpoint.checkpoint(chunk, *part, use_reentrant=False))
    return torch.cat(out)


@torch.no_grad()
def mean_loss(model: Transformer, rows: PackedSequences, batch_size: int) -> float:
    """Return the mean loss per weighted target over all rows, in nats."""
    total = count = 0.0
    for a in range(0, len(rows), batch_size):
        batch = next_token_batch(rows.take(range(a, min(a + batch_size, len(rows)))))
        batch = to_device(batch, model.device)
        if batch.count:
            total += float(next_token(model, batch)[0])
            count += batch.count
    return total / count
