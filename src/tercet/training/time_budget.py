"""Training until a deadline: after each step, the number of steps that still fit is estimated from the recent speed."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

WINDOW = 0.1  # the speed is measured over the last tenth of the steps done


@dataclass
class Deadline:
    """A time limit for training: `ends` is when all must be done, `reserve` the seconds needed after the last step.

    `ends` is in the seconds of time.monotonic. A repeated run may take another number of steps, so only runs with a
    deadline are not bit-identical when repeated. The learning rate, which depends on that number, is recorded in
    metrics.jsonl.
    """

    ends: float
    reserve: float = 0.0
    _times: deque[tuple[int, float]] = field(default_factory=deque)

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """Return a deadline this many seconds from now."""
        return cls(time.monotonic() + seconds)

    def steps(self, done: int) -> int:
        """Estimate the run's total number of steps from the recent speed; `done` if no more fits.

        Call it after every step.
        """
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
