"""Rewards: specs and weights, reward models, ensembles, scorers, functions, processes and failing endpoints."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tercet.data.formats.reasoning_gym import gym_questions
from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError, TercetError
from tercet.inference import http
from tercet.inference.http import within
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rewards.rewards import Rewards, SampledAnswer, parse_rewards, reward_files, reward_runs
from tercet.posttraining.sft.stage import SFTConfig
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.run import Run

Make = Callable[..., Transformer]


def answered(
    text: str, gold: str | None = "7", number: int = 1, finished: bool = True, tokens: Any = (5, 6)
) -> SampledAnswer:
    prompt = (Message("user", "How much is 3 + 4?"),)
    question = None if gold is None else Question(prompt, (gold,), "sums", f"sum/{number}")
    return SampledAnswer(f"tasks.jsonl:{number}", prompt, text, finished, tuple(tokens), question)


def save(run: Run, model: Any, tokenizer: Tokenizer) -> Run:
    tokenizer.save(run.path / "tokenizer.json")
    run.save_model_config(model.config)
    run.save_checkpoint(1, {"model": model.state_dict()}, {}, 1)
    return run


@pytest.fixture
def reward_models(tmp_path: Path, tokenizer: Tokenizer, make_model: Make) -> list[ValueHeadModel]:
    """Three reward models, saved as the runs a, b and c of `tmp_path`."""
    out = []
    for number, name in enumerate("abc"):
        model = ValueHeadModel(make_model(number), seed=number)
        model.gain.fill_(1.0 + number)
        with Run.start("reward", RewardConfig(model="x", data=("x",)), tmp_path / name) as run:
            save(run, model, tokenizer)
        out.append(model.eval())
    return out


Open = Callable[..., Rewards]


@pytest.fixture
def opened(shape: ModelConfig, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """`opened("rubric", …, timeout=1.0)`; closed after the test. Pauses between tries are short."""
    monkeypatch.setattr(http, "BACKOFF", 0.01)
    made: list[Rewards] = []

    def make(*specs: str, timeout: float = 20.0, retries: int = 2) -> Rewards:
        made.append(Rewards(specs, tokenizer, shape, timeout, retries))
        return made[-1]

    yield make
    for rewards in made:
        rewards.close()


# -- specs ------------------------------------------------------------------------------------------------------------


def test_a_weight_stands_in_front_and_names_are_unique(tmp_path: Path, reward_models: list[ValueHeadModel]) -> None:
    a, b, c = (str(tmp_path / name) for name in "abc")
    specs = parse_rewards(
        [
            a,
            f" 0.5 * min({b}, {c})",
            "-1e-1*rubric",
            "2*python:x/y.py:score",
            "python:z.w:score",
            "process:cat 2*3",
            "0*http://h/p",
        ]
    )
    assert [(s.name, s.weight, s.kind) for s in specs] == [
        ("a", 1.0, "run"),
        ("min_2", 0.5, "run"),
        ("rubric", -0.1, "scorer"),
        ("score", 2.0, "python"),
        ("score2", 1.0, "python"),
        ("process", 1.0, "process"),
        ("http", 0.0, "http"),
    ]
    assert (specs[1].paths, specs[1].aggregate, specs[5].body) == ((b, c), "min", "cat 2*3")
    assert list(reward_runs([a, f"min({b},{c})"])) == ["reward", "reward2", "reward3"]
    assert reward_runs(["rubric"]) == {}
    assert reward_files(["python:x/y.py:score", "python:z.w:score", "rubric"]) == ("x/y.py",)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "reward '' is neither a known reward nor a folder"),
        ("exactmatch", "'exactmatch' is neither a known reward nor a folder; did you mean 'exact_match'"),
        ("half*rubric", "is neither a known reward nor a folder"),
        ("1e999*rubric", "weight 1e999 is too large; wanted a finite number"),
        ("0*rubric", "--reward: every weight is 0"),
        ("runs/a,runs/b", r"wanted mean\(runs/a,runs/b\) or min\(runs/a,runs/b\) to combine"),
        ("maen(runs/a,runs/b)", "unknown aggregate 'maen'; wanted mean or min; did you mean 'mean'"),
        ("mean(runs/a,)", "a run's path is empty"),
        ("mean(runs/a,./runs/a)", "runs/a twice; name it once, with one weight"),
        ("python:score", "wanted python:package.module:function"),
        ("python:no/such.py:score", "there is no file no/such.py"),
        ("python:no_such_module_:score", "no_such_module_ cannot be imported: ModuleNotFoundError"),
        ("python:json:lods", "json has no function 'lods'; it has .*loads"),
        ("process:", "reward process: an empty command is not a program"),
        ("process:no-such-program-at-all -x", "'no-such-program-at-all' is not a program that can be run"),
        ("process:cat 'x", r"the command line cannot be parsed \(No closing quotation\)"),
        ("http://", "'http://' is not an address"),
        ("http://host:port/x", "'http://host:port/x' is not an address"),
        ("https://me:secret@host/x", "is not an address"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_way_out(opened: Open, spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        opened(spec)


def test_no_reward_at_all_and_runs_of_another_kind_are_refused(
    opened: Open, tokenizer: Tokenizer, make_model: Make, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="--reward is empty; wanted a run of"):
        opened()
    with Run.start("sft", SFTConfig(model="x", data=("x",)), tmp_path / "sft") as run:
        save(run, make_model(0), tokenizer)
    with pytest.raises(ConfigError, match="is a language model; wanted a reward model, as made by `tercet reward`"):
        reward_runs([str(tmp_path / "sft")])
    with pytest.raises(ConfigError, match="not a run directory"):
        reward_runs([str(tmp_path)])


# -- reward models ----------------------------------------------------------------------------------------------------


def test_models_ensembles_and_weights_add_up(opened: Open, tmp_path: Path, reward_models: list[ValueHeadModel]) -> None:
    texts = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]
    each = [[float(model(torch.tensor([text]))[0, -1].detach()) for text in texts] for model in reward_models]
    a, b, c = (str(tmp_path / name) for name in "abc")
    answers = [answered("7", tokens=text) for text in texts]
    rewards = opened(f"-2*{a}", f"0.5*mean({b},{c})")
    totals, means = rewards(answers)
    assert totals == pytest.approx([-2 * x + 0.25 * (y + z) for x, y, z in zip(*each)], abs=1e-5)
    assert means == pytest.approx(
        {"reward/a": sum(each[0]) / 3, "reward/mean_2": (sum(each[1]) + sum(each[2])) / 6}, abs=1e-5
    )
    assert rewards.weights == {"a": -2.0, "mean_2": 0.5}
    assert [(role, run.path.name) for role, run in rewards.runs.items()] == [
        ("reward", "a"),
        ("reward2", "b"),
        ("reward3", "c"),
    ]
    totals, _ = opened(f"min({a},{b},{c})")(answers)
    assert totals == pytest.approx([min(scores) for scores in zip(*each)], abs=1e-5)
    assert opened(a)([]) == ([], {"reward/a": 0.0})


def test_a_reward_model_of_another_tokenizer_or_a_shorter_context_is_refused(
    opened: Open, tmp_path: Path, tokenizer: Tokenizer, make_model: Make
) -> None:
    config = RewardConfig(model="x", data=("x",))
    with Run.start("reward", config, tmp_path / "other") as run:
        save(run, ValueHeadModel(make_model(0)), train_tokenizer(["other text"] * 3, 262))
    with pytest.raises(ConfigError, match="have different tokenizers"):
        opened(str(tmp_path / "other"))
    with Run.start("reward", config, tmp_path / "short") as run:
        save(run, ValueHeadModel(make_model(0, context_length=32)), tokenizer)
    with pytest.raises(ConfigError, match="has a context of 32 tokens, but prompt and answer can have 64"):
        opened(str(tmp_path / "short"))


# -- verifiers and functions ------------------------------------------------------------------------------------------


def test_verifiers_score_by_the_gold_answers(opened: Open) -> None:
    answers = [
        answered(" 7. "),
        answered("8"),
        answered("It is 7.", "It is 7."),
        answered("It is 7.", "It is 7.", finished=False),
    ]
    totals, means = opened("exact_match", "10*rubric")(answers)
    # right 0.5, sentence 0.2, direct 0.2, finished 0.1
    assert totals == pytest.approx([1 + 8, 0 + 3, 1 + 10, 1 + 7])
    assert means == pytest.approx({"reward/exact_match": 0.75, "reward/rubric": 0.7})


@pytest.mark.parametrize("kind", ["exact_match", "rubric", "reasoning_gym"])
def test_a_verifier_names_the_prompt_that_has_no_answers(opened: Open, kind: str) -> None:
    rewards, bare = opened(kind), answered("7", None, 3)
    with pytest.raises(DataError, match=f"tasks.jsonl:3: the reward {kind} needs gold answers"):
        rewards([answered("7", number=1)] * (kind != "reasoning_gym") + [bare])
    with pytest.raises(DataError, match=r"tasks\.jsonl:3"):
        rewards.check([(bare.where, bare.question)])


@pytest.mark.skipif(find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed (the extra rlvr)")
def test_reasoning_gym_scores_its_own_tasks(opened: Open) -> None:
    made, _, _ = gym_questions(["gcd"], 3, 0, 7)
    rewards = opened("2*reasoning_gym")
    answers = [
        SampledAnswer("g.jsonl:1", task.prompt, text, True, (5,), task)
        for task in made
        for text in (task.answers[0], "none")
    ]
    assert rewards(answers) == ([2.0, 0.0] * 3, {"reward/reasoning_gym": 0.5})
    with pytest.raises(DataError, match=r"tasks\.jsonl:1: the id 'sum/1' is not one of reasoning-gym's"):
        rewards.check([("tasks.jsonl:1", answered("7").question)])


def test_only_verifiers_need_gold_answers(opened: Open, tmp_path: Path, reward_models: list[ValueHeadModel]) -> None:
    opened(str(tmp_path / "a"), "python:math:dist").check([("tasks.jsonl:3", None)])


def write_function(path: Path, body: str) -> str:
    path.write_text(f"def score(prompt, answer, answers):\n    {body}\n")
    return f"python:{path}:score"


def test_a_function_gets_messages_text_and_gold_answers(opened: Open, tmp_path: Path) -> None:
    spec = write_function(
        tmp_path / "mine.py",
        "return len(answer) + 10 * (answers == ['7']) "
        "+ 100 * (prompt == [{'role': 'user', 'content': 'How much is 3 + 4?'}])",
    )
    totals, means = opened(f"0.5*{spec}")([answered("7"), answered("seven", None)])
    assert totals == [0.5 * 111, 0.5 * 105]
    assert means == {"reward/score": 108.0}


def test_a_function_of_a_module_is_found_as_python_finds_it(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scorers_of_test").mkdir()
    (tmp_path / "scorers_of_test" / "length.py").write_text(
        "def score(prompt, answer, answers): return len(answer) > 2\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert opened("python:scorers_of_test.length:score")([answered("abc"), answered("a")])[0] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "return float('nan') if answer == 'b' else 1.0",
            r"tasks.jsonl:2: reward score returned nan for the answer 'b'",
        ),
        ("return -float('inf') if answer == 'b' else 1.0", r"tasks.jsonl:2: reward score returned -inf"),
        ("return '1' if answer == 'b' else 1", r"tasks.jsonl:2: reward score returned '1' .*wanted a finite number"),
        ("return None", "tasks.jsonl:1: reward score returned None"),
        ("return 10**400", "tasks.jsonl:1: reward score returned an integer too large for a float"),
        ("return 1e39", r"tasks.jsonl:1: reward score returned 1e\+39 .*at most 1e\+30"),
        ("import sys; sys.exit(0)", "tasks.jsonl:1: reward score failed on the answer 'a': SystemExit: 0"),
        (
            "return 1 / (answer != 'b')",
            "tasks.jsonl:2: reward score failed on the answer 'b': ZeroDivisionError: .*mine.py:2",
        ),
    ],
)
def test_a_wrong_result_of_a_function_names_reward_and_prompt(
    opened: Open, tmp_path: Path, body: str, message: str
) -> None:
    rewards = opened(write_function(tmp_path / "mine.py", body))
    with pytest.raises(DataError, match=message):
        rewards([answered("a", number=1), answered("b", number=2)])


def test_a_file_that_fails_when_imported_says_where(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import math\nmath.sqrt(-1)\n")
    with pytest.raises(ConfigError, match=r"mine.py cannot be imported: ValueError: .* at .*mine.py:2"):
        opened(f"python:{tmp_path / 'mine.py'}:score")


def test_a_file_that_ends_python_does_not_end_the_run_in_silence(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(ConfigError, match=r"mine.py cannot be imported: SystemExit: 0"):
        opened(f"python:{tmp_path / 'mine.py'}:score")


def test_a_weight_counts_when_a_score_is_too_large(opened: Open, tmp_path: Path) -> None:
    spec = write_function(tmp_path / "mine.py", "return 1e20")
    assert opened(spec)([answered("a")])[0] == [1e20]
    with pytest.raises(DataError, match=r"returned 1e\+20 \(its weight is 1e\+20\)"):
        opened(f"1e20*{spec}")([answered("a")])


def test_code_is_pinned_however_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("my_module_of_rewards", "my_script"):
        (tmp_path / f"{name}.py").write_text("def f(p, a, g):\n    return 1.0\n")
    script = str(tmp_path / "my_script.py")
    specs = ["python:my_module_of_rewards:f", f"process:python {script} --fast", "python:no.such:f"]
    assert reward_files(specs) == (str(tmp_path / "my_module_of_rewards.py"), script)


# -- processes --------------------------------------------------------------------------------------------------------

SERVE = """
import json, os, sys, time
def tries():
    with open("tries", "a") as file: file.write(f"{os.getpid()}\\n")
    return len(open("tries").readlines())
