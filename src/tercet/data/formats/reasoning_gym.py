"""reasoning-gym's tasks as ordinary rows, and its verifiers as rewards (Stojanovski et al. 2025, the package `reasoning-gym`).

    {"prompt": "…", "answers": ["…"], "ability": "gcd", "id": "reasoning-gym/gcd:max_numbers=2/SEED/SIZE/INDEX"}

A row's id says how to make the task again, which is what the verifier does. Two traps, both leaks from training to test:

- reasoning-gym draws task i from the seed s + i, so that the seeds 1 and 2 have all tasks but one in common. Here the
  seeds are `SPACING` apart.
- Python seeds with the absolute value: random.seed(-1) is random.seed(1). Here negative seeds are refused.

Small worlds (the gcd of small numbers) repeat themselves even so: a question that was there before is left out.
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

SPACING = 1_000_000  # also the most tasks of one kind
LAST_SEED = 4000  # NumPy, with which some tasks are drawn, takes seeds below 2^32
_NAME = r"[A-Za-z0-9_]+(?::[^/\s]+)?"
_ID = re.compile(rf"reasoning-gym/({_NAME})/(\d+)/(\d+)/(\d+)")


@dataclass(frozen=True)
class GymId:
    """How to make a task: `kind` is its name, or name:key=value,key=value; index < size."""

    kind: str
    seed: int
    size: int
    index: int

    def __str__(self) -> str:
        return f"reasoning-gym/{self.kind}/{self.seed}/{self.size}/{self.index}"


def parse_id(text: str, where: str) -> GymId:
    """The parts of a row's id. Raises DataError, which begins with `where`."""
    match = _ID.fullmatch(text)
    if match is None:
        raise DataError(
            f"{where}: the id {text!r} is not one of reasoning-gym's; wanted reasoning-gym/NAME/SEED/SIZE/INDEX, as "
            "`tercet data-gym` writes it"
        )
    found = GymId(match[1], int(match[2]), int(match[3]), int(match[4]))
    if found.index >= found.size or found.seed > LAST_SEED:
        raise DataError(f"{where}: the id {text!r} has an index beyond its size, or a seed above {LAST_SEED}")
    return found


def _package() -> Any:
    try:
        return importlib.import_module("reasoning_gym")
    except ImportError as error:
        raise ConfigError("reasoning-gym is not installed; install it with: pip install 'tercet[rlvr]'") from error


@lru_cache(maxsize=256)
def _dataset(kind: str, seed: int, size: int) -> Any:
    """reasoning-gym's dataset. Raises ConfigError for an unknown name or impossible settings."""
    package = _package()
    name, _, settings = kind.partition(":")
    values = {}
    for setting in settings.split(",") if settings else []:
        key, equals, value = setting.partition("=")
        if not key or not equals or key in ("seed", "size"):
            raise ConfigError(f"reasoning-gym task {kind!r}: found {setting!r}; wanted NAME:key=value,key=value")
        try:
            values[key] = json.loads(value)
        except ValueError:
            values[key] = value
    if name not in package.factory.DATASETS:
        known = sorted(package.factory.DATASETS)
        close = "".join(f"; did you mean {n!r}?" for n in difflib.get_close_matches(name, known, n=1))
        raise ConfigError(f"reasoning-gym has no task {name!r}{close}; it has {', '.join(known)}")
    try:
        return package.create_dataset(name, seed=seed * SPACING, size=size, **values)
    except Exception as error:  # it checks settings with assert and with exceptions of many kinds
        raise ConfigError(f"reasoning-gym task {kind!r}: {type(error).__name__}: {error}") from error


@lru_cache(maxsize=1024)
def _entry(task: GymId) -> dict[str, Any]:
    """Question, answer and what else the verifier needs."""
    entry: dict[str, Any] = _dataset(task.kind, task.seed, task.size)[task.index]
    return entry


