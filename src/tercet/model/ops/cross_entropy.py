"""Cross entropy and log-probabilities of an output layer, without all logits in memory at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.model.ops.linear import matmul, weight_gradient

CHUNK = 1024  # tokens whose logits are in memory at once, so that memory is at most CHUNK · V floats


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ_n w_n · −log softmax(W h_n)[y_n] without all logits in memory at once.

    The gradients are computed chunk by chunk in the forward pass, from the chunk's softmax, and scaled in the backward
    pass. This is half the work of computing the logits twice.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, weights_N: Tensor, low: bool
    ) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hidden_ND.device)
        dtype = torch.bfloat16 if low else hidden_ND.dtype
        hidden, weight = hidden_ND.detach().to(dtype), weight_VD.detach().to(dtype)
        need = any(ctx.needs_input_grad[:2])
        d_hidden = torch.empty_like(hidden_ND) if need else None
        d_weight = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None  # None with LoRA: it is frozen
        for a in range(0, len(hidden), CHUNK):
            h, y, w = hidden[a : a + CHUNK], targets_N[a : a + CHUNK], weights_N[a : a + CHUNK].to(weight_VD.dtype)
            logits = matmul(h, weight).to(weight_VD.dtype)
            logp = F.log_softmax(logits, dim=-1)
            selected = logp.gather(1, y[:, None])[:, 0]
            total -= (selected.double() * w.double()).sum()
            if d_hidden is not None:
                d_logits = logp.exp_()  # softmax − onehot, times the weight
                d_logits.scatter_add_(1, y[:, None], torch.full_like(selected, -1.0)[:, None])
                d_logits = d_logits.mul_(w[:, None]).to(dtype)
                d_hidden[a : a + CHUNK] = matmul(d_logits, weight.T).to(d_hidden.dtype)
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
    """Return Σ_n weights_n · −log softmax(weight · hidden_n)[targets_n], in nats, as a float64 scalar."""
    result: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, targets_N, weights_N, _low(hidden_ND))  # type: ignore[no-untyped-call]
    return result


def _low(x: Tensor) -> bool:
    """Return whether autocast uses bfloat16 for matrix products on the device of `x`."""
    if not torch.amp.is_autocast_available(device := x.device.type):
        return False
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


def linear_token_logprobs(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Return log softmax(weight · hidden_n / temperature)[targets_n] and the distribution's entropy, both [N], in nats.

    The first is differentiable, the entropy is not. Memory is at most CHUNK · V floats.
    """
    out: tuple[Tensor, Tensor] = _TokenLogprobs.apply(hidden_ND, weight_VD, targets_N, temperature, _low(hidden_ND))  # type: ignore[no-untyped-call]
    return out


class _TokenLogprobs(torch.autograd.Function):
    """log softmax(W h_n / temperature)[y_n] and the entropy there, CHUNK rows of logits at a time.

    If all rows fit into one chunk, the backward pass uses the forward pass's softmax; else it recomputes each chunk.
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
        dtype = torch.bfloat16 if ctx.low else weight.dtype
        matrix, d_hidden = weight.to(dtype), torch.empty_like(hidden)
        d_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None  # None with LoRA: it is frozen
        for a in range(0, len(hidden), CHUNK):
            h, y = hidden[a : a + CHUNK], targets[a : a + CHUNK, None]
            g = (grad_N[a : a + CHUNK] / ctx.temperature)[:, None].to(weight.dtype)
            p = (kept if kept is not None else _log_softmax(h, weight, ctx.temperature, ctx.low)).exp()
            d_logits = p.mul_(-g).scatter_add_(1, y, g).to(dtype)  # (onehot − softmax), times the gradient
            d_hidden[a : a + CHUNK] = matmul(d_logits, matrix.T).to(hidden.dtype)
            if d_weight is not None:
                d_weight += weight_gradient(d_logits, h.to(dtype)).to(weight.dtype)
        return d_hidden, d_weight, None, None, None


def _log_softmax(hidden_ND: Tensor, weight_VD: Tensor, temperature: float, low: bool) -> Tensor:
    """Return log softmax [N, V]. With `low`, only the product is in bfloat16, whose spacing at −5 nats is 0.03."""
    dtype = torch.bfloat16 if low else weight_VD.dtype
    logits = matmul(hidden_ND.to(dtype), weight_VD.to(dtype)).to(weight_VD.dtype)
    return F.log_softmax(logits / temperature, dim=-1)