print("scorer starts", file=sys.stderr)
for line in sys.stdin:
    items = json.loads(line)["items"]
    scores = [len(item["answer"]) for item in items]
    BODY
    print(json.dumps({"scores": scores}), flush=True)
open("ended", "w").close()
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """`script("what to do before the answer")`: the spec of a process that scores by length, working in `tmp_path`."""
    monkeypatch.chdir(tmp_path)

    def make(body: str = "tries()") -> str:
        (tmp_path / "scorer.py").write_text(SERVE.replace("BODY", body))
        return f"process:{sys.executable} -S -E scorer.py"

    return make


def test_a_process_stays_alive_and_ends_itself_when_its_input_ends(opened: Open, script: Any, tmp_path: Path) -> None:
    rewards = opened(script("tries(); json.dump(items, open('items.json', 'w'))"))
    assert rewards([answered("ü\n€"), answered("four", None, finished=False)])[0] == [3.0, 4.0]
    user = [{"role": "user", "content": "How much is 3 + 4?"}]
    assert json.loads((tmp_path / "items.json").read_text()) == [
        {"prompt": user, "answer": "ü\n€", "finished": True, "answers": ["7"], "id": "sum/1"},
        {"prompt": user, "answer": "four", "finished": False, "answers": [], "id": ""},
    ]
    assert rewards([]) == ([], {"reward/process": 0.0})
    assert rewards([answered("x" * 300_000)])[0] == [300_000.0]  # more than a pipe holds
    assert len(set((tmp_path / "tries").read_text().split())) == 1, "the process was started once"
    rewards.close()
    assert (tmp_path / "ended").exists(), "it was not killed, its input ended"


