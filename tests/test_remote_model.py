"""A model behind an HTTP server works wherever a `LanguageModel` does: nothing needs its weights or tokenizer."""

from __future__ import annotations

import dataclasses
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from helpers import World, write_world
from tercet.data.formats.conversations import to_messages
from tercet.data.types import Conversation, Document, Message, Question
from tercet.errors import ConfigError, ContextError, DataError
from tercet.evaluation import evaluate as scores
from tercet.evaluation import judges as judging
from tercet.evaluation.bits_per_byte import bits_per_byte
from tercet.evaluation.config import EvalConfig, PromptConfig, WinRateConfig
from tercet.evaluation.judges import Pair, judge_pairs, model_judge, spoken_judge
from tercet.evaluation.prompt_study import prompt_study
from tercet.evaluation.suites import evaluate_tasks
from tercet.evaluation.task import Item, Task, find
from tercet.inference.http import ChatEndpoint, HttpClient
from tercet.inference.language_model import (
    ChatAnswer,
    LanguageModel,
    Loglikelihood,
    TransformerLM,
    UntilRequests,
    local,
)
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer

TASKS = {"mapping": "choice", "translation": "free"}
FROG = Question((Message("user", "What colour is the frog?"),), ("green",), "facts", "1")
PAIRS = [Pair(FROG, (a, b), (True, True)) for a, b in (("green", "red"), ("It is green.", "red"), ("red", "red"))]


