"""The data loader: batches by step number, a pure function of (seed, step).

To resume, set the step: nothing is replayed, and no state of a generator is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tercet.errors import ConfigError
from tercet.training.losses import next_token_batch
from tercet.training.packing import Batch, PackedSequences

MakeBatch = Callable[[PackedSequences, int, int], Batch]  # (rows, seed, step) → batch, without other randomness

_PATTERN = 1_000  # resolution of the mixture: weights are rounded to a thousandth


def permuted(index: int, size: int, key: Sequence[int], _cache: dict[tuple[int, ...], NDArray[np.int64]] = {}) -> int:  # noqa: B006
    """Return element `index` of an endless sequence of permutations of range(size), a new one for every epoch."""
    epoch, position = divmod(index, size)
    full_key = (*key, size, epoch)
    if full_key not in _cache:
        while len(_cache) > 64:  # a loader needs only its sources' current epochs
            _cache.pop(next(iter(_cache)))
        _cache[full_key] = np.random.default_rng([*key, epoch]).permutation(size)
    return int(_cache[full_key][position])


class BatchLoader:
    """Batches of rows from several sources in fixed proportions.

    `weights` are the sources' shares of the rows. Every thousand consecutive examples contain each source exactly in
    its share, in a seeded order. `make_batch` belongs to the objective: it defines inputs and targets.
    """

    # not one per line: few and short
    def __init__(self, sources: Mapping[str, PackedSequences], weights: Mapping[str, float] | None,
                 batch_size: int, seed: int, make_batch: MakeBatch = next_token_batch) -> None:  # fmt: skip
        names = sorted(sources)
        shares = np.array([1.0 * len(sources[n]) if weights is None else weights[n] for n in names], dtype=np.float64)
        if (shares < 0).any() or not shares.sum() > 0:
            weights_text = ", ".join(f"{name}={share:g}" for name, share in zip(names, shares))
            raise ConfigError(f"the mixture weights are {weights_text}; wanted none below 0 and at least one above 0")
        edges = np.round(np.cumsum(shares / shares.sum()) * _PATTERN).astype(int)
        counts = np.diff(edges, prepend=0)
        for lost in np.flatnonzero((counts == 0) & (shares > 0)):
            if weights is not None:
                raise ConfigError(
                    f"the mixture weight of {names[lost]} is below a thousandth of the total; raise it or leave it out"
                )
            counts[lost] += 1  # shares by size: even the smallest source is used
            counts[counts.argmax()] -= 1
        self.sources = [sources[n] for n in names]
        self.batch_size, self.seed, self.make_batch = batch_size, seed, make_batch
        if len(names) == 1:
            self._pattern, self._before = np.zeros(1, dtype=np.int64), np.zeros((1, 1), dtype=np.int64)
        else:
            self._pattern = np.random.default_rng([seed, 1]).permutation(np.repeat(np.arange(len(names)), counts))
            hits = self._pattern[:, None] == np.arange(len(names))[None]
            self._before = np.cumsum(hits, axis=0) - hits  # how often each source occurs earlier in the pattern
        self._counts = np.bincount(self._pattern, minlength=len(names))

    def example(self, index: int) -> tuple[int, int]:
        """Return (source, row) of the example with this global index."""
        cycle, position = divmod(index, len(self._pattern))
        source = int(self._pattern[position])
        number = cycle * int(self._counts[source]) + int(self._before[position, source])
        return source, permuted(number, len(self.sources[source]), (self.seed, 2, source))

    def batch(self, step: int) -> Batch:
        """Return the batch of `step` (0, 1, …)."""
        picks = [self.example(step * self.batch_size + i) for i in range(self.batch_size)]
        rows = PackedSequences.concatenate([self.sources[source].take([row]) for source, row in picks])
        return self.make_batch(rows, self.seed, step)