def test_a_process_that_crashes_or_hangs_is_started_again(opened: Open, script: Any, tmp_path: Path) -> None:
    assert opened(script("if tries() < 3: sys.exit(3)"))([answered("four")])[0] == [4.0]
    (tmp_path / "tries").unlink()
    rewards = opened(script("if tries() == 1: time.sleep(600)"), timeout=1.0, retries=1)
    assert rewards([answered("four")])[0] == [4.0]
    pids = [int(pid) for pid in (tmp_path / "tries").read_text().split()]
    assert len(set(pids)) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)  # the one that hung is gone


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "print('no GPU', file=sys.stderr); sys.exit(3)",
            r"reward process: .*exit code 3; its stderr ends:\nscorer starts\nno GPU\n.*tried 2 times",
        ),
        ("time.sleep(600)", r"no answer within 0.4 s; .*tried 2 times; wanted \{\"scores\": \[one number per item\]\}"),
        (
            "print('hello', flush=True)",
            "reward process: (the reply is not JSON .*'hello|the process wrote more than one line)",
        ),
        ("print('{\"score\": 1}'); scores.clear() or sys.exit()", r"reward process: found .*wanted \{\"scores\""),
        (
            "scores = scores[1:]",
            r"reward process: 1 scores for 2 answers \(the first to tasks.jsonl:1\); wanted one each",
        ),
        ("scores[1] = float('nan')", "tasks.jsonl:2: reward process returned nan"),
        ("scores[1] = None", "tasks.jsonl:2: reward process returned None for the answer 'bb'"),
    ],
)
def test_a_process_that_fails_is_an_error_that_says_how(opened: Open, script: Any, body: str, message: str) -> None:
    rewards = opened(script(body), timeout=0.4 if "sleep" in body else 20.0, retries=1)
    with pytest.raises(DataError, match=f"(?s){message}"):
        rewards([answered("a", number=1), answered("bb", number=2)])


