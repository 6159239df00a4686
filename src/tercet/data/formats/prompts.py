"""Tasks (questions with their gold answers) and bare prompts in.

task     {"prompt": "2 + 3 =", "answers": ["5", "five"], "ability": "arithmetic", "id": "sum-1"}   or "answer": "5"
prompt   {"prompt": "Hi"}      or {"messages": [...]}, whose last assistant turn is cut off
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tercet.data.formats.conversations import parse_messages, parse_prompt, to_messages
from tercet.data.readers import BadRows, json_type, name_field, parsed_rows, row_id, stem, text_field
from tercet.data.types import Conversation, Question
from tercet.errors import DataError


def read_questions(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Question]]:
    """Yield ("file:line", task) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_task` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_question)


def read_prompts(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Conversation, Question | None]]:
    """Yield (where, prompt, the task where the row has gold answers) of rows in either format above."""

    def parse(row: Mapping[str, Any], where: str) -> tuple[Conversation, Question | None]:
        if "answers" in row or "answer" in row:
            task = parse_question(row, where)
            return task.prompt, task
        return parse_prompt_row(row, where), None

    return ((where, prompt, task) for where, (prompt, task) in parsed_rows(paths, bad, parse))


def parse_question(row: Mapping[str, Any], where: str) -> Question:
    """Make a task of one row; "ability" is the file's stem and "id" the row's place where missing. Raises DataError."""
    return Question(
        parse_prompt(row.get("prompt"), where),
        _answers(row, where),
        text_field(row, "ability", where, stem(Path(where.rpartition(":")[0]))),
        name_field(row, "id", where, row_id(where)),
        text_field(row, "held_out", where, ""),
        where,
        text_field(row, "test", where, ""),
    )


def parse_prompt_row(row: Mapping[str, Any], where: str) -> Conversation:
    """Make a prompt of one row with "prompt" or "messages"; raises DataError, which begins with `where`."""
    if "messages" not in row:
        return parse_prompt(row.get("prompt"), where)
    turns = parse_messages(row["messages"], where, need_answer=False)
    return turns[:-1] if turns[-1].role == "assistant" else turns


def to_row(task: Question) -> dict[str, Any]:
    """The row that `parse_task` reads back."""
    row: dict[str, Any] = {
        "prompt": to_messages(task.prompt),
        "answers": list(task.answers),
        "ability": task.ability,
        "id": task.id,
    }
    return row | {name: value for name in ("held_out", "test") if (value := getattr(task, name))}


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if ("answers" in row) == ("answer" in row):
        raise DataError(
            f'{where}: wanted either "answers" (a list of strings) or "answer" (a string), found both or neither'
        )
    found = row["answers"] if "answers" in row else [text_field(row, "answer", where)]
    if not isinstance(found, list) or not found:
        raise DataError(
            f'{where}: "answers" must be a list with at least one string, found {json_type(found) if found else "none"}'
        )
    for text in found:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: found the answer {text!r}; an answer must be a string that is not empty")
    return tuple(found)
