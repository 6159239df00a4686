"""Progress output while a stage runs: a live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Protocol, TextIO


class Progress(Protocol):
    """The interface through which stages report progress."""

    def begin(self, stage: str, steps: int) -> None:
        """Start the progress of a stage of `steps` steps."""
        ...

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Report that `done` steps are finished; `metrics` may contain "loss" and "tokens_per_s"."""
        ...

    def say(self, text: str) -> None:
        """Show one line of text."""
        ...

    def end(self) -> None:
        """End the progress of the stage."""
        ...


class _Silent:
    def begin(self, stage: str, steps: int) -> None: ...

    def step(self, done: int, metrics: Mapping[str, float]) -> None: ...

    def say(self, text: str) -> None: ...

    def end(self) -> None: ...


def silent() -> Progress:
    """Return progress that shows nothing (the default in Python)."""
    return _Silent()


def clock(seconds: float) -> str:
    """Format seconds as m:ss."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


class _Line:
    """The line of text that both kinds of progress show: step, metrics, time left."""

    def __init__(self) -> None:
        self.stage, self.steps, self.began, self.first = "", 0, 0.0, 0

    def begin(self, stage: str, steps: int) -> None:
        self.stage, self.steps, self.began, self.first = stage, steps, time.monotonic(), -1

    def text(self, done: int, metrics: Mapping[str, float]) -> str:
        if self.first < 0:
            self.first = done - 1  # a resumed run does not begin at 0
        elapsed = time.monotonic() - self.began
        left = elapsed / (done - self.first) * (self.steps - done)
        text = "  ".join(f"{k} {v:,.0f}" if k == "tokens_per_s" else f"{k} {v:.3f}" for k, v in metrics.items())
        return f"{self.stage}  step {done}/{self.steps}  {text}  {clock(left)} left"


class Plain(_Line):
    """Print a line every few seconds, for logs and pipes."""

    def __init__(self, every: float = 10.0) -> None:
        super().__init__()
        self.every, self._last = every, 0.0

    def begin(self, stage: str, steps: int) -> None:
        """Record when the stage began."""
        super().begin(stage, steps)
        self._last = time.monotonic()

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Print a line if `every` seconds have passed, and at the last step."""
        line = self.text(done, metrics)
        if done == self.steps or time.monotonic() - self._last >= self.every:
            self._last = time.monotonic()
            print(line, flush=True)

    def say(self, text: str) -> None:
        """Print the line."""
        print(text, flush=True)

    def end(self) -> None:
        """Nothing to clean up."""


class Live(_Line):
    """Show one line with a bar, updated in place (rich)."""

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console

        self.console = Console()
        self._bar: Any = None

    def begin(self, stage: str, steps: int) -> None:
        """Show the bar."""
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        super().begin(stage, steps)
        self.end()
        self._bar = Bar(
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            console=self.console,
            transient=True,
        )
        self._task = self._bar.add_task(stage, total=steps)
        self._bar.start()

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Update the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=self.text(done, metrics))

    def say(self, text: str) -> None:
        """Print above the bar."""
        self.console.print(text, markup=False, highlight=False)

    def end(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Requests:
    """Show the progress of a `TransformerLM`'s requests on standard error.

    In a terminal it is one line, updated in place; elsewhere it is a line every ten seconds.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr  # None if standard error is closed
        self.live = self.stream is not None and self.stream.isatty()
        self.done = self.total = self.first = 0
        self.began = self.last = 0.0

    def __call__(self, done: int, total: int) -> None:
        """Report `done` of `total` requests; a `done` that does not grow starts the progress of other requests."""
        if self.stream is None:
            return
        now = time.monotonic()
        if total != self.total or done <= self.done:
            self.total, self.first, self.began, self.last = total, done, now, now
        self.done = done
        if done == total and self.live:
            print("\r\x1b[K", end="", file=self.stream, flush=True)
        elif done > self.first and now - self.last >= (0.2 if self.live else 10):
            self.last = now
            left = clock((now - self.began) / (done - self.first) * (total - done))
            start, end = ("\r\x1b[K", "") if self.live else ("", "\n")
            print(f"{start}requests {done:,}/{total:,}  {left} left", end=end, file=self.stream, flush=True)


def for_terminal() -> Progress:
    """Return live progress if standard output is a terminal, plain lines otherwise."""
    return Live() if sys.stdout.isatty() else Plain()
