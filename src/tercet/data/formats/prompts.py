"""Read questions with their gold answers, and bare prompts.

question   {"prompt": "2 + 3 =", "answers": ["5", "five"], "ability": "arithmetic", "id": "sum-1"}   or "answer": "5"
prompt     {"prompt": "Hi"}      or {"messages": [...]}, whose last assistant turn is cut off
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
    """Yield ("file:line", question) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_question` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_question)


def read_prompts(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Conversation, Question | None]]:
    """Yield ("file:line", prompt, question or None) of rows in either format above; None without gold answers."""

    def parse(row: Mapping[str, Any], where: str) -> tuple[Conversation, Question | None]:
        if "answers" in row or "answer" in row:
            question = parse_question(row, where)
            return question.prompt, question
        return parse_prompt_row(row, where), None

    return ((where, prompt, question) for where, (prompt, question) in parsed_rows(paths, bad, parse))


def parse_question(row: Mapping[str, Any], where: str) -> Question:
    """Return the question of one row; raises DataError.

    "ability" defaults to the file's stem, and "id" to the end of the path with the line number (`row_id`).
    """
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
    """Return the prompt of one row with "prompt" or "messages"; a DataError begins with `where`."""
    if "messages" not in row:
        return parse_prompt(row.get("prompt"), where)
    turns = parse_messages(row["messages"], where, need_answer=False)
    return turns[:-1] if turns[-1].role == "assistant" else turns


def to_row(question: Question) -> dict[str, Any]:
    """Return the question as a row; `parse_question` is the inverse."""
    row: dict[str, Any] = {"prompt": to_messages(question.prompt), "answers": list(question.answers)}
    row |= {"ability": question.ability, "id": question.id}
    return row | {name: value for name in ("held_out", "test") if (value := getattr(question, name))}


def _answers(row: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if ("answers" in row) == ("answer" in row):
        raise DataError(
            f'{where}: wanted either "answers" (a list of strings) or "answer" (a string), found both or neither'
        )
    answers = row["answers"] if "answers" in row else [text_field(row, "answer", where)]
    if not isinstance(answers, list) or not answers:
        hint = json_type(answers) if answers else "none"
        raise DataError(f'{where}: "answers" must be a list with at least one string, found {hint}')
    for text in answers:
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: found the answer {text!r}; an answer must be a string that is not empty")
    return tuple(answers)
