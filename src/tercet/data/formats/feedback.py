"""Feedback in: answers that somebody found good or bad, one by one; each row's format is told by its keys.

    labelled     {"prompt": "Hi", "completion": "Hello!", "label": true}      ("response" instead of "completion" is fine)
    comparison   any format of `comparisons`

A prompt is a string or a list of messages; so may be the completion: a list with one message of the assistant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tercet.data.formats.conversations import parse_messages, parse_prompt, to_messages
from tercet.data.formats.preferences import parse_comparison
from tercet.data.readers import BadRows, json_type, parsed_rows, text_field
from tercet.data.types import Comparison, Conversation
from tercet.errors import DataError


@dataclass(frozen=True, slots=True)
class Feedback:
    """One answer to one prompt, and whether it is a good one."""

    prompt: Conversation
    response: str
    desirable: bool


def read_feedback(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Feedback | Comparison]]:
    """Yield ("file:line", feedback or comparison) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_feedback` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_feedback)


def parse_feedback(row: Mapping[str, Any], where: str) -> Feedback | Comparison:
    """Make feedback of a row with "label", a comparison of any other; raises DataError, which begins with `where`."""
    if "label" not in row or "chosen" in row or "responses" in row:
        return parse_comparison(row, where)
    label = row["label"]
    if not isinstance(label, bool):
        raise DataError(f'{where}: "label" must be true (a good answer) or false, found {json_type(label)}')
    keys = [key for key in ("completion", "response") if key in row]
    if len(keys) != 1:
        raise DataError(
            f'{where}: wanted one answer, under "completion" or "response", found {" and ".join(keys) or "none"}'
        )
    prompt = parse_prompt(row.get("prompt"), where)
    return Feedback(prompt, _answer(row, keys[0], prompt, where), label)


def labels(item: Feedback | Comparison) -> tuple[bool | None, ...]:
    """Of each answer: true where it is desirable, false where undesirable, None where neither.

    Of a comparison the answers of best rank are desirable and those of worst rank undesirable; where all are tied, none is.
    """
    if isinstance(item, Feedback):
        return (item.desirable,)
    best, worst = min(item.ranks), max(item.ranks)
    return tuple(None if best == worst or best < rank < worst else rank == best for rank in item.ranks)


def _answer(row: Mapping[str, Any], key: str, prompt: Conversation, where: str) -> str:
    if not isinstance(row[key], list):
        return text_field(row, key, where)
    turns = parse_messages([*to_messages(prompt), *row[key]], f'{where}: "{key}"')
    if len(turns) != len(prompt) + 1:
        raise DataError(f'{where}: "{key}" must be one message of the assistant, found {len(row[key])} messages')
    return turns[-1].content
