"""The learner: a model with its optimizer. Call `forward_backward` one or more times, then `optim_step`."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn

from tercet.errors import NonFiniteError, TrainingError
from tercet.training.optim import Optimizer, OptimizerConfig
from tercet.training.packing import to_device
from tercet.training.parallel.collectives import processes, sum_in_place, summed


class Countable(Protocol):
    """A batch with a count: the sum of its token weights, or its number of prompts or actions."""

    @property
    def count(self) -> float:
        """The number by which the summed loss of the batch is divided."""
        ...


B = TypeVar("B", bound=Countable)
M = TypeVar("M", bound=nn.Module)
Objective = Callable[[Any, B], tuple[Tensor, dict[str, float]]]


class Learner(Generic[M]):
    """A model with its optimizer. Gradients are those of Σ sums / Σ counts, however the batch is split.

    If several processes train together, each passes its part of the batch; sums and counts are over all processes.
    """

    def __init__(self, model: M, optimizer: OptimizerConfig, precision: str = "float32") -> None:
        self.model, self.precision = model, precision
        parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.optimizer = Optimizer(parameters, optimizer, low_precision=precision == "bfloat16")

    @property
    def device(self) -> torch.device:
        """The device of the model's weights; batches are moved to it."""
        return next(self.model.parameters()).device

    @property
    def step(self) -> int:
        """The number of optimizer steps taken so far."""
        return self.optimizer.steps

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return a context in which matrix products use the learner's precision; weights and sums stay float32."""
        if self.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def forward_backward(self, batches: Sequence[B], objective: Objective[B], coef: float = 1.0) -> dict[str, float]:
        """Add coef · ∇(Σ sum / Σ count) to the gradients, and return Σ metric / Σ count for every metric.

        `objective(model, batch)` returns a summed loss and summed metrics. Raises TrainingError if the counts add up to
        0 (nothing to learn from), NonFiniteError if a loss is not finite.
        """
        total = summed({"count": sum(batch.count for batch in batches)})["count"]
        if not total > 0:
            raise TrainingError(
                f"step {self.step}: the batch has nothing to train on (its count is {total:g}); "
                "check the loss masks: `tercet tokenizer show` prints them"
            )
        sums: dict[str, float] = {}
        for batch in batches:
            if batch.count == 0:
                continue
            if self.device.type != "cpu":
                batch = to_device(batch, self.device)
            with self.autocast():
                loss, metrics = objective(self.model, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NonFiniteError(f"the loss is {value}")
            torch.autograd.backward(loss * (coef / total))
            for name, metric in metrics.items():
                sums[name] = sums.get(name, 0.0) + metric
        return {name: value / total for name, value in summed(sums).items()}

    def optim_step(self, scale: float) -> float:
        """Sum the gradients over all processes and update the weights at `scale` times the learning rates.

        Returns the gradient norm before clipping. Raises NonFiniteError if a gradient is not finite; the weights then
        do not change.
        """
        if processes() > 1:  # a process that had nothing to train on contributes zeros
            for p in self.optimizer.parameters.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            sum_in_place(self.optimizer.gradients())
        if not math.isfinite(norm := sum(float(g.sum()) for g in self.optimizer.gradients())):
            raise NonFiniteError(f"a gradient is {norm}")
        return self.optimizer.step(scale)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return weights and optimizer state, for a checkpoint."""
        return {"model": dict(self.model.state_dict()), "optimizer": self.optimizer.state}

    def numbers(self) -> dict[str, Any]:
        """Return an empty dict: a checkpoint needs no numbers besides the step."""
        return {}

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Restore the result of `state`, as saved after `numbers["step"]` steps."""
        self.model.load_state_dict(tensors["model"])
        self.optimizer.load_state(tensors["optimizer"], int(numbers["step"]))

    @property
    def kept_model(self) -> nn.Module:
        """The model itself."""
        return self.model
