"""Write questions of the package `reasoning-gym` as ordinary rows, and use its verifiers as rewards.

    {"prompt": "…", "answers": ["…"], "ability": "gcd", "id": "reasoning-gym/gcd:max_numbers=2/SEED/SIZE/INDEX"}

A row's id says how to generate the question again; the verifier does so. Two traps would leak training questions into
the held-out ones:

- reasoning-gym draws question i from the seed s + i, so that the seeds 1 and 2 share all questions but one. Here the
  seeds are `SPACING` apart.
- Python seeds with the absolute value: random.seed(-1) equals random.seed(1). Here negative seeds are rejected.

Tasks with few different questions (the gcd of small numbers) still repeat themselves: repeated questions are left out.

Source: Stojanovski et al. 2025, "Reasoning Gym".
"""

from __future__ import annotations

import difflib
import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from tercet.data.readers import write_jsonl
from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError

SPACING = 1_000_000  # also the largest number of questions of one task
LAST_SEED = 4000  # some tasks are drawn with NumPy, whose seeds must be below 2^32
_NAME = r"[A-Za-z0-9_]+(?::[^/\s]+)?"
_ID = re.compile(rf"reasoning-gym/({_NAME})/(\d+)/(\d+)/(\d+)")


@dataclass(frozen=True)
class GymId:
    """How to generate a question: `task` is NAME or NAME:key=value,key=value, and index < size."""

    task: str
    seed: int
    size: int
    index: int

    def __str__(self) -> str:
        return f"reasoning-gym/{self.task}/{self.seed}/{self.size}/{self.index}"


def parse_id(text: str, where: str) -> GymId:
    """Return the parts of a row's id; a DataError begins with `where`."""
    match = _ID.fullmatch(text)
    if match is None:
        raise DataError(
            f"{where}: the id {text!r} is not one of reasoning-gym's; wanted reasoning-gym/NAME/SEED/SIZE/INDEX, as "
            "`tercet data-gym` writes it"
        )
    gym_id = GymId(match[1], int(match[2]), int(match[3]), int(match[4]))
    if gym_id.index >= gym_id.size or gym_id.seed > LAST_SEED:
        raise DataError(
            f"{where}: the id {text!r} has an index beyond its size, or a seed above {LAST_SEED}; write the row again "
            "with `tercet data-gym`"
        )
    return gym_id


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ConfigError("reasoning-gym is not installed; install it with: pip install 'tercet[rlvr]'") from error


