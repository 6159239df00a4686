"""Judges of pairs: each gives the right judgement, both orders are judged, and nothing is guessed."""

from __future__ import annotations

import json
import threading
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tercet.data.types import Message, Question
from tercet.errors import ConfigError, ContextError, DataError
from tercet.evaluation.config import WinRateConfig
from tercet.evaluation.judges import (
    VERDICTS,
    Pair,
    judge_pairs,
    model_judge,
    open_judge,
    person_judge,
    scorer_judge,
    spoken_judge,
)
from tercet.evaluation.scoring.judge_scorer import read_verdict
from tercet.evaluation.scoring.scorers import scorer_of
from tercet.inference.http import ChatEndpoint
from tercet.inference.language_model import TransformerLM

FROG = Question((Message("user", "What colour is the frog?"),), ("green", "The frog is green."), "facts", "1")
GOOD, BAD = "The frog is green.", "It is red."
PAIRS = [
    Pair(FROG, (GOOD, BAD), (True, True)),
    Pair(FROG, (BAD, GOOD), (True, True)),
    Pair(FROG, (GOOD, GOOD), (True, True)),
]


@pytest.mark.parametrize("name", ["rubric", "exact_match", "f1"])
def test_a_scorer_judges(name):
    judge = scorer_judge(scorer_of(name))
    assert judge(PAIRS) == [1.0, 0.0, 0.5]
    assert judge_pairs(judge, PAIRS, both=False) == ([1.0, 0.0, 0.5], None)


def test_no_judge_is_named_so_the_answers_are_compared_by_exact_match():
    judge, both = open_judge(WinRateConfig(models=("a", "b"), questions=("t",)))
    long = "It is green, the colour of grass, of leaves in spring and of this small frog, as anybody can see"
    task = replace(FROG, answers=(long,))
    assert (judge([Pair(task, (long, "It is green."), (True, True))]), both) == ([1.0], False)


def test_a_model_judges_both_orders(make_model, tokenizer):
    Found = namedtuple("Found", "logprob")

    class First(TransformerLM):  # prefers what stands first, whatever it is
        def loglikelihood(self, requests):
            return [Found(0.0 if letter == " A" else -1.0) for _, letter in requests]

    class Right(First):
        def loglikelihood(self, requests):
            return [Found(float(f"Answer {letter.strip()}: {GOOD}" in prompt)) for prompt, letter in requests]

    for kind, found in ((First, ([0.5] * 3, 1.0)), (Right, ([1.0, 0.0, 0.5], 0.0))):
        lm = kind(make_model(context_length=256), tokenizer)
        assert judge_pairs(model_judge(lm), PAIRS, both=True) == found


def test_a_model_whose_context_is_too_short_is_no_judge(make_model, tokenizer):
    """The longest prompt that fits is judged as by a model with more context; one token less is an error."""
    longer = Pair(replace(FROG, where="q.jsonl:7"), (GOOD * 2, BAD), (True, True))
    # `<|endoftext|>` comes before the text, and its last token is predicted only
    needed = max(len(tokenizer.encode(longer.prompt() + letter)) for letter in (" A", " B"))

    def judge(size):
        return model_judge(TransformerLM(make_model(context_length=size), tokenizer, name="runs/j"))

    pairs = [PAIRS[0], longer]
    assert judge_pairs(judge(needed), pairs, both=True) == judge_pairs(judge(512), pairs, both=True)
    with pytest.raises(ContextError, match=rf"^judge runs/j: 2 of 4 prompts .*\(q.jsonl:7\) needs {needed} tokens"):
        judge_pairs(judge(needed - 1), pairs, both=True)
    with pytest.raises(ContextError, match=r"4 of 4 prompts .* the context has 32: .*--max-new-tokens") as error:
        judge_pairs(judge(32), pairs, both=True)
    assert error.value.exit_code == 2


