"""Training until a moment: how many steps fit is asked again after each of them, since machines slow down and speed up."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW = 0.1  # of the steps done: over the last of them the speed is taken


@dataclass
class Deadline:
    """`ends` is the moment (time.monotonic) at which all must be done, `reserve` the seconds that follow the last step.

    The number of steps is not the same when a run is repeated, so a run with a deadline is the only kind without the promise of the same
    bits; all that depends on the number (the learning rate) is written into metrics.jsonl.
    """

    ends: float
    reserve: float = 0.0
    _times: deque[tuple[int, float]] = field(default_factory=deque)

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """A deadline so many seconds from now."""
        return cls(time.monotonic() + seconds)

    def steps(self, done: int) -> int:
        """All steps of the run, by the speed of the last ones; `done` where no more fits. Called after every step."""
        now = time.monotonic()
        self._times.append((done, now))
        while len(self._times) > max(6, int(WINDOW * done)):
            self._times.popleft()
        (first, then), left = self._times[0], self.ends - now - self.reserve
        if left <= 0:
            return done
        if done == first:
            return done + 1
        return done + int(left / ((now - then) / (done - first)))