@lru_cache(maxsize=256)
def _dataset(task: str, seed: int, size: int) -> Any:
    """Return reasoning-gym's dataset; raises ConfigError for an unknown name or impossible settings."""
    package = _package()
    name, _, settings = task.partition(":")
    values = {}
    for setting in settings.split(",") if settings else []:
        key, equals, value = setting.partition("=")
        if not key or not equals or key in ("seed", "size"):
            raise ConfigError(f"reasoning-gym task {task!r}: found {setting!r}; wanted NAME:key=value,key=value")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    if name not in package.factory.DATASETS:
        known = sorted(package.factory.DATASETS)
        close = "".join(f"; did you mean {n!r}?" for n in difflib.get_close_matches(name, known, n=1))
        raise ConfigError(f"reasoning-gym has no task {name!r}{close}; its tasks are {', '.join(known)}")
    try:
        return package.create_dataset(name, seed=seed * SPACING, size=size, **values)
    except Exception as error:  # reasoning-gym checks settings with assert and with many types of exceptions
        raise ConfigError(f"reasoning-gym task {task!r}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=1024)
def _entry(gym_id: GymId) -> dict[str, Any]:
    """Return the question, its answer and whatever else the verifier needs."""
    entry: dict[str, Any] = _dataset(gym_id.task, gym_id.seed, gym_id.size)[gym_id.index]
    return entry


def verify(question: Question, answer: str, where: str) -> float:
    """Return reasoning-gym's score of `answer`, 0 to 1; many tasks give a small score to an answer among other words.

    Some verifiers raise an exception for an answer that they cannot parse; it scores 0. (That the gold answer scores 1
    is checked when the row is written.) Raises DataError if the id does not generate this row, ConfigError if the
    package is not installed.
    """
    gym_id = parse_id(question.id, where)
    entry = _entry(gym_id)
    if (question.prompt[-1].content, question.answers[0]) != (entry["question"], entry["answer"]):
        raise DataError(
            f"{where}: {question.id} generates another question or answer than the row has; the row was changed, or "
            "written with another version of reasoning-gym: write it again with `tercet data-gym`"
        )
    try:
        return float(_dataset(gym_id.task, gym_id.seed, gym_id.size).score_answer(answer.strip(), entry))
    except Exception:
        return 0.0


def gym_questions(
    tasks: Sequence[str], size: int, heldout: int, seed: int
) -> tuple[list[Question], list[Question], int]:
    """Return (training questions, held-out questions, number of repeated questions that were left out).

    `size` and `heldout` count the questions of each task. Raises ConfigError for a wrong task, seed or size, and
    DataError if a task has no gold answers or all its held-out questions are repeated.
    """
    if not 0 <= seed <= LAST_SEED:
        hint = "; Python draws the same questions for a seed and its negative" if seed < 0 else ""
        raise ConfigError(f"--seed is {seed}; wanted 0 to {LAST_SEED}{hint}")
    total = size + heldout
    if size < 1 or heldout < 0 or total > SPACING:
        raise ConfigError(
            f"--size is {size} and --heldout is {heldout}; wanted --size at least 1, --heldout at least 0, and at most "
            f"{SPACING:,} together"
        )
    if not tasks or len(set(tasks)) < len(tasks):
        raise ConfigError(f"--tasks is {', '.join(tasks) or 'empty'}; wanted at least one task, and each only once")
    train: list[Question] = []
    test: list[Question] = []
    seen: set[str] = set()
    for task in tasks:
        if not re.fullmatch(_NAME, task):
            raise ConfigError(
                f"reasoning-gym task {task!r}: wanted NAME or NAME:key=value,key=value, without spaces or /"
            )
        before = len(test)
        for index in range(total):
            gym_id = GymId(task, seed, total, index)
            question = _question(gym_id, _entry.__wrapped__(gym_id))
            if question.prompt[0].content not in seen:
                seen.add(question.prompt[0].content)
                (train if index < size else test).append(question)
        if heldout and len(test) == before:
            raise DataError(
                f"{task}: every held-out question is also a training question; reduce --size, or make the task harder "
                "(NAME:key=value)"
            )
    return train, test, total * len(tasks) - len(seen)


def _question(gym_id: GymId, entry: dict[str, Any]) -> Question:
    answer = entry["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(f"{gym_id}: reasoning-gym gives no gold answer, and rows need one; leave this task out")
    if (score := _dataset(gym_id.task, gym_id.seed, gym_id.size).score_answer(answer, entry)) != 1:
        raise DataError(
            f"{gym_id}: reasoning-gym's verifier scores its own answer {answer!r} with {score}, wanted 1; leave this "
            "task out"
        )
    return Question((Message("user", entry["question"]),), (answer,), gym_id.task.partition(":")[0], str(gym_id))


def write_gym_questions(tasks: Sequence[str], size: int, heldout: int, seed: int, out: Path) -> dict[str, int]:
    """Write OUT/train.jsonl and, with `heldout`, OUT/heldout.jsonl; return the counts. Raises as `gym_questions`."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; choose another --out")
    train, test, left_out = gym_questions(tasks, size, heldout, seed)
    for name, questions in (("train", train), ("heldout", test)):
        if questions:
            write_jsonl(out / f"{name}.jsonl", map(_row, questions))
    return {"train": len(train), "heldout": len(test), "left_out": left_out}


def _row(question: Question) -> dict[str, Any]:
    fields = {"answers": list(question.answers), "ability": question.ability, "id": question.id}
    return {"prompt": question.prompt[0].content, **fields}
