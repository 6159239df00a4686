"""Optimizers: AdamW (Loshchilov & Hutter 2019) for all parameters, or Muon (Jordan et al. 2024) for hidden matrices.

This replaces torch.optim because the state must be named tensors that safetensors can store directly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from tercet.errors import CheckpointError
from tercet.training.settings import TrainSettings

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # quintic that maps singular values in (0, 1] to about 1 (Jordan 2024)


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of the optimizer. `lr` is AdamW's learning rate; if `muon_lr` is above 0, Muon updates hidden matrices.

    Hidden matrices are all 2-D weights except embeddings, heads and adapters.
    """

    lr: float = 3e-3
    muon_lr: float = 0.02
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.95
    newton_schulz_steps: int = 5
    clip_norm: float = 1.0  # largest norm of the whole gradient; 0: no clipping

    @classmethod
    def of(cls, settings: TrainSettings, eps: float = 1e-8) -> OptimizerConfig:
        """Return the optimizer's settings from a stage's settings."""
        return cls(
            settings.lr, settings.muon_lr, eps=eps, weight_decay=settings.weight_decay, clip_norm=settings.clip_norm
        )


def orthogonalize(matrices: Tensor, steps: int, low_precision: bool = False) -> Tensor:
    """Approximate the nearest semi-orthogonal matrices of a stack [..., M, N] by the Newton–Schulz iteration."""
    a, b, c = NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16) if low_precision else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    out: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return out


@dataclass
class Optimizer:
    """Update named parameters from their gradients.

    `state` maps "m/NAME", "v/NAME" (AdamW) and "momentum/NAME" (Muon) to tensors; `steps` counts the updates.
    """

    parameters: dict[str, nn.Parameter]
    config: OptimizerConfig
    low_precision: bool = False
    steps: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        hidden = [n for n, p in self.parameters.items() if p.dim() == 2 and ".layers." in n and ".lora_" not in n]
        self._muon = hidden if self.config.muon_lr > 0 else []
        self._adam = [n for n in self.parameters if n not in set(self._muon)]
        for name, p in self.parameters.items():
            for tensor in ("momentum",) if name in set(self._muon) else ("m", "v"):
                self.state[f"{tensor}/{name}"] = torch.zeros_like(p, memory_format=torch.contiguous_format)

    def zero_grad(self) -> None:
        """Delete all gradients."""
        for p in self.parameters.values():
            p.grad = None

    def gradients(self) -> list[Tensor]:
        """Return every parameter's gradient, in the order of `parameters`; zeros if there is none."""
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]

    @torch.no_grad()
    def step(self, scale: float) -> float:
        """Clip the gradients, update every parameter at `scale` times its learning rate, and delete the gradients.

        Returns the norm before clipping.
        """
        norm = total_norm(self.gradients())
        if self.config.clip_norm > 0 and norm > self.config.clip_norm:
            torch._foreach_mul_(
                [p.grad for p in self.parameters.values() if p.grad is not None], self.config.clip_norm / norm
            )
        self.steps += 1
        self._adam_step(self.config.lr * scale)
        if self._muon:
            self._muon_step(self.config.muon_lr * scale)
        self.zero_grad()
        return norm

    def _adam_step(self, lr: float) -> None:
        names = [n for n in self._adam if self.parameters[n].grad is not None]
        if not names:
            return
        params = [self.parameters[n].data for n in names]
        grads = [g for n in names if (g := self.parameters[n].grad) is not None]
        m, v = [self.state[f"m/{n}"] for n in names], [self.state[f"v/{n}"] for n in names]
        beta1, beta2 = self.config.betas
        if self.config.weight_decay:
            matrices = [p for p in params if p.dim() == 2]
            torch._foreach_mul_(matrices, 1 - lr * self.config.weight_decay)
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        denominator = torch._foreach_sqrt(v)
        torch._foreach_div_(denominator, math.sqrt(1 - beta2**self.steps))
        torch._foreach_add_(denominator, self.config.eps)
        torch._foreach_addcdiv_(params, m, denominator, -lr / (1 - beta1**self.steps))

    def _muon_step(self, lr: float) -> None:
        shapes: dict[tuple[int, ...], list[str]] = {}
        for name in self._muon:
            if self.parameters[name].grad is not None:
                shapes.setdefault(tuple(self.parameters[name].shape), []).append(name)
        for (rows, columns), names in shapes.items():
            grads = [g for n in names if (g := self.parameters[n].grad) is not None]
            momenta = [self.state[f"momentum/{n}"] for n in names]
            torch._foreach_lerp_(momenta, grads, 1 - self.config.momentum)
            nesterov = torch.stack(torch._foreach_lerp(grads, momenta, self.config.momentum))
            update = orthogonalize(nesterov, self.config.newton_schulz_steps, self.low_precision)
            scale = math.sqrt(max(1.0, rows / columns))  # makes the update's size per output independent of the shape
            params = [self.parameters[n].data for n in names]
            if self.config.weight_decay:
                torch._foreach_mul_(params, 1 - lr * self.config.weight_decay)
            torch._foreach_add_(params, list(update.unbind()), alpha=-lr * scale)

    def load_state(self, state: Mapping[str, Tensor], steps: int) -> None:
        """Restore saved state. Raises CheckpointError if names or shapes differ."""
        if {k: v.shape for k, v in state.items()} != {k: v.shape for k, v in self.state.items()}:
            raise CheckpointError("the checkpoint's optimizer state belongs to another model or optimizer")
        for name, value in state.items():
            self.state[name].copy_(value)
        self.steps = steps


def total_norm(tensors: Iterable[Tensor]) -> float:
    """Return √ΣΣx² over all tensors."""
    return math.sqrt(sum(float(t.double().square().sum()) for t in tensors))


def schedule(step: int, steps: int, warmup: int, cooldown: float) -> float:
    """Return the learning-rate multiplier of a step: warm-up, stable, decay (WSD).

    It rises linearly over `warmup` steps, stays at 1, and falls linearly to 0 over the last `cooldown` fraction.
    """
    start = steps - round(cooldown * steps)
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    down = 1.0 if step < start else (steps - step) / (steps - start + 1)
    return up * down
