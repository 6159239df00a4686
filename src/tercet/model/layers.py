"""Layers other than attention: normalisation, rotary positions (RoPE), the feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tercet.model.config import ModelConfig
from tercet.model.ops.linear import Linear


class _Normalise(torch.autograd.Function):
    """RMSNorm, x / √(mean x² + eps) · gain, with a gradient that reads memory a third as often as autograd's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        normal: Tensor = x * inverse
        ctx.save_for_backward(normal, inverse, gain)
        return normal * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        normal, inverse, gain = ctx.saved_tensors
        d_gain = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        d_normal = grad * gain
        along = torch.linalg.vecdot(d_normal, normal).div_(normal.shape[-1]).unsqueeze(-1)
        d_x: Tensor = d_normal.addcmul_(normal, along, value=-1).mul_(inverse)
        return d_x, d_gain, None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if x.dtype in (torch.float32, torch.float64) and x.dtype == self.weight.dtype:
            normal: Tensor = _Normalise.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normal
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def norm_of(config: ModelConfig) -> nn.Module:
    """Make the normalisation layer for the hidden states: RMSNorm or LayerNorm, as `config.norm` says."""
    if config.norm == "layernorm":
        return nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
    return RMSNorm(config.hidden_size, config.norm_eps)


class _Rotate(torch.autograd.Function):
    """The rotation of RoPE; its gradient is the inverse rotation.

    It writes each half of the result once, and so reads memory a third as often as autograd's version.
    """

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
        half = x_BHTC.shape[-1] // 2
        ctx.dtype, ctx.cos, ctx.sin = x_BHTC.dtype, cos_BTC[..., :half].unsqueeze(1), sin_BTC[..., :half].unsqueeze(1)
        return _turned(x_BHTC, ctx.cos, ctx.sin, torch.promote_types(x_BHTC.dtype, cos_BTC.dtype), 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _turned(grad, ctx.cos, ctx.sin, grad.dtype, -1.0).to(ctx.dtype), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, dtype: torch.dtype, sign: float) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    out = torch.empty_like(x, dtype=dtype)
    real, imaginary = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=real).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=imaginary).addcmul_(a, sin, value=sign)
    return out


Rope = tuple[Tensor, Tensor] | None  # cosines and sines [B or 1, T, C] of the positions; None: no rotation


def rotate(x_BHTC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
    """Apply RoPE (Su et al. 2021): rotate the head dimension, whose halves are real and imaginary parts."""
    turned: Tensor = _Rotate.apply(x_BHTC, cos_BTC, sin_BTC)  # type: ignore[no-untyped-call]
    return turned


class MLP(nn.Module):
    """The feed-forward layer: SwiGLU (Shazeer 2020), or GPT-2's with tanh-form GELU (Hendrycks & Gimpel 2016)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, f, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = Linear(d, f, bias) if config.mlp == "swiglu" else None
        self.up_proj = Linear(d, f, bias)
        self.down_proj = Linear(f, d, bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return down(silu(gate(x)) · up(x)), or down(gelu(up(x)))."""
        if self.gate_proj is not None:
            wide = F.silu(self.gate_proj(x)) * self.up_proj(x)
        else:
            wide = F.gelu(self.up_proj(x), approximate="tanh")
        return self.down_proj(wide)  # type: ignore[no-any-return]
