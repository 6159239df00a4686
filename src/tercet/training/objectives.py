"""Objectives: (model, batch) → summed loss and summed metrics. The learner divides, once, by the global count."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor

from tercet.model.products import product, weight_gradient
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
            logits = product(h, weight).to(weight_VD.dtype)
            logp = F.log_softmax(logits, dim=-1)
            chosen = logp.gather(1, y[:, None])[:, 0]
            total -= (chosen.double() * w.double()).sum()
            if d_hidden is not None:
                d_logits = logp.exp_()  # softmax − onehot, times the weight
                d_logits.scatter_add_(1, y[:, None], torch.full_like(chosen, -1.0)[:, None])
                d_logits = d_logits.mul_(w[:, None]).to(kind)
                d_hidden[a : a + CHUNK] = product(d_logits, weight.T).to(d_hidden.dtype)
                if d_weight is not None:
                    d_weight += weight_gradient(d_logits, h).to(d_weight.dtype)
        ctx.save_for_backward(d_hidden, d_weight)
        return total.to(torch.float64)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        d_weight = None if d_weight is None else d_weight * grad.to(d_weight.dtype)
        return d_hidden * grad.to(d_hidden.dtype), d_weight, None, None, None


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor) -> Tensor:
    """Σ_n weights_n · −log softmax(weight · hidden_n)[targets_n], in nats, as a float64 scalar."""
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N, _low())  # type: ignore[no-untyped-call]
    return result


def _low() -> bool:
    """Whether matrix products are asked for in bfloat16."""
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(W h_n / temperature)[y_n] and the entropy there, CHUNK rows of logits at a time.

    Where all fit into one chunk the backward pass uses the forward pass's softmax; else it computes each chunk's again.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float, low: bool
    ) -> tuple[Tensor, Tensor]:
        logp_N, entropy_N, logp_NV = weight_VD.new_empty(len(hidden_ND)), weight_VD.new_empty(len(hidden_ND)), None
        for a in range(0, len(hidden_ND), CHUNK):
            logp_NV = _log_softmax(hidden_ND[a : a + CHUNK], weight_VD, temperature, low)
            logp_N[a : a + CHUNK] = logp_NV.gather(1, targets_N[a : a + CHUNK, None])[:, 0]
            entropy_N[a : a + CHUNK] = -(logp_NV.exp() * logp_NV).sum(-1)
        keep = logp_NV if len(hidden_ND) <= CHUNK and any(ctx.needs_input_grad[:2]) else None
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, keep)
        ctx.temperature, ctx.low = temperature, low
        ctx.mark_non_differentiable(entropy_N)
        return logp_N, entropy_N

    @staticmethod
    def backward(ctx: Any, grad_N: Tensor, _: Tensor) -> tuple[Any, ...]:
        hidden, weight, targets, kept = ctx.saved_tensors
        kind = torch.bfloat16 if ctx.low else weight.dtype
        matrix, d_hidden = weight.to(kind), torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # not with adapters: it is frozen
        for a in range(0, len(hidden), CHUNK):
            h, y = hidden[a : a + CHUNK], targets[a : a + CHUNK, None]
            g = (grad_N[a : a + CHUNK] / ctx.temperature)[:, None].to(weight.dtype)
            p = (kept if kept is not None else _log_softmax(h, weight, ctx.temperature, ctx.low)).exp()
            d_logits = p.mul_(-g).scatter_add_(1, y, g).to(kind)  # (onehot − softmax), times the gradient
            d_hidden[a : a + CHUNK] = product(d_logits, matrix.T).to(hidden.dtype)
            if d_weight is not None:
                d_weight += weight_gradient(d_logits, h.to(kind)).to(weight.dtype)
        return d_hidden, d_weight, None, None, None


def _log_softmax(hidden_ND: Tensor, weight_VD: Tensor, temperature: float, low: bool) -> Tensor:
    """[N, V]. Only the product is in bfloat16 where `low`: its steps at −5 nats are .03."""
    kind = torch.bfloat16 if low else weight_VD.dtype
    logits = product(hidden_ND.to(kind), weight_VD.to(kind)).to(weight_VD.dtype)
    return F.log_softmax(logits / temperature, dim=-1)


def next_token(model: Transformer, batch: Batch, noise: Tensor | None = None) -> tuple[Tensor, dict[str, float]]:
    """Summed weighted negative log-likelihood of the targets (nats): pretraining and instruction tuning alike.

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
    """log π(target) and the entropy of π at each position, both [N], under softmax(logits / temperature).

    log π is differentiable, the entropy is for the record. Memory is bounded at CHUNK · V floats.
    """
    found: tuple[Tensor, Tensor] = _TokenLogprobs.apply(  # type: ignore[no-untyped-call]
        hidden_ND, model.output_weight, targets_N, temperature, _low()
    )
    return found


def token_kl(
    model: Transformer, hidden_ND: Tensor, reference: Transformer, ref_hidden_ND: Tensor, temperature: float = 1.0
) -> Tensor:
    """KL(π ‖ π_ref) over the whole vocabulary at each position, [N], in nats; with gradients into `model` only."""

    def chunk(hidden: Tensor, ref_hidden: Tensor) -> Tensor:
        logp = F.log_softmax(model.logits(hidden) / temperature, dim=-1)
        with torch.no_grad():
            ref = F.log_softmax(reference.logits(ref_hidden) / temperature, dim=-1)
        return (logp.exp() * (logp - ref)).sum(-1)

    out = []
    for a in range(0, len(hidden_ND), CHUNK):
        # the logits are computed again in the backward pass, so that memory stays bounded
        part = hidden_ND[a : a + CHUNK], ref_hidden_ND[a : a + CHUNK]
        out.append(torch.utils.checkpoint.checkpoint(chunk, *part, use_reentrant=False))
    return torch.cat(out)


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
