"""Rewards from a child process that stays alive (functions and endpoints: see `rewards`).

It uses the same JSON as an endpoint (docs/reference/formats.md): `{"items": [...]}` in, `{"scores": [...]}` out. A
timeout or a crash leads to a retry; an invalid reply does not.
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

PATIENCE = 5.0  # seconds that a process has to exit after its input ends


def words_of(command: str) -> list[str]:
    """Return the words of a command line. Raises ConfigError for a quotation mark without its partner."""
    try:
        return shlex.split(command)
    except ValueError as error:
        raise ConfigError(
            f"reward process:{command}: the command line cannot be parsed ({error}); check its quotation marks"
        ) from error


class ProcessScorer:
    """Scores from a child process that stays alive: one line of JSON in, one line out, for each batch.

    The process starts with the first batch and, after a failure, with the next try. `close` ends its input; if the
    process does not exit within `PATIENCE` seconds, it is killed with all processes that it has started.
    """

    def __init__(self, name: str, command: str, timeout: float, retries: int) -> None:
        self._words = words_of(command)
        if not self._words or shutil.which(self._words[0]) is None:
            program = repr(self._words[0]) if self._words else "an empty command"
            raise ConfigError(f"{name}: {program} is not a program that can be run; wanted process:COMMAND LINE")
        self._name, self._timeout, self._retries = name, timeout, retries
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr: deque[str] = deque(maxlen=20)  # its last lines

    def __call__(self, items: Items) -> list[Any]:
        """Return the scores as the process wrote them."""
        line = json.dumps({"items": items}, ensure_ascii=False) + "\n"
        return scores_of(self._name, retried(self._name, self._retries, lambda: self._request(line), WANTED_SCORES))

    def close(self) -> None:
        """End the process."""
        self._end(PATIENCE)

    def _end(self, patience: float) -> None:
        if self._process is not None:
            self._finalizer.detach()
            _stop(self._process, patience)
            self._process = None

    def _request(self, line: str) -> str:
        process = self._process or self._start()
        try:
            return within(self._timeout, lambda: _exchange(self._name, process, line))
        except (OSError, ValueError) as error:  # TimeoutError and BrokenPipeError are OSErrors
            code = process.poll()
            self._end(0.0)
            self._reader.join(1.0)  # waits for the last lines of stderr
            words = "\n".join(self._stderr)
            ended = "" if code is None else f"; it ended with exit code {code}"
            raise TransientError(
                f"{error}{ended}; " + (f"its stderr ends:\n{words}\n" if words else "its stderr is empty")
            ) from error

    def _start(self) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        # a separate session, so that Ctrl-C reaches only the training, and all processes of the session end together
        process = subprocess.Popen(self._words, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._process, self._stderr = process, deque(maxlen=20)
        self._finalizer = weakref.finalize(self, _stop, process, PATIENCE)
        self._reader = threading.Thread(target=_drain, args=(process.stderr, self._stderr), daemon=True)
        self._reader.start()
        return process


def _exchange(name: str, process: subprocess.Popen[bytes], line: str) -> str:
    """Send `line` and return the one line of the reply. Raises DataError for more lines.

    With more lines, every later reply would be that of the batch before.
    """
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
            raise OSError("its output ended before a complete reply")
        reply += chunk
    answer, _, more = reply.partition(b"\n")
    if early or more:
        extra = (early or more)[:200].decode("utf-8", errors="replace")
        raise DataError(
            f"{name}: the process wrote more than one line for a batch: {extra!r}; wanted one line on stdout, and all "
            "other output on stderr"
        )
    return answer.decode("utf-8", errors="replace")


def _drain(stream: Any, lines: deque[str]) -> None:
    """Read a stream to its end into `lines`, so that its writer never blocks."""
    with stream:
        for line in stream:
            lines.append(line.decode("utf-8", errors="replace").rstrip())


def _stop(process: subprocess.Popen[bytes], patience: float) -> None:
    """End the input of a process, wait, then kill what is left of its session."""
    streams = [stream for stream in (process.stdin, process.stdout) if stream is not None]
    if patience:
        with contextlib.suppress(OSError, ValueError):
            streams[0].close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(patience)
    with contextlib.suppress(OSError):  # the session has already ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in streams:
        with contextlib.suppress(OSError, ValueError):
            stream.close()
