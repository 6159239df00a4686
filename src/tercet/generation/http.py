"""Endpoints that are asked by HTTP: one request and its answer, tried again where the failure may pass.

What may pass is no answer in time or an overloaded server; an answer that is wrong in itself is not tried again.
"""

from __future__ import annotations

import http.client
import json
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tercet.errors import ConfigError, DataError

T = TypeVar("T")
Items = Sequence[dict[str, Any]]  # one answer each: prompt, answer, finished, answers, id

BACKOFF = 0.5  # seconds before the second try; doubled before each further one
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
