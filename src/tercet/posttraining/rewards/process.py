"""Rewards that are a program of your own: a child process that stays alive (functions and endpoints: see `rewards`).

It speaks the same JSON as an endpoint (docs/reference/formats.md): `{"items": [...]}` in, `{"scores": [...]}` out. What may pass
(no answer in time, a crash) is tried again; an answer that is wrong in itself is not.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import shutil
import signal
import subprocess
import threading
import weakref
from collections import deque
from typing import Any

from tercet.errors import ConfigError, DataError
from tercet.inference.http import WANTED_SCORES, Items, TransientError, retried, scores_of, within

PATIENCE = 5.0  # seconds that a process has to end itself when its input ends


def words_of(command: str) -> list[str]:
    """A command line as words. Raises ConfigError where a quotation is left open."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError(f"the command line {command!r} of a reward cannot be read: {error}") from error


class ProcessScorer:
    """A child process that stays alive: one line of JSON in, one line out, for each batch.

    It is started at the first batch and, after a failure, at the next try. When it is closed its input ends; what does
    not end itself within `PATIENCE` seconds is killed, with all that it has started.
    """

    def __init__(self, name: str, command: str, timeout: float, retries: int) -> None:
        self._words = words_of(command)
        if not self._words or shutil.which(self._words[0]) is None:
            found = self._words[0] if self._words else "no command"
            raise ConfigError(f"{name}: {found!r} is no program that can be run; wanted process:command line")
        self._name, self._timeout, self._retries = name, timeout, retries
        self._process: subprocess.Popen[bytes] | None = None
        self._said: deque[str] = deque(maxlen=20)

    def __call__(self, items: Items) -> list[Any]:
        """The scores as the process gave them."""
        line = json.dumps({"items": items}, ensure_ascii=False) + "\n"
        return scores_of(self._name, retried(self._name, self._retries, lambda: self._ask(line), WANTED_SCORES))

    def close(self) -> None:
        """End the process."""
        self._end(PATIENCE)

    def _end(self, patience: float) -> None:
        if self._process is not None:
            self._finalizer.detach()
            _stop(self._process, patience)
            self._process = None

    def _ask(self, line: str) -> str:
        process = self._process or self._start()
        try:
            return within(self._timeout, lambda: _exchange(self._name, process, line))
        except (OSError, ValueError) as error:  # TimeoutError and BrokenPipeError are OSErrors
            code = process.poll()
            self._end(0.0)
            self._reader.join(1.0)  # the last words on stderr
            words = "\n".join(self._said)
            ended = "" if code is None else f"; it ended with exit code {code}"
            raise TransientError(
                f"{error}{ended}; " + (f"its stderr ends:\n{words}\n" if words else "it wrote nothing to stderr")
            ) from error

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        # a session of its own: Ctrl-C is for the training to handle, and all that it starts can be ended together
        process = subprocess.Popen(self._words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._process, self._said = process, deque(maxlen=20)
        self._finalizer = weakref.finalize(self, _stop, process, PATIENCE)
        self._reader = threading.Thread(target=_drain, args=(process.stderr, self._said), daemon=True)
        self._reader.start()
        return process


def _exchange(name: str, process: subprocess.Popen[bytes], line: str) -> str:
    """The one line that answers `line`. Raises DataError for more: every later answer would be that of the batch before."""
    assert process.stdin is not None
    assert process.stdout is not None
    output, reply = process.stdout.fileno(), b""
    early = os.read(output, 200) if select.select([output], [], [], 0)[0] else b""
    process.stdin.write(line.encode())
    process.stdin.flush()
    while b"\n" not in reply:
        if not (chunk := os.read(output, 1 << 16)):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1.0)  # for its exit code
            raise OSError("its output ended before the answer's line did")
        reply += chunk
    answer, _, more = reply.partition(b"\n")
    if early or more:
        found = (early or more)[:200].decode("utf-8", errors="replace")
        raise DataError(
            f"{name}: the process wrote more than one line for a batch: {found!r}; wanted one, the rest on stderr"
        )
    return answer.decode("utf-8", errors="replace")


def _drain(stream: Any, kept: deque[str]) -> None:
    """Read a stream to its end, so that its writer never blocks; the last lines are kept."""
    with stream:
        for line in stream:
            kept.append(line.decode("utf-8", errors="replace").rstrip())


def _stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """End its input, wait, then kill what is left of its session."""
    streams = [stream for stream in (process.stdin, process.stdout) if stream is not None]
    if patience:
        with contextlib.suppress(OSError, ValueError):
            streams[0].close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(OSError):  # nothing is left
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            stream.close()