class Remote:
    """A `LanguageModel` that knows nothing but an address."""

    __slots__ = ("_http", "context_length", "name", "parameters")

    def __init__(self, url: str) -> None:
        self._http = HttpClient("remote", url, 60, 0, 'wanted {"result": …}')
        self.name = f"toy at {url}"
        self.parameters, self.context_length = self._call("about")

    def _call(self, method: str, *args: Any) -> Any:
        return json.loads(self._http.post({"method": method, "args": args}))["result"]

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        return list(self._call("count_tokens", texts))

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        return [Loglikelihood(**one) for one in self._call("loglikelihood", requests)]

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> list[float]:
        return list(self._call("rolling", texts, context, reach_back))

    def generate_until(
        self, requests: UntilRequests, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        return list(self._call("generate_until", requests, max_new_tokens, temperature, seed))

    def chat(
        self,
        prompts: Sequence[tuple[str, Conversation]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[ChatAnswer]:
        said = [(where, to_messages(prompt)) for where, prompt in prompts]
        return [ChatAnswer(*one) for one in self._call("chat", said, max_new_tokens, temperature, seed)]


def reply_of(lm: TransformerLM, method: str, args: list[Any]) -> Any:
    """What the server answers, as JSON can say it."""
    if method == "about":
        return [lm.parameters, lm.context_length]
    if method == "chat":
        prompts = [(where, tuple(Message(**m) for m in prompt)) for where, prompt in args[0]]
        return [(a.text, a.finished) for a in lm.chat(prompts, *args[1:])]
    found = getattr(lm, method)([tuple(r) if isinstance(r, list) else r for r in args[0]], *args[1:])
    return [dataclasses.asdict(one) if isinstance(one, Loglikelihood) else one for one in found]


@contextmanager
def served(lm: TransformerLM) -> Iterator[Remote]:
    """The model behind a server of its own."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = json.dumps({"result": reply_of(lm, asked["method"], asked["args"])}).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(reply)

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield Remote(f"http://127.0.0.1:{server.server_port}")
        server.shutdown()


@pytest.fixture
def here(make_model: Callable[..., Transformer], tokenizer: Tokenizer) -> TransformerLM:
    return TransformerLM(make_model(context_length=256), tokenizer)


@pytest.fixture
def remote(here: TransformerLM) -> Iterator[Remote]:
    with served(here) as found:
        yield found


def test_registered_tasks_of_every_kind_have_the_numbers_of_the_local_model(
    here: TransformerLM, remote: Remote
) -> None:
    tasks = [find(name).limited(6) for name in TASKS]
    assert {t.name: t.kind for t in tasks} == TASKS
    tasks.append(Task("target", "target", lambda: [Item(str(n), "The cat sat on", ("the mat",)) for n in range(3)]))
    assert evaluate_tasks(remote, tasks) == evaluate_tasks(here, tasks)
    config = PromptConfig(model="m", task=tuple(TASKS), shots=(0, 2), limit=6, threads=1, max_new_tokens=8)
    assert prompt_study(config, lm=remote) == prompt_study(config, lm=here)
    with pytest.raises(ContextError, match=r"prompts do not fit; .*the context of 256 has room for 6"):
        prompt_study(dataclasses.replace(config, limit=1, max_new_tokens=250), lm=remote)


def test_bits_per_byte_is_that_of_the_local_model(here: TransformerLM, remote: Remote) -> None:
    documents = [Document("The cat sat on the mat. " * n, source, "d") for source in "ab" for n in (1, 40)]
    assert bits_per_byte(remote, documents) == bits_per_byte(here, documents)


def test_it_judges_by_likelihood_and_by_what_it_says(here: TransformerLM, remote: Remote) -> None:
    assert judge_pairs(model_judge(remote), PAIRS, both=True) == judge_pairs(model_judge(here), PAIRS, both=True)
    with pytest.raises(DataError, match=r"^judge toy at http://127.*: it said .*; wanted A, B or TIE"):
        list(spoken_judge(remote)(PAIRS))
    long = Pair(FROG, ("green " * 300, "red"), (True, True))
    with pytest.raises(ContextError, match=r"^judge toy at http.*: 1 of 1 prompts do not fit.* the context has 256"):
        list(model_judge(remote)([long]))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two language models and a reward model."""
    made = write_world(tmp_path_factory.mktemp("remote"))
    made.make_parents("ppo")
    return made


@pytest.fixture
def all_remote() -> Iterator[None]:
    """Every run that a command opens is behind a server."""
    with pytest.MonkeyPatch.context() as patch:
        opened = []

        def open_model(run: str | Path, **settings: Any) -> LanguageModel:
            opened.append(served(TransformerLM.of_run(run)))
            return opened[-1].__enter__()

        patch.setattr(scores, "open_model", open_model)
        patch.setattr(judging, "open_model", open_model)
        yield
        assert opened
        for server in opened:
            server.__exit__(None, None, None)


def config_of(world: World, **changes: Any) -> EvalConfig:
    paths: dict[str, Any] = {"text": (world.path("heldout.jsonl"),), "questions": (world.path("tasks.jsonl"),)}
    values: dict[str, Any] = {"suite": ("translation",), "limit": 6, "max_new_tokens": 8, "threads": 1}
    return EvalConfig(models=(world.path("base"), world.path("tuned")), **{**paths, **values, **changes})


def test_eval_and_winrate_of_remote_models_are_those_of_the_runs(world: World, request: pytest.FixtureRequest) -> None:
    config = config_of(world)
    judge = f"reward:{world.path('judge')}"
    rates = WinRateConfig(
        models=config.models, questions=config.questions, judge=judge, limit=6, max_new_tokens=8, threads=1
    )
    expected = scores.evaluate(config), judging.win_rates(rates)
    request.getfixturevalue("all_remote")
    assert (scores.evaluate(config), judging.win_rates(rates)) == expected


@pytest.mark.parametrize("option", ["reward", "reference"])
def test_what_needs_ids_says_so(world: World, all_remote: None, option: str) -> None:
    run = world.path("judge" if option == "reward" else "base")
    with pytest.raises(
        ConfigError, match=rf"^--{option} needs token ids, which toy at http.* does not give; name a run"
    ):
        scores.evaluate(config_of(world, **{option: run}))


def test_a_chat_endpoint_refuses_what_it_cannot_do() -> None:
    chat = ChatEndpoint("http://127.0.0.1:9/v1/", "m", 1, 0)
    assert (chat.name, chat.parameters, chat.context_length) == (
        "m at http://127.0.0.1:9/v1/chat/completions",
        None,
        None,
    )
    config = PromptConfig(model="m", task=("mapping",), shots=(0,), threads=1)
    with pytest.raises(
        ConfigError, match=r"^chat model http://127.0.0.1:9/v1/chat/completions: .* no log-probabilities"
    ):
        prompt_study(config, lm=chat)
    with pytest.raises(ConfigError, match="no log-probabilities of given texts, only answers to conversations"):
        bits_per_byte(chat, [Document("a", "b", "c")])
    with pytest.raises(ConfigError, match="no log-probabilities"):
        list(model_judge(chat)(PAIRS))
    with pytest.raises(ConfigError, match="no continuations of a text"):
        prompt_study(dataclasses.replace(config, task=("translation",)), lm=chat)
    with pytest.raises(ConfigError, match="no counts of tokens"):
        chat.count_tokens(["a"])
    with pytest.raises(ConfigError, match=r"^KL needs token ids, which m at http"):
        local(chat, "KL")


def test_a_chat_endpoint_sends_conversations_and_says_what_was_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def post(self: HttpClient, body: Any) -> str:
        seen.append(body)
        return json.dumps(
            {"choices": [{"message": {"content": "green"}, "finish_reason": ["stop", "length"][len(seen) - 1]}]}
        )

    monkeypatch.setattr(HttpClient, "post", post)
    chat = ChatEndpoint("http://127.0.0.1:9/v1", "m", 1, 0)
    prompts = [("q:1", (Message("system", "Be brief."), *FROG.prompt)), ("q:2", FROG.prompt)]
    assert chat.chat(prompts, 5, 0.7, seed=4) == [ChatAnswer("green", True), ChatAnswer("green", False)]
    question = {"role": "user", "content": "What colour is the frog?"}
    sent = {"model": "m", "temperature": 0.7, "max_tokens": 5}
    assert seen == [
        {**sent, "messages": [{"role": "system", "content": "Be brief."}, question], "seed": 4},
        {**sent, "messages": [question], "seed": 5},
    ]