def verify(task: Question, answer: str, where: str) -> float:
    """reasoning-gym's score of `answer`, 0 to 1 (many tasks give a little for the right answer among other words).

    Some of its verifiers raise an exception of any kind where they cannot read an answer: that is 0. (That they can read
    the right one was seen when the row was written.)
    Raises DataError where the row is not what its id makes, ConfigError where the package is missing.
    """
    found = parse_id(task.id, where)
    entry = _entry(found)
    if (task.prompt[-1].content, task.answers[0]) != (entry["question"], entry["answer"]):
        raise DataError(
            f"{where}: {task.id} makes another question or answer than the row has; the row was changed, or written with "
            "another version of reasoning-gym: write it again"
        )
    try:
        return float(_dataset(found.kind, found.seed, found.size).score_answer(answer.strip(), entry))
    except Exception:
        return 0.0


def gym_tasks(kinds: Sequence[str], size: int, heldout: int, seed: int) -> tuple[list[Question], list[Question], int]:
    """(training tasks, held-out tasks, how many repeated ones were left out): `size` and `heldout` of each kind.

    Raises ConfigError for a wrong kind, seed or size, DataError where a kind has no gold answers or nothing is left.
    """
    if not 0 <= seed <= LAST_SEED:
        hint = "; Python would draw the same tasks as with the positive one" if seed < 0 else ""
        raise ConfigError(f"seed {seed}: wanted 0 to {LAST_SEED}{hint}")
    total = size + heldout
    if size < 1 or heldout < 0 or total > SPACING:
        raise ConfigError(f"size {size}, heldout {heldout}: wanted at least 1 and 0, and at most {SPACING:,} together")
    if not kinds or len(set(kinds)) < len(kinds):
        raise ConfigError(f"tasks {', '.join(kinds) or '(none)'}: wanted at least one, each once")
    sides: tuple[list[Question], list[Question]] = ([], [])
    seen: set[str] = set()
    for kind in kinds:
        if not re.fullmatch(_NAME, kind):
            raise ConfigError(
                f"reasoning-gym task {kind!r}: wanted NAME or NAME:key=value,key=value, without spaces or /"
            )
        before = len(sides[1])
        for index in range(total):
            made = GymId(kind, seed, total, index)
            task = _task(made, _entry.__wrapped__(made))
            if task.prompt[0].content not in seen:
                seen.add(task.prompt[0].content)
                sides[index >= size].append(task)
        if heldout and len(sides[1]) == before:
            raise DataError(
                f"{kind}: all held-out tasks are training tasks too; ask for fewer, or harder ones (NAME:key=value)"
            )
    return *sides, total * len(kinds) - len(seen)


def _task(made: GymId, entry: dict[str, Any]) -> Question:
    answer = entry["answer"]
    if not isinstance(answer, str) or not answer.strip():
        raise DataError(
            f"{made}: reasoning-gym gives no gold answer to this kind of task, and rows need one; leave this kind out"
        )
    if (score := _dataset(made.kind, made.seed, made.size).score_answer(answer, entry)) != 1:
        raise DataError(
            f"{made}: reasoning-gym's verifier gives its own answer {answer!r} {score}; leave this kind out"
        )
    return Question((Message("user", entry["question"]),), (answer,), made.kind.partition(":")[0], str(made))


def write_gym_tasks(kinds: Sequence[str], size: int, heldout: int, seed: int, out: Path) -> dict[str, int]:
    """Write OUT/train.jsonl and, with `heldout`, OUT/heldout.jsonl; returns the counts. Raises as `gym_tasks` does."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not empty; choose another --out")
    train, test, left_out = gym_tasks(kinds, size, heldout, seed)
    for name, side in (("train", train), ("heldout", test)):
        if side:
            write_jsonl(out / f"{name}.jsonl", ({**_row(task)} for task in side))
    return {"train": len(train), "heldout": len(test), "left_out": left_out}


def _row(task: Question) -> dict[str, Any]:
    return {"prompt": task.prompt[0].content, "answers": list(task.answers), "ability": task.ability, "id": task.id}
