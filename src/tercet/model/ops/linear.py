"""Linear kernels: float32 matrix products on the CPU by oneDNN instead of MKL, the library that PyTorch uses.

MKL does not use the widest vector instructions of every processor: on an AMD EPYC with AVX-512, oneDNN was 1.4 to 2.3
times as fast (benchmarks/products.py). The results are the same up to rounding. Other dtypes, other devices and small
products are left to PyTorch.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# with fewer multiplications than this, oneDNN's set-up costs more time than it saves
WORTH = 1 << 22


def _available() -> bool:
    """Return whether to use oneDNN: the processor has AVX-512, which MKL may not use. Decided once, at import."""
    built = bool(torch.backends.mkldnn.is_available()) and hasattr(torch.ops.mkldnn, "_linear_pointwise")  # type: ignore[no-untyped-call]
    return built and torch.backends.cpu.get_cpu_capability().startswith("AVX512")


ONEDNN = _available()


def _by_onednn(a: Tensor, b: Tensor) -> bool:
    plain = ONEDNN and a.dtype == b.dtype == torch.float32 and a.device.type == b.device.type == "cpu"
    return plain and a.numel() * b.shape[0] >= WORTH


def matmul(a_NK: Tensor, b_MK: Tensor) -> Tensor:
    """Return a bᵀ, [N, M], without gradients."""
    if _by_onednn(a_NK, b_MK):
        out: Tensor = torch.ops.mkldnn._linear_pointwise(a_NK, b_MK, None, "none", [], "")
        return out
    return a_NK @ b_MK.T


def weight_gradient(grad_NO: Tensor, x_NI: Tensor) -> Tensor:
    """Return gradᵀ x, [O, I]. oneDNN is up to 50 % faster if the second matrix has the longer side."""
    if grad_NO.shape[1] > x_NI.shape[1]:
        return matmul(x_NI.T, grad_NO.T).T
    return matmul(grad_NO.T, x_NI.T)


class _Linear(torch.autograd.Function):
    """x Wᵀ by `matmul`: one product in the forward pass and two in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return matmul(x_NI, weight_OI)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x = matmul(grad_NO, weight.T) if ctx.needs_input_grad[0] else None
        return d_x, weight_gradient(grad_NO, x) if ctx.needs_input_grad[1] else None  # None with LoRA: it is frozen


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b, [..., in] to [..., out], like `torch.nn.functional.linear`."""
    if not _by_onednn(x, weight_OI) or torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight_OI, bias_O)
    x_NI = x.reshape(-1, x.shape[-1])
    needed = torch.is_grad_enabled() and (x.requires_grad or weight_OI.requires_grad)
    out: Tensor = _Linear.apply(x_NI, weight_OI) if needed else matmul(x_NI, weight_OI)  # type: ignore[no-untyped-call]
    out = out.view(*x.shape[:-1], weight_OI.shape[0])
    return out if bias_O is None else out + bias_O


class Linear(nn.Linear):
    """A linear layer that uses the function `linear`; by default without a bias."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False, **like: Any) -> None:
        super().__init__(inputs, outputs, bias=bias, **like)

    def forward(self, input: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        return linear(input, self.weight, self.bias)