def test_a_process_that_says_more_than_it_was_asked_is_refused(opened: Open, script: Any) -> None:
    """Its second line would be taken for the answer to the next batch."""
    rewards = opened(script("print(json.dumps({'scores': scores}), flush=True)"))

    def thrice() -> None:
        for _ in range(3):
            assert rewards([answered("four")])[0] == [4.0]
            time.sleep(0.1)

    with pytest.raises(DataError, match=r"more than one line for a batch: .*wanted one"):
        thrice()


def test_a_process_ends_with_its_rewards(shape: ModelConfig, tokenizer: Tokenizer, script: Any, tmp_path: Path) -> None:
    with Rewards([script()], tokenizer, shape) as rewards:
        rewards([answered("a")])
        pid = int((tmp_path / "tries").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# -- endpoints --------------------------------------------------------------------------------------------------------


class Endpoint(HTTPServer):
    """Answers the n-th request with the n-th of `replies` (then again the last): status, body, seconds of waiting."""

    replies: list[tuple[int, str, float]]
    seen: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append({"body": json.loads(body), "type": self.headers["Content-Type"], "path": self.path})
        status, text, wait = self.server.replies[min(len(self.server.seen), len(self.server.replies)) - 1]
        time.sleep(wait)
        if not status:  # hang up without a word
            return
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: Any) -> None:
        """Nothing on the screen."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Endpoint(("127.0.0.1", 0), Handler)
    server.seen, server.replies = [], [(200, '{"scores": [1, 2.5]}', 0.0)]
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def address(server: Endpoint) -> str:
    return f"http://127.0.0.1:{server.server_port}/score"


PAIR = [answered("a", number=1), answered("bb", number=2)]


def test_an_endpoint_gets_the_batch_by_post(opened: Open, endpoint: Endpoint) -> None:
    assert opened(f"2*{address(endpoint)}")(PAIR) == ([2.0, 5.0], {"reward/http": 1.75})
    (seen,) = endpoint.seen
    assert (seen["type"], seen["path"]) == ("application/json", "/score")
    assert [item["answer"] for item in seen["body"]["items"]] == ["a", "bb"]


def test_an_overloaded_endpoint_is_asked_again(opened: Open, endpoint: Endpoint) -> None:
    endpoint.replies = [(503, "busy", 0.0), (0, "", 0.0), (200, '{"scores": [1, 2]}', 0.0)]
    assert opened(address(endpoint))(PAIR)[0] == [1.0, 2.0]
    assert len(endpoint.seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "tries", "message"),
    [
        (500, "no model", 3, r"http://127.0.0.1:\d+/score answered with status 500 .*'no model' \(tried 3 times"),
        (429, "slow down", 3, "status 429"),
        (404, "nobody", 1, r"/score answered with status 404 Not Found: 'nobody'; wanted .* with status 200"),
        (302, "", 1, "status 302"),
        (200, "<html>", 1, "the reply is not JSON .*<html>"),
        (200, '{"scores": 1}', 1, r"reward http: found .*wanted \{\"scores\""),
        (200, '{"scores": [1, 2, 3]}', 1, "reward http: 3 scores for 2 answers"),
        (200, '{"scores": [1, 1e999]}', 1, "tasks.jsonl:2: reward http returned inf"),
    ],
)
def test_an_endpoint_that_fails_is_an_error_that_says_how(
    opened: Open, endpoint: Endpoint, status: int, body: str, tries: int, message: str
) -> None:
    endpoint.replies = [(status, body, 0.0)]
    with pytest.raises(DataError, match=message):
        opened(address(endpoint))(PAIR)
    assert len(endpoint.seen) == tries, "only what may pass is tried again"


def test_an_endpoint_that_is_too_slow_or_not_there(opened: Open, endpoint: Endpoint) -> None:
    endpoint.replies = [(200, '{"scores": [1, 2]}', 0.5)]
    with pytest.raises(DataError, match=r"/score: TimeoutError: .*tried 2 times"):
        opened(address(endpoint), timeout=0.1, retries=1)(PAIR)
    with pytest.raises(DataError, match=r"http://127.0.0.1:9/x: .*tried 1 times"):
        opened("http://127.0.0.1:9/x", retries=0)(PAIR)


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_the_pauses_double(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(http.time, "sleep", pauses.append)
    monkeypatch.setattr(http, "BACKOFF", 0.5)
    rewards = opened("http://127.0.0.1:9/x", retries=4)
    with pytest.raises(DataError, match="tried 5 times"):
        rewards(PAIR)
    assert pauses == [0.5, 1.0, 2.0, 4.0]


def test_within_bounds_the_whole_time_and_passes_errors_on() -> None:
    assert within(5.0, lambda: math.pi) == math.pi
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"within 0\.05 s"):
        within(0.05, lambda: time.sleep(0.5))
    assert time.monotonic() - began < 0.4
    with pytest.raises(TercetError, match="inside"):
        within(5.0, lambda: (_ for _ in ()).throw(DataError("inside")))
