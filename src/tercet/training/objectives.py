"""Objectives: (model, batch) → summed loss and summed metrics. The learner divides, once, by the global count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from tercet.model.transformer import Transformer
from tercet.training.batch import Batch, Rows

CHUNK = 1024  # tokens whose logits exist at once: bounds memory at CHUNK · V floats


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ_n w_n · −log softmax(W h_n)[y_n] without ever holding all logits.

    The gradients are computed chunk by chunk in the forward pass, while the chunk's softmax is at hand, and scaled in
    the backward pass: half the work of computing the logits twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, low: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        kind = torch.bfloat16 if low else hidden_ND.dtype
        hidden, weight = hidden_ND.detach().to(kind), weight_VD.detach().to(kind)
        need = any(ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden_ND) if need else None
        d_weight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None  # not with adapters: it is frozen
        for a in range(0, len(hidden), CHUNK):
            h, y, w = hidden[a : a + CHUNK], targets_N[a : a + CHUNK], weights_N[a : a + CHUNK].to(weight_VD.dtype)
            logits = (h @ weight.T).to(weight_VD.dtype)
            logp = F.log_softmax(logits, dim=-1)
            chosen = logp.gather(1, y[:, None])[:, 0]
            total -= (chosen.double() * w.double()).sum()
            if d_hidden is not None:
                d_logits = logp.exp_()  # softmax − onehot, times the weight
                d_logits.scatter_add_(1, y[:, None], torch.full_like(chosen, -1.0)[:, None])
                d_logits = d_logits.mul_(w[:, None]).to(kind)
                d_hidden[a : a + CHUNK] = (d_logits @ weight).to(d_hidden.dtype)
                if d_weight is not None:
                    d_weight += (d_logits.T @ h).to(d_weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        return total.to(torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        d_weight = None if d_weight is None else d_weight * grad.to(d_weight.dtype)
        return d_hidden * grad.to(d_hidden.dtype), d_weight, None, None, None


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """Σ_n weights_n · −log softmax(weight · hidden_n)[targets_n], in nats, as a float64 scalar."""
    low = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N, low)  # type: ignore[no-untyped-call]
    return result


def next_token(model: Transformer, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
    """Summed weighted negative log-likelihood of the targets (nats): pretraining and instruction tuning alike.

    `noise` [B, T, D] is added to the embeddings.
    """
    hidden = model.hidden(batch.tokens, batch.segments, noise=noise)
    trained = batch.weights > 0
    loss = linear_cross_entropy(hidden[trained], model.output_weight, batch.targets[trained], batch.weights[trained])
    return loss, {"loss": float(loss.detach())}


def token_logprobs(
    model: Transformer, hidden_ND: Tensor, targets_N: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """log π(target) and the entropy of π at each position, both [N], under softmax(logits / temperature).

    log π is differentiable, the entropy is for the record. The logits of a chunk are recomputed in the backward pass so
    that memory stays bounded.
    """

    def chunk(hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        # not in bfloat16, whose steps at −5 nats are .03: under autocast the logits would come so
        logits = F.linear(hidden, model.output_weight).to(model.output_weight.dtype)
        logp = F.log_softmax(logits / temperature, dim=-1)
        with torch.no_grad():
            entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(1, targets[:, None])[:, 0], entropy

    if not len(hidden_ND):
        return hidden_ND.new_zeros(0), hidden_ND.new_zeros(0)
    parts = _in_chunks(chunk, hidden_ND, targets_N)
    logp, entropy = zip(*parts)
    return torch.cat(logp), torch.cat(entropy)


def token_kl(
    model: Transformer, hidden_ND: Tensor, reference: Transformer, ref_hidden_ND: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(π ‖ π_ref) over the whole vocabulary at each position, [N], in nats; with gradients into `model` only."""

    def chunk(hidden: Tensor, ref_hidden: Tensor) -> Tensor:
        logp = F.log_softmax(F.linear(hidden, model.output_weight) / temperature, dim=-1)
        with torch.no_grad():
            ref = F.log_softmax(F.linear(ref_hidden, reference.output_weight) / temperature, dim=-1)
        return (logp.exp() * (logp - ref)).sum(-1)

    return torch.cat(_in_chunks(chunk, hidden_ND, ref_hidden_ND))


def _in_chunks(function: Callable[[Tensor, Tensor], Any], *arrays: Tensor) -> list[Any]:
    """`function` on CHUNK rows at a time; where there are several, their logits are recomputed in the backward pass."""
    several = len(arrays[0]) > CHUNK and torch.is_grad_enabled()
    out = []
    for a in range(0, len(arrays[0]), CHUNK):
        part = [x[a : a + CHUNK] for x in arrays]
        if several:
            out.append(torch.utils.checkpoint.checkpoint(function, *part, use_reentrant=False))
        else:
            out.append(function(*part))
    return out


@torch.no_grad()
def mean_loss(model: Transformer, rows: Rows, batch_size: int) -> float:
    """Mean nats per weighted target over all rows."""
    total = count = 0.0
    for a in range(0, len(rows), batch_size):
        batch = rows.batch(range(a, min(a + batch_size, len(rows))))
        if batch.count:
            total += float(next_token(model, batch)[0])
            count += batch.count
    return total / count
