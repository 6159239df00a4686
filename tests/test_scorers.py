"""Scorers: each against values worked out by hand or an independent library, what they need, and how they are named."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring import scorers
from tercet.evaluation.scoring.judge_scorer import GRADES, grader, grading_prompt, read_verdict
from tercet.evaluation.scoring.scorers import (
    SCORER_ENTRIES,
    Scorer,
    check_scorers,
    help_text,
    scorer_files,
    scorer_of,
    scorers_for,
)
from tercet.evaluation.task import Item, find, item_of, question_of

PARIS = Question((Message("user", "Paris"),), ("in Paris", "Paris, France"), "places", "1")
LONG = (
    "Sugar dissolves faster in hot water because its molecules move more quickly there and so hit the crystal more "
    "often "
    "than they would in a cold glass"
)


def question(*answers: str, prompt: str = "Why?", test: str = "") -> Question:
    return Question((Message("user", prompt),), answers, "own", "q/1", where="own.jsonl:1", test=test)


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "answer", "score"),
    [
        ("exact_match", " In paris. ", 1.0),
        ("exact_match", "Paris", 0.0),
        ("exact_match", "", 0.0),
        ("exact", " In paris. ", 1.0),  # its name in task files of before
        ("verbatim", "in Paris\n", 1.0),
        ("verbatim", "In Paris", 0.0),
        ("contains", "He lives in paris, I think", 1.0),
        ("contains", "in Parisian style", 0.0),
        ("f1", "Paris", 2 / 3),
        ("f1", "Rome", 0.0),
        ("sentence_with", "He lives in Paris.", 1.0),
        ("sentence_with", "He lives in Rome.", 0.0),
        ("sentence_with", "paris", 0.0),
        ("regex:(?i)par.s", "It is PARIS", 1.0),
        ("regex:^par", "It is paris", 0.0),
        (r"regex:Answer: (.*)", "Answer: Rome\nno, Answer: in Paris", 1.0),  # the last match counts
        (r"regex:Answer: (.*)", "Answer: in Paris\nno, Answer: Rome", 0.0),
        (r"regex:Answer: (.*)", "in Paris", 0.0),
        (r"regex:a:b|in (Paris)", "a:b", 0.0),  # a colon belongs to the pattern; a group without a match is no answer
    ],
)
def test_texts(name: str, answer: str, score: float) -> None:
    assert scorer_of(name)(PARIS, answer) == pytest.approx(score)


def test_a_long_right_answer_is_right() -> None:
    assert len(LONG.split()) > 12
    assert scorer_of("exact_match")(question(LONG), f"  {LONG.upper()}.\n", finished=False) == 1.0
    assert scorer_of("rubric")(question(LONG), LONG) < 1.0  # which is why nobody gets the rubric who did not ask for it


def test_signs_without_letters_are_looked_for_as_they_are() -> None:
    contains = scorer_of("contains")
    assert contains(question("→"), "x → y") == 1.0
    assert contains(question("→"), "") == contains(question("?"), "x y") == 0.0


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [  # SQuAD: without case, punctuation and articles, words counted as often as they stand
        ("the Denver Broncos", "Denver Broncos!", 1.0),
        ("Denver Broncos", "the Denver team", 0.5),  # shared 1, of 2 and 2 words
        ("Santa Clara, California", "Santa Clara", 0.8),  # shared 2: P = 1, R = 2/3
        ("to be or not to be", "to to to", 4 / 9),  # shared 2 of 6 and 3
        ("Super-Bowl", "super bowl", 0.0),  # a hyphen is taken out, not made a space: "superbowl"
        ("A", "a", 1.0),  # nothing but an article is left
        ("A", "the", 0.0),
        ("A", "", 0.0),
        ("24", "24.", 1.0),
    ],
)
def test_f1_as_in_squad(gold: str, answer: str, score: float) -> None:
    assert scorer_of("f1")(question(gold), answer) == pytest.approx(score)


def test_f1_takes_the_best_of_the_accepted_answers() -> None:
    assert scorer_of("f1")(question("nothing", "Santa Clara, California"), "Santa Clara") == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("name", "gold", "answer", "score"),
    [
        ("numeric", "So it is 1,234.", "first 7, then 1234.0 eggs", 1.0),
        ("number", "12", "12", 1.0),  # its name in task files of before
        ("numeric", "1234", "1234 is not 7", 0.0),
        ("numeric", "1234", "none", 0.0),
        ("numeric", "none", "none", 0.0),
        ("numeric", "3", "−3", 0.0),  # a minus sign of typesetting
        ("numeric", "150000", "1.5e5", 1.0),
        ("numeric:0.01", "0.3", "0.29", 1.0),  # exactly at the limit, where 0.3 − 0.29 > 0.01 in binary
        ("numeric:0.01", "0.3", "0.2899", 0.0),
        ("numeric:1e-3", "3.1416", "it is about 3.142", 1.0),
        ("numeric:5", "100", "95", 1.0),
        ("numeric:5", "100", "-95", 0.0),
    ],
)
def test_numbers(name: str, gold: str, answer: str, score: float) -> None:
    assert scorer_of(name)(question(gold), answer) == score


def test_chrf_by_hand() -> None:
    # "abc" against "abd": unigrams 2/3, bigrams 1/2, trigrams 0: P = R = 7/18, and so F
    assert scorer_of("chrf")(question("abd"), "ab c") == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_bleu_by_hand() -> None:
    # "a b c d" against "a b c e": precisions 3/4, 2/3, 1/2 and 0, which "exp" smoothing makes 1 / (2 · 1)
    wanted = math.exp((math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2) + math.log(1 / 2)) / 4)
    assert scorer_of("bleu")(question("a b c e"), "a b c d") == pytest.approx(wanted)
    assert scorer_of("bleu")(question("Hi"), "Hi") == 1.0  # effective order: one word is enough


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=3))
def test_chrf_and_bleu_are_those_of_sacrebleu(answer: str, golds: list[str]) -> None:
    import sacrebleu

    chrf, bleu = (scorer_of(name)(question(*golds), answer) for name in ("chrf", "bleu"))
    assert chrf == pytest.approx(sacrebleu.sentence_chrf(answer, golds).score / 100)
    assert bleu == pytest.approx(sacrebleu.sentence_bleu(answer, golds).score / 100)


def test_without_sacrebleu_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(ConfigError, match=r"--scorer chrf: .*not installed; pip install 'tercet\[metrics\]'"):
        scorer_of("chrf")
    check_scorers(["chrf"])  # settings are read without it


TEXTS = ("exact_match", "verbatim", "contains", "f1", "numeric", "numeric:2", "chrf", "bleu", "rubric", "rubric:direct")


@given(st.text(max_size=60), st.lists(st.text(min_size=1, max_size=60), min_size=1, max_size=3), st.booleans())
@example("1" * 400, ["1" * 400], True)
@example("9e999 ٣", ["٣"], True)
def test_scores_are_from_0_to_1_and_never_an_error(answer: str, golds: list[str], finished: bool) -> None:
    for name in TEXTS:
        assert 0 <= scorer_of(name)(question(*golds), answer, finished) <= 1


@given(st.text(alphabet="ab 1.,?", min_size=1, max_size=30).filter(str.strip))
def test_the_accepted_answer_itself_is_right(gold: str) -> None:
    for name in ("exact_match", "verbatim", "contains", "f1"):
        assert scorer_of(name)(question("zz", gold), gold) == 1.0
    assert scorer_of("chrf")(question(gold), gold) == pytest.approx(1.0)


@given(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=30), min_size=1, max_size=3))
def test_another_accepted_answer_never_takes_away(answer: str, golds: list[str]) -> None:
    for name in ("exact_match", "contains", "f1", "numeric", "chrf"):
        scorer = scorer_of(name)
        each = [scorer(question(gold), answer) for gold in golds]
        assert scorer(question(*golds), answer) == pytest.approx(max(each))


# -- code, functions, reasoning-gym ----------------------------------------------------------------------------------

DOUBLE = question("def double(x): return 2 * x", prompt="Write double(x).", test="assert double(4) == 8")


@pytest.mark.parametrize(
    ("answer", "score"),
    [
        ("def double(x):\n    return x + x", 1.0),
        ("Here it is:\n```python\ndef double(x):\n    return x + x\n```\nI hope it helps.", 1.0),
        (
            "```\ndef double(x):\n```\nand\n```\n    return x + x",
            1.0,
        ),  # blocks are one program; the last may be cut off
        ("def double(x):\n    return x * x", 0.0),
        ("I cannot", 0.0),
        ("", 0.0),
    ],
)
def test_code_is_run_with_the_rows_test(answer: str, score: float) -> None:
    assert scorer_of("code")(DOUBLE, answer) == score


def test_code_that_completes_the_question() -> None:
    asked = question_of(find("code").items[0])
    assert scorer_of("runs")(asked, asked.answers[0]) == 1.0
    assert scorer_of("runs")(asked, "    return None") == scorer_of("runs")(asked, "    return (") == 0.0


def test_what_a_question_lacks_is_said() -> None:
    with pytest.raises(DataError, match=r'own.jsonl:1: the scorer code needs "test"'):
        scorer_of("code")(question("x"), "x")
    with pytest.raises(DataError, match=r"own.jsonl:1: the scorer f1 needs accepted answers.*add \"answers\""):
        scorer_of("f1")(question(), "x")
    with pytest.raises(DataError, match=r"own.jsonl:1: the id 'q/1' is not one of reasoning-gym's"):
        scorer_of("reasoning_gym")(question("x"), "x")
    assert scorer_of("regex:x")(question(), "x") == 1.0  # needs none
    with pytest.raises(DataError, match='"answers" is empty'):  # but a group is compared with them
        scorer_of("regex:(x)")(question(), "x")


def test_a_function_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def short(prompt, answer, answers):\n"
        "    assert prompt == [{'role': 'user', 'content': 'Why?'}] and answers == ['x']\n"
        "    return len(answer) / 10\n"
        "def wrong(prompt, answer, answers):\n    return 'good'\n"
        "def fails(prompt, answer, answers):\n    raise KeyError('lost')\n"
    )
    mine = scorer_of(f"python:{file}:short")
    assert (mine.name, mine(question("x"), "abc")) == (f"python:{file}:short", 0.3)
    with pytest.raises(
        DataError, match=r"own.jsonl:1: the scorer python:.*short gave 2.0; wanted a number from 0 to 1"
    ):
        mine(question("x"), "a" * 20)
    with pytest.raises(DataError, match="gave 'good'; wanted a number from 0 to 1"):
        scorer_of(f"python:{file}:wrong")(question("x"), "a")
    with pytest.raises(DataError, match=r"failed on the answer 'a': KeyError: 'lost' at .*mine.py:7"):
        scorer_of(f"python:{file}:fails")(question("x"), "a")
    with pytest.raises(ConfigError, match="has no function 'shot'; it has short, wrong, fails"):
        scorer_of(f"python:{file}:shot")
    assert scorer_of("python:os.path:exists").name == "python:os.path:exists"  # a module
    assert scorer_files(["f1", f"python:{file}:short"]) == (str(file),)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1, None, [1.0]])
def test_what_is_no_score_is_refused(value: Any) -> None:
    with pytest.raises(DataError, match=r"own.jsonl:1: the scorer odd gave .*; wanted a number from 0 to 1"):
        Scorer("odd", lambda q, a, f: value, "odd")(question("x"), "x")


# -- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "exactmatch",
            "--scorer: there is no scorer 'exactmatch'; did you mean 'exact_match'.*numeric\\[:TOLERANCE\\]",
        ),
        ("", "there is no scorer ''"),
        ("f1:2", "found the scorer 'f1:2'; it is written f1"),
        ("regex", "found the scorer 'regex'; it is written regex:PATTERN"),
        ("regex:", "it is written regex:PATTERN"),
        ("regex:(", r"--scorer regex:\(: the pattern '\(' is not a regular expression: missing \)"),
        ("numeric:", r"it is written numeric\[:TOLERANCE\]"),
        ("numeric:x", "the tolerance is 'x'; wanted a number of 0 or more, as in numeric:0.01"),
        ("numeric:-1", "the tolerance is '-1'"),
        ("numeric:nan", "the tolerance is 'nan'"),
        ("rubric:sentense", "the rubric has no part 'sentense'; did you mean 'sentence'"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_read(name: str, message: str) -> None:
    for refuse in (scorer_of, lambda spec: check_scorers([spec])):
        with pytest.raises(ConfigError, match=message):
            refuse(name)


def test_a_scorer_is_named_once() -> None:
    with pytest.raises(ConfigError, match="the scorer number is named twice"):
        check_scorers(["number", "f1", "numeric"])
    with pytest.raises(ConfigError, match="no scorer is named; wanted at least one, for example exact_match"):
        check_scorers([])


def test_every_scorer_has_a_line_that_says_what_it_does_and_is_in_the_help() -> None:
    for name, entry in SCORER_ENTRIES.items():
        assert entry.usage.partition(":")[0].partition("[")[0] == name
        assert entry.description.endswith(".")
        assert "\n" not in entry.description
        assert entry.usage in help_text()
    assert help_text().endswith(".")


def test_a_page_names_every_scorer() -> None:
    page = (Path(__file__).parents[1] / "docs" / "guides" / "evaluation.md").read_text(encoding="utf-8")
    assert [entry.usage for entry in SCORER_ENTRIES.values() if f"`{entry.usage}`" not in page] == []


def test_the_log_of_a_training_leaves_out_only_what_nobody_named() -> None:
    bare, full = question(), question("x")
    assert [s.name for s in scorers_for(("exact_match",), [bare, full])] == ["exact_match"]
    assert scorers_for(("exact_match",), [bare]) == []
    assert [s.name for s in scorers_for(("regex:x",), [bare])] == ["regex:x"]
    with pytest.raises(
        ConfigError, match='--scorer f1: it needs accepted answers, but no row of --prompts has "answers"'
    ):
        scorers_for(("f1",), [bare])
    with pytest.raises(DataError, match=r'own.jsonl:1: the scorer code needs "test"'):
        scorers_for(("code",), [bare, full])


def test_items_and_questions_are_the_same_thing() -> None:
    item = Item("1", "2 + 3 =", ("5",), ability="sums", test="pass")
    asked = question_of(item)
    assert (asked.id, asked.answers, asked.ability, asked.test) == ("1", ("5",), "sums", "pass")
    assert item_of(asked).input == item.input


def test_general_code_takes_the_rubric_only_when_it_is_named() -> None:
    """Whatever settings are read and whatever else is scored, the microworld is not even imported."""
    program = """
