"""The time of a training step on this machine, measured on made-up tokens."""

from __future__ import annotations

import math
import time

import torch

from tercet.model.transformer import Transformer
from tercet.training.learner import Learner
from tercet.training.losses import next_token
from tercet.training.packing import Batch


def step_time(learner: Learner[Transformer], rows: int, repeats: int, until: float = math.inf) -> tuple[float, float]:
    """Return (seconds per row, seconds per optimizer step) of training on whole contexts, and train the model on them.

    Each is the median of `repeats` measurements after one for warm-up. No further measurement begins after `until`
    (time.monotonic), so the first one may be the only one.
    """
    config = learner.model.config
    tokens = torch.arange(rows * config.context_length).reshape(rows, -1) % config.vocab_size
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), torch.zeros(tokens.shape, dtype=torch.int32))
    passes: list[float] = []
    updates: list[float] = []
    while len(passes) <= repeats and (not passes or time.monotonic() < until):
        start = time.monotonic()
        learner.forward_backward([batch], next_token)
        middle = time.monotonic()
        learner.optim_step(1.0)
        passes.append((middle - start) / rows)
        updates.append(time.monotonic() - middle)
    passes, updates = (sorted(v[1:] or v) for v in (passes, updates))
    return passes[len(passes) // 2], updates[len(updates) // 2]
