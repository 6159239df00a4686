"""Questions of reasoning-gym as rows: ids, splits that share no question, and verifiers as rewards."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tercet.cli import gym
from tercet.data.formats.prompts import read_questions
from tercet.data.formats.reasoning_gym import GymId, gym_questions, parse_id, verify, write_gym_questions
from tercet.data.readers import BadRows
from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("reasoning_gym") is None, reason="reasoning-gym is not installed (the extra rlvr)"
)


# -- without the package -----------------------------------------------------------------------------------------------


def test_an_id_says_how_to_make_the_task_again() -> None:
    text = "reasoning-gym/chain_sum:max_terms=2,max_digits=1/3/500/17"
    assert parse_id(text, "x") == GymId("chain_sum:max_terms=2,max_digits=1", 3, 500, 17)
    assert str(parse_id(text, "x")) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gcd/1/500/3", "is not one of reasoning-gym's; wanted reasoning-gym/NAME/SEED/SIZE/INDEX"),
        ("reasoning-gym/gcd/-1/500/3", "is not one of reasoning-gym's"),
        ("reasoning-gym/gcd/1/500/500", "index beyond its size"),
        ("reasoning-gym/gcd/4001/500/3", "seed above 4000"),
        ("reasoning-gym/g cd/1/500/3", "is not one"),
        ("reasoning-gym/gcd/1/500/3/4", "is not one"),
    ],
)
def test_a_wrong_id_names_its_row(text: str, message: str) -> None:
    with pytest.raises(DataError, match=rf"tasks\.jsonl:4: the id .*{message}"):
        parse_id(text, "tasks.jsonl:4")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "--seed is -1; wanted 0 to 4000; Python draws the same questions for a seed and its negative"),
        ({"seed": 4001}, "--seed is 4001; wanted 0 to 4000"),
        ({"size": 0}, "--size is 0 and --heldout is 2; wanted --size at least 1, --heldout at least 0"),
        ({"heldout": -1}, "--heldout is -1"),
        ({"size": 999_999}, "at most 1,000,000 together"),
        ({"tasks": []}, "--tasks is empty; wanted at least one"),
        ({"tasks": ["gcd", "gcd"]}, "--tasks is gcd, gcd; .* each only once"),
        ({"tasks": ["g/cd"]}, "task 'g/cd': wanted NAME or NAME:key=value"),
    ],
)
def test_wrong_requests_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gym_questions(**{"tasks": ["gcd"], "size": 5, "heldout": 2, "seed": 0} | change)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(ConfigError, match=r"not installed; install it with: pip install 'tercet\[rlvr\]'"):
        gym_questions(["no_such_task"], 5, 2, 0)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        write_gym_questions(["gcd"], 5, 2, 0, tmp_path)


# -- with the package --------------------------------------------------------------------------------------------------


@needs_package
def test_the_command_writes_rows_whose_gold_answers_score_1(tmp_path: Path) -> None:
    app = typer.Typer()
    gym.register(app)
    words = [
        "--tasks",
        "chain_sum:max_terms=2,max_digits=1",
        "--tasks",
        "prime_factorization",
        "--size",
        "30",
        "--heldout",
        "20",
    ]
    done = CliRunner().invoke(app, [*words, "--seed", "1", "--out", str(tmp_path / "gym")])
    assert done.exit_code == 0, done.output
    sides = [
        list(read_questions([str(tmp_path / "gym" / f"{name}.jsonl")], BadRows())) for name in ("train", "heldout")
    ]
    rows = [row for side in sides for row in side]
    assert (
        f"{len(sides[0])} questions to train on, {len(sides[1])} held out; {100 - len(rows)} duplicates" in done.output
    )
    assert {task.ability for _, task in rows} == {"chain_sum", "prime_factorization"}
    assert len({task.prompt[0].content for _, task in rows}) == len(rows), (
        "a question is in the training and the held-out part"
    )
    assert len(rows) < 100, "two terms of one digit repeat themselves among 50"
    for where, task in rows:
        assert verify(task, f" {task.answers[0]}\n", where) == 1.0
        assert verify(task, "I do not know.", where) < 0.1  # prime_factorization's verifier raises inside
    sums = [task for _, task in rows if task.ability == "chain_sum"]
    for task in sums:  # "State the final answer to the following arithmetic problem: 4 + 3 ="
        left, sign, right = task.prompt[0].content.removesuffix("=").split()[-3:]
        assert int(task.answers[0]) == {"+": int(left) + int(right), "-": int(left) - int(right)}[sign]


@needs_package
def test_other_seeds_give_other_tasks() -> None:
    """reasoning-gym itself draws question i from seed + i: its seeds 1 and 2 share 19 of 20 questions."""
    import reasoning_gym

    first, second = (
        [entry["question"] for entry in reasoning_gym.create_dataset("prime_factorization", seed=seed, size=20)]
        for seed in (1, 2)
    )
    assert first[1:] == second[:-1], "reasoning-gym's seeds no longer overlap: SPACING is no longer needed"
    made = [gym_questions(["leg_counting"], 20, 5, seed) for seed in (1, 2)]
    assert [(len(train), len(heldout), left_out) for train, heldout, left_out in made] == [(20, 5, 0)] * 2
    ours = [{task.prompt[0].content for task in (*train, *heldout)} for train, heldout, _ in made]
    assert not ours[0] & ours[1]


@needs_package
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gdc", "reasoning-gym has no task 'gdc'; did you mean 'gcd'"),
        ("gcd:numbers=1", "task 'gcd:numbers=1': TypeError: .*numbers"),
        ("gcd:min_numbers=9", "task 'gcd:min_numbers=9': AssertionError"),
        ("gcd:min_numbers", "found 'min_numbers'; wanted NAME:key=value"),
        ("gcd:seed=3", "found 'seed=3'"),
        ("composite", "task 'composite'"),
    ],
)
def test_unknown_tasks_and_settings_are_refused(kind: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gym_questions([kind], 5, 2, 0)


@needs_package
def test_tasks_without_a_gold_answer_or_without_a_held_out_part_are_refused() -> None:
    with pytest.raises(DataError, match="reasoning-gym/graph_color/0/7/0: reasoning-gym gives no gold answer"):
        gym_questions(["graph_color"], 5, 2, 0)
    with pytest.raises(DataError, match="every held-out question is also a training question"):
        gym_questions(["gcd:max_value=2"], 50, 1, 0)


@needs_package
def test_a_row_that_was_changed_is_not_judged() -> None:
    (task,), _, _ = gym_questions(["gcd"], 1, 0, 5)
    for changed in (
        Question(task.prompt, ("12345",), task.ability, task.id),
        Question((Message("user", "What?"),), task.answers, task.ability, task.id),
    ):
        with pytest.raises(
            DataError, match=r"tasks\.jsonl:1: reasoning-gym/gcd/5/1/0 makes another question or answer"
        ):
            verify(changed, task.answers[0], "tasks.jsonl:1")
