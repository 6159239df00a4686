"""Rewards that are somebody else's code: a Python function, a child process, an HTTP endpoint.

Process and endpoint speak the same JSON (docs/reference/formats.md): `{"items": [...]}` in, `{"scores": [...]}` out. What may pass
(no answer in time, a crash, an overloaded server) is tried again; an answer that is wrong in itself is not.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib
import importlib.util
import json
import os
import queue
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
import urllib.error
import urllib.parse
import urllib.request
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tercet.errors import ConfigError, DataError

T = TypeVar("T")
Items = Sequence[dict[str, Any]]  # one answer each: prompt, answer, finished, answers, id

BACKOFF = 0.5  # seconds before the second try; doubled before each further one
PATIENCE = 5.0  # seconds that a process has to end itself when its input ends
WANTED = 'wanted {"scores": [one number per item]}'


class Trouble(Exception):
    """A failure that may pass: worth another try."""


def retried(name: str, retries: int, attempt: Callable[[], T], wanted: str = WANTED) -> T:
    """The result of `attempt`, tried again after Trouble, at most `retries` times, with doubled pauses.

    Raises DataError with the last trouble, which begins with `name`: what failed ("reward http", "judge").
    """
    last: Trouble | None = None
    for number in range(retries + 1):
        if number:
            time.sleep(BACKOFF * 2 ** (number - 1))
        try:
            return attempt()
        except Trouble as error:
            last = error
    raise DataError(f"{name}: {last} (tried {retries + 1} times; {wanted})") from last


def within(seconds: float, work: Callable[[], T]) -> T:
    """The result of `work`; raises TimeoutError where it takes longer (it is then left behind in its thread).

    A timeout of the socket or pipe alone would not do: it starts anew with every byte that trickles in.
    """
    done: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except Exception as error:
            done.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        value, error = done.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if error is not None:
        raise error
    return value  # type: ignore[return-value]


def scores_of(name: str, reply: str) -> list[Any]:
    """The list under "scores". Raises DataError where the reply is not the protocol's."""
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: the answer is no JSON ({error}): {reply[:200]!r}; {WANTED}") from error
    if not isinstance(value, dict) or not isinstance(value.get("scores"), list):
        raise DataError(f"{name}: found {reply[:200]!r}; {WANTED}")
    scores: list[Any] = value["scores"]
    return scores


# -- a function ----------------------------------------------------------------------------------------------------------


def load_function(name: str, place: str) -> Callable[..., Any]:
    """The function that "package.module:function" or "path/to/file.py:function" means.

    Raises ConfigError where there is none, or where its module fails when imported.
    """
    module_name, _, function = place.rpartition(":")
    if not module_name or not function:
        raise ConfigError(
            f"{name}: wanted python:package.module:function or python:path/to/file.py:function, found {place!r}"
        )
    if module_name.endswith(".py") and not Path(module_name).is_file():
        raise ConfigError(f"{name}: there is no file {module_name} (the current folder is {Path.cwd()})")
    try:
        module = _module_of_file(module_name) if module_name.endswith(".py") else importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{name}: {module_name} cannot be imported: {said(error)}; a file of your own is named by its path, "
            "as in python:rewards/mine.py:score"
        ) from error
    found = getattr(module, function, None)
    if not callable(found):
        known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(f"{name}: {module_name} has no function {function!r}; it has {', '.join(known) or 'none'}")
    return found  # type: ignore[no-any-return]


def _module_of_file(path: str) -> Any:
    """The module in a file, whatever is on Python's path."""
    name = "tercet_reward_" + "".join(c if c.isalnum() else "_" for c in str(Path(path).resolve()))
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a name that ends in .py always has a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickles of the file look for their module there
    spec.loader.exec_module(module)
    return module


def source_of(module: str) -> str:
    """The file of a module, named as a file or as an import; "" where it has none."""
    if module.endswith(".py"):
        return module
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):  # loading it says so
        return ""
    return (spec.origin or "") if spec is not None and spec.has_location else ""


def said(error: BaseException) -> str:
    """What an exception of foreign code says, and the place at which it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {error}{place}"


# -- a process -----------------------------------------------------------------------------------------------------------


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
        return scores_of(self._name, retried(self._name, self._retries, lambda: self._ask(line)))

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
            raise Trouble(
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


# -- an endpoint ---------------------------------------------------------------------------------------------------------


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would silently become a GET without its body."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class HttpScorer:
    """An endpoint to which every batch is sent by POST; `headers` go with it, and `wanted` says what is awaited."""

    def __init__(
        self,
        name: str,
        url: str,
        timeout: float,
        retries: int,
        headers: dict[str, str] | None = None,
        wanted: str = WANTED,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            good = bool(parts.hostname) and (parts.port or 0) >= 0 and parts.username is None and url.isascii()
        except ValueError:
            good = False
        if not good:
            raise ConfigError(
                f"{name}: {url!r} is no address; wanted http(s)://host[:port]/path, other letters than ASCII as %XX"
            )
        self._name, self._url, self._timeout, self._retries = name, url, timeout, retries
        self._headers, self._wanted = headers or {}, wanted
        self._opener = urllib.request.build_opener(_NoRedirects())

    def __call__(self, items: Items) -> list[Any]:
        """The scores as the endpoint gave them."""
        return scores_of(self._name, self.post(json.dumps({"items": items}, ensure_ascii=False).encode()))

    def post(self, body: bytes) -> str:
        """The answer to one request; what may pass is tried again. Raises DataError."""
        return retried(self._name, self._retries, lambda: self._ask(body), self._wanted)

    def close(self) -> None:
        """Nothing is kept open."""

    def _ask(self, body: bytes) -> str:
        request = urllib.request.Request(
            self._url, data=body, headers={"Content-Type": "application/json", **self._headers}
        )

        def post() -> bytes:
            with self._opener.open(request, timeout=self._timeout) as reply:
                found: bytes = reply.read()
            return found

        try:
            return within(self._timeout, post).decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(300).decode("utf-8", errors="replace")
            message = f"{self._url} answered with status {error.code} {error.reason}: {text!r}"
            if error.code >= 500 or error.code in (408, 429):
                raise Trouble(message) from error
            raise DataError(f"{self._name}: {message}; {self._wanted} with status 200") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise Trouble(f"{self._url}: {type(error).__name__}: {reason}") from error
