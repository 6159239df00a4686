"""Judges of pairs: each says what it must, both orders are asked, and nothing is guessed."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tercet.data.types import Message, Task
from tercet.errors import ConfigError, DataError
from tercet.posttraining.config import WinRateConfig
from tercet.posttraining.judging import (
    Pair,
    endpoint_judge,
    judged,
    model_judge,
    open_judge,
    person_judge,
    rubric_judge,
)

FROG = Task((Message("user", "What colour is the frog?"),), ("green", "The frog is green."), "facts", "1")
GOOD, BAD = "The frog is green.", "It is red."
PAIRS = [
    Pair(FROG, (GOOD, BAD), (True, True)),
    Pair(FROG, (BAD, GOOD), (True, True)),
    Pair(FROG, (GOOD, GOOD), (True, True)),
]


def test_the_rubric_judges():
    assert rubric_judge(PAIRS) == [1.0, 0.0, 0.5]
    assert judged(rubric_judge, PAIRS, both=False) == ([1.0, 0.0, 0.5], None)


def test_a_model_is_asked_in_both_orders():
    Found = namedtuple("Found", "logprob")

    class First:  # prefers what stands first, whatever it is
        def loglikelihood(self, requests):
            return [Found(0.0 if letter == " A" else -1.0) for _, letter in requests]

    class Right(First):
        def loglikelihood(self, requests):
            return [Found(float(f"Answer {letter.strip()}: {GOOD}" in prompt)) for prompt, letter in requests]

    assert judged(model_judge(First()), PAIRS, both=True) == ([0.5] * 3, 1.0)
    assert judged(model_judge(Right()), PAIRS, both=True) == ([1.0, 0.0, 0.5], 0.0)


def test_a_person_sees_no_names_and_random_sides():
    shown, typed = [], iter(["x", "1"] + ["1"] * 39)
    pairs = [PAIRS[0]] * 40
    found = list(person_judge(0, lambda _: next(typed), shown.append)(pairs))
    assert 8 < sum(found) < 32  # always "1": whichever stood first, turned back
    for value, text in zip(found, [t for t in shown if t.startswith("  1:")]):
        assert text.startswith(f"  1: {GOOD if value == 1.0 else BAD}")
    assert "type 1, 2 or =" in shown


@pytest.fixture
def endpoint():
    said, seen = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append(
                (
                    self.path,
                    self.headers.get("Authorization"),
                    json.loads(self.rfile.read(int(self.headers["Content-Length"]))),
                )
            )
            reply = json.dumps({"choices": [{"message": {"content": said[0]}}]} if said else {}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", said, seen
        server.shutdown()


def test_an_endpoint_judges(endpoint, monkeypatch):
    url, said, seen = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    judge = endpoint_judge(url, "m", 10, 0)
    for text, value in (("A", 1.0), (" **B** is better", 0.0), ("TIE", 0.5)):
        said[:] = [text]
        assert list(judge(PAIRS[:1])) == [value]
    path, key, body = seen[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer k", "m")
    assert f"Answer A: {GOOD}\nAnswer B: {BAD}" in body["messages"][0]["content"]
    said[:] = ["I cannot say"]
    with pytest.raises(DataError, match="wanted A, B or TIE"):
        list(judge(PAIRS[:1]))
    said[:] = []
    with pytest.raises(DataError, match="choices"):
        list(judge(PAIRS[:1]))


def test_judges_that_cannot_be_had():
    for judge, message in (
        ("oracle", "wanted rubric, reward:RUN"),
        ("http://h/v1", "--judge-model"),
        ("reward:", "wanted rubric"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_judge(WinRateConfig(models=("a", "b"), tasks=("t",), judge=judge))
    with pytest.raises(ConfigError, match="two runs or more"):
        WinRateConfig(models=("a",), tasks=("t",))