def test_a_person_sees_no_names_and_random_sides():
    shown, typed = [], iter(["x", "1"] + ["1"] * 39)
    pairs = [PAIRS[0]] * 40
    found = list(person_judge(0, lambda _: next(typed), shown.append)(pairs))
    assert 8 < sum(found) < 32  # always "1": whichever stood first, turned back
    for value, text in zip(found, [t for t in shown if t.startswith("  1:")]):
        assert text.startswith(f"  1: {GOOD if value == 1.0 else BAD}")
    assert "Please type 1, 2 or =." in shown


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
            self.send_response(404 if "missing" in self.path else 200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", said, seen
        server.shutdown()


def endpoint_judge(url):
    return spoken_judge(ChatEndpoint(url, "m", 10, 0, "judge"))


def test_an_endpoint_judges(endpoint, monkeypatch):
    url, said, seen = endpoint
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    judge = endpoint_judge(url)
    for text, value in (("A", 1.0), (" **B**", 0.0), ("Better: tie", 0.5)):
        said[:] = [text]
        assert list(judge(PAIRS[:1])) == [value]
    path, key, body = seen[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer k", "m")
    assert f"Answer A: {GOOD}\nAnswer B: {BAD}" in body["messages"][0]["content"]
    said[:] = ["A better answer is B."]
    with pytest.raises(DataError, match=r"it said 'A better answer is B.'; wanted A, B or TIE"):
        list(judge(PAIRS[:1]))
    for said[:] in ([], [None], [["A"]]):
        with pytest.raises(DataError, match="choices"):
            list(judge(PAIRS[:1]))


def test_errors_of_an_endpoint_call_it_a_judge(endpoint):
    url, _, _ = endpoint
    for address, error, message in (
        ("http://127.0.0.1:9/v1", DataError, r"^judge: http://127.0.0.1:9/v1/chat/completions: .*tried 1 times"),
        (f"{url}/missing", DataError, r"^judge: http://.*/missing/chat/completions answered with status 404"),
        ("http:///v1", ConfigError, r"^judge: 'http:///v1/chat/completions' is not an address"),
    ):
        with pytest.raises(error, match=message):
            list(endpoint_judge(address)(PAIRS[:1]))


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("A", 1.0), ("b", 0.0), ("Tie", 0.5), (" B.\n", 0.0), ("**A**", 1.0), ("__TIE__", 0.5), ("`b`", 0.0),
        ("(A)", 1.0), ('"B"', 0.0),
        ("[[A]]", 1.0), ("Better: B", 0.0), ("**Better:** a", 1.0), ("Better:\tTIE!", 0.5),
        ("B is short.\nBetter: A", 1.0),
        ("**Better: A**\nAnd so:\nbetter - a.", 1.0),
    ],
)  # fmt: skip
def test_a_verdict_is_read(said, value):
    assert read_verdict(said, VERDICTS, "BETTER") == value


@pytest.mark.parametrize(
    "said",
    [
        "", " ", "...", "C", "AB", "A+B", "A, B or TIE", "A or B", "A better answer is B.", "Both are good. A TIE",
        "Answer A: the frog is green",
        "A\nis well written, but B is right", "A is better in style", "Neither A", "not B", "I cannot say",
        "Better: A or B", "Better: neither",
        "Better: A\nBetter: B", "Better:", "Better: A is", "A tie would be unfair",
    ],
)  # fmt: skip
def test_what_is_no_verdict_is_not_guessed(said):
    assert read_verdict(said, VERDICTS, "BETTER") is None


def test_judges_that_cannot_be_had():
    for judge, message in (
        ("oracle", "wanted a scorer such as exact_match, or reward:RUN"),
        ("http://h/v1", "--judge-model"),
        ("reward:", "wanted a scorer"),
        ("exactmatch", "did you mean 'exact_match'"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_judge(WinRateConfig(models=("a", "b"), questions=("t",), judge=judge))
    with pytest.raises(ConfigError, match="two runs or more"):
        WinRateConfig(models=("a",), questions=("t",))
