"""HTTP clients: one with retries, one for scores of answers, one for a chat model at an OpenAI-compatible address.

Transient failures (no reply in time, an overloaded server) are retried; a reply with wrong contents is not.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

from tercet.data.formats.conversations import to_messages
from tercet.data.types import Conversation
from tercet.errors import ConfigError, DataError
from tercet.inference.language_model import ChatAnswer, UntilRequests

T = TypeVar("T")
Items = Sequence[dict[str, Any]]  # one per answer: prompt, answer, finished, answers, id

BACKOFF = 0.5  # seconds before the first retry; doubled before each further one
WANTED_SCORES = 'wanted {"scores": [one number per item]}'
WANTED_CHAT = 'wanted {"choices": [{"message": {"content": "text"}}]}'


class TransientError(Exception):
    """A failure after which a retry may succeed."""


def retried(name: str, retries: int, attempt: Callable[[], T], wanted: str) -> T:
    """Return the result of `attempt`, which is retried after TransientError, at most `retries` times.

    Pauses double from try to try. Raises DataError with the last failure, beginning with `name` ("reward http") and
    ending with `wanted`, a description of a good reply.
    """
    last: TransientError | None = None
    for number in range(retries + 1):
        if number:
            time.sleep(BACKOFF * 2 ** (number - 1))
        try:
            return attempt()
        except TransientError as error:
            last = error
    raise DataError(f"{name}: {last} (tried {retries + 1} times; {wanted})") from last


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return the result of `work`. Raises TimeoutError if it takes longer than `seconds`; its thread is then abandoned.

    A timeout of the socket or pipe alone is not enough: it restarts with every byte that arrives.
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


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would silently become a GET without its body."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


class HttpClient:
    """A client that sends JSON by POST to one address.

    `headers` are sent with every request. Errors begin with `name` and end with `wanted`, which describes a good reply.
    """

    def __init__(
        self,
        name: str,
        url: str,
        timeout: float,
        retries: int,
        wanted: str,
        headers: dict[str, str] | None = None,
    ) -> None:
        try:
            parts = urllib.parse.urlsplit(url)
            good = bool(parts.hostname) and (parts.port or 0) >= 0 and parts.username is None and url.isascii()
        except ValueError:
            good = False
        if not good:
            raise ConfigError(
                f"{name}: {url!r} is not an address; wanted http(s)://host[:port]/path, with %XX for non-ASCII letters"
            )
        self._name, self._url, self._timeout, self._retries = name, url, timeout, retries
        self._headers, self._wanted = headers or {}, wanted
        self._opener = urllib.request.build_opener(_NoRedirects())

    def post(self, body: object) -> str:
        """Send a request and return the reply; transient failures are retried. Raises DataError if all tries fail."""
        data = json.dumps(body, ensure_ascii=False).encode()
        return retried(self._name, self._retries, lambda: self._send(data), self._wanted)

    def _send(self, body: bytes) -> str:
        request = urllib.request.Request(
            self._url, data=body, headers={"Content-Type": "application/json", **self._headers}
        )

        def post() -> bytes:
            with self._opener.open(request, timeout=self._timeout) as reply:
                content: bytes = reply.read()
            return content

        try:
            return within(self._timeout, post).decode("utf-8", errors="replace")
        except urllib.error.HTTPError as error:
            with error:
                text = error.read(300).decode("utf-8", errors="replace")
            message = f"{self._url} answered with status {error.code} {error.reason}: {text!r}"
            if error.code >= 500 or error.code in (408, 429):
                raise TransientError(message) from error
            raise DataError(f"{self._name}: {message}; {self._wanted} with status 200") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise TransientError(f"{self._url}: {type(error).__name__}: {reason}") from error


class HttpScorer:
    """A scorer at an HTTP address, which gets answers in batches (docs/reference/formats.md)."""

    def __init__(self, name: str, url: str, timeout: float, retries: int) -> None:
        self._name, self._http = name, HttpClient(name, url, timeout, retries, WANTED_SCORES)

    def __call__(self, items: Items) -> list[Any]:
        """Return the scores of the reply. Raises DataError if there are none."""
        return scores_of(self._name, self._http.post({"items": items}))

    def close(self) -> None:
        """Do nothing: no connection is kept open."""


def scores_of(name: str, reply: str) -> list[Any]:
    """Return the list "scores" of a reply. Raises DataError if the reply does not follow the protocol."""
    try:
        value = json.loads(reply)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: the reply is not JSON ({error}): {reply[:200]!r}; {WANTED_SCORES}") from error
    if not isinstance(value, dict) or not isinstance(value.get("scores"), list):
        raise DataError(f"{name}: found {reply[:200]!r}; {WANTED_SCORES}")
    scores: list[Any] = value["scores"]
    return scores


class ChatEndpoint:
    """A chat model at an OpenAI-compatible address, as a `LanguageModel` that only answers conversations.

    If the address needs a key, set the environment variable OPENAI_API_KEY. Errors begin with `role`.
    """

    parameters = None
    context_length = None

    def __init__(self, url: str, model: str, timeout: float, retries: int, role: str = "chat model") -> None:
        self._model, self._role, self._address = model, role, url.rstrip("/") + "/chat/completions"
        self.name = f"{model} at {self._address}"
        key = os.environ.get("OPENAI_API_KEY", "")
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = HttpClient(role, self._address, timeout, retries, WANTED_CHAT, headers)

    def chat(
        self,
        prompts: Sequence[tuple[str, Conversation]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[ChatAnswer]:
        """Answer every (where, conversation), with one request each. Raises DataError if there is no answer."""
        return [
            self._answer(prompt, max_new_tokens, temperature, seed + number)
            for number, (_, prompt) in enumerate(prompts)
        ]

    def _answer(self, prompt: Conversation, max_new_tokens: int, temperature: float, seed: int) -> ChatAnswer:
        body: dict[str, Any] = {"model": self._model, "temperature": temperature, "max_tokens": max_new_tokens}
        reply = self._http.post(body | {"messages": to_messages(prompt)} | ({"seed": seed} if temperature else {}))
        try:
            choice = json.loads(reply)["choices"][0]
            text = choice["message"]["content"]
        except (ValueError, LookupError, TypeError):
            text = None
        if not isinstance(text, str):
            raise DataError(f"{self._role} {self._address}: found {reply[:200]!r}; {WANTED_CHAT}")
        return ChatAnswer(text, choice.get("finish_reason") != "length")

    def count_tokens(self, texts: Sequence[str]) -> NoReturn:
        """Raise ConfigError: the endpoint does not count tokens."""
        self._refuse("counts of tokens")

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> NoReturn:
        """Raise ConfigError: the endpoint gives no log-probabilities of given texts."""
        self._refuse("log-probabilities of given texts")

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> NoReturn:
        """Raise ConfigError: the endpoint gives no log-probabilities of given texts."""
        self._refuse("log-probabilities of given texts")

    def generate_until(
        self, requests: UntilRequests, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> NoReturn:
        """Raise ConfigError: the endpoint only answers conversations; it does not continue texts."""
        self._refuse("continuations of a text")

    def _refuse(self, what: str) -> NoReturn:
        raise ConfigError(
            f"{self._role} {self._address}: a chat endpoint gives no {what}, only answers to conversations; "
            "use a run instead"
        )