import sys
from tercet.evaluation.config import EvalConfig, WinRateConfig
from tercet.posttraining.rl.stage import GRPOConfig
import tercet.evaluation.evaluate, tercet.evaluation.judges
import tercet.posttraining.rl.group_methods, tercet.posttraining.rewards.best_of_n
from tercet.evaluation.scoring.scorers import scorer_of
EvalConfig(models=("a",), questions=("t",), scorer=("exact_match", "f1", "code", "regex:x"))
WinRateConfig(models=("a", "b"), questions=("t",))
print("tercet.microworld" in sys.modules)
scorer_of("rubric")
print("tercet.microworld" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


# -- a language model that is asked ----------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """An OpenAI-compatible address that finds answers with "green" right, and what it was sent."""
    sent: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            answer = re.findall(r"^Answer: (.*)", sent[-1]["messages"][0]["content"], re.M)[-1]
            reply = "perhaps" if answer == "odd" else "Yes." if "green" in answer else "Right: NO"
            body = json.dumps({"choices": [{"message": {"content": reply}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Be quiet."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1", sent
    server.shutdown()
    server.server_close()


FROG = question("green", prompt="What colour is the frog?")


def test_a_judge_at_an_address(endpoint: tuple[str, list[dict[str, Any]]]) -> None:
    address, sent = endpoint
    judge = scorer_of(f"judge:small@{address}")
    assert judge.scores([FROG, FROG], [("It is green", True), ("red", True)]) == [1.0, 0.0]
    assert judge(FROG, "green") == 1.0
    assert [body["model"] for body in sent] == ["small"] * 3
    assert (
        "Question: What colour is the frog?\nAccepted answer: green\nAnswer: red\n" in sent[1]["messages"][0]["content"]
    )
    with pytest.raises(DataError, match="it said 'perhaps'; wanted YES or NO"):
        judge(FROG, "odd")
    with pytest.raises(ConfigError, match=r"--scorer judge:http.*: .* write judge:NAME@http"):
        scorer_of(f"judge:{address}")
    with pytest.raises(ConfigError, match="runs/none"):
        scorer_of("judge:runs/none")


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("YES", 1.0), ("no.", 0.0), ("Right: yes", 1.0), ("well\nRight: NO", 0.0), ("yes and no", None), ("", None)],
)
def test_grades_are_not_guessed(reply: str, grade: float | None) -> None:
    assert read_verdict(reply, GRADES, "RIGHT") == grade


def test_a_run_is_asked_which_word_is_likelier(
    monkeypatch: pytest.MonkeyPatch, make_model: Callable[..., Any], tokenizer: Any
) -> None:
    from collections import namedtuple

    from tercet.inference.language_model import TransformerLM

    found = namedtuple("found", "logprob")
    calls: list[int] = []

    class Knows(TransformerLM):
        def loglikelihood(self, requests: Any) -> Any:
            calls.append(len(requests))
            return [found({"red": 0.0, "green": 1.0 if w == " YES" else 0.0, "blue": 1.0 if w == " NO" else 0.0}[
                re.findall(r"^Answer: (.*)", text, re.M)[-1]]) for text, w in requests]  # fmt: skip

    monkeypatch.setattr(TransformerLM, "of_run", lambda run, **kept: Knows(make_model(context_length=256), tokenizer))
    answers = [("green", True), ("blue", True), ("red", True)]
    assert scorer_of("judge:runs/x").scores([FROG] * 3, answers) == [1.0, 0.0, 0.5]
    assert calls == [6]  # all at once
    assert grader("runs/x")([FROG], answers[:1]) == [1.0]
    assert grading_prompt(FROG, "green").endswith("Right:")


def test_the_list_holds_what_it_should() -> None:
    wanted = {"exact_match", "contains", "regex", "numeric", "f1", "chrf", "bleu", "code", "python", "judge", "rubric"}
    assert wanted <= set(scorers.SCORER_ENTRIES)
