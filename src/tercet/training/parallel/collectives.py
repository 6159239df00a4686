"""Sums over all processes that train together (torch.distributed): of counts, metrics and gradients.

Without a process group, or with one process, these functions change nothing. The learner divides by the count over all
processes and sums their gradients, so the way a batch is divided among them does not change the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """Return the number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Return each value summed over all processes; a missing name counts as 0. Every process must call it."""
    if processes() == 1:
        return dict(values)
    every: list[Mapping[str, float]] = [{}] * processes()
    dist.all_gather_object(every, dict(values))
    return {name: sum(v.get(name, 0.0) for v in every) for name in sorted({n for v in every for n in v})}


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over all processes."""
    if processes() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
