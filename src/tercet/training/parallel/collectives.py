"""Several processes, one step: counts, metrics and gradients are summed over all of them (torch.distributed).

Without a process group, or with one process, everything here does nothing. The learner divides by the count over all
processes and sums their gradients, so how a batch is dealt out cannot change the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.distributed as dist
from torch import Tensor


def processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def summed(values: Mapping[str, float]) -> dict[str, float]:
    """Each value summed over all processes; one that some process does not name counts as 0 there. All must call it."""
    if processes() == 1:
        return dict(values)
    every: list[Mapping[str, float]] = [{}] * processes()
    dist.all_gather_object(every, dict(values))
    return {name: sum(v.get(name, 0.0) for v in every) for name in sorted({n for v in every for n in v})}


def sum_in_place(tensors: Sequence[Tensor]) -> None:
    """Each tensor becomes its sum over all processes."""
    if processes() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
