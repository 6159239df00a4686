"""Read feedback: single answers labelled good or bad; the keys of a row say which format it has.

    labelled     {"prompt": "Hi", "completion": "Hello!", "label": true}    ("response" instead of "completion" is fine)
    comparison   any format of `preferences`

A prompt is a string or a list of messages. A completion is a string or a list with one assistant message.
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
    """One answer to one prompt, and whether it is desirable."""

    prompt: Conversation
    response: str
    desirable: bool


def read_feedback(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Feedback | Comparison]]:
    """Yield ("file:line", feedback or comparison) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_feedback` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_feedback)


def parse_feedback(row: Mapping[str, Any], where: str) -> Feedback | Comparison:
    """Return the feedback of a row with "label", else the comparison of the row; a DataError begins with `where`."""
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
    """Return one label per answer: true for desirable, false for undesirable, None for neither.

    In a comparison the best-ranked answers are desirable and the worst-ranked ones undesirable; if all are tied, the
    labels are None.
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
        raise DataError(f'{where}: "{key}" must be one assistant message, found {len(row[key])} messages')
    return turns[-1].content
