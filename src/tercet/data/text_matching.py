"""Comparing an answer with the accepted ones: case, spaces and punctuation around a text do not matter."""

from __future__ import annotations

import unicodedata

from tercet.data.types import Question
from tercet.errors import DataError

# Signs such as - + % $ # belong to an answer ("-3"), so only these are folded away around it.
_OPENING = " \t\r\n\"'“”‘’«»([{¿¡"
_CLOSING = " \t\r\n\"'“”‘’«»)]}.,;:!?…"


def normalise(text: str) -> str:
    """Return `text` with its case, Unicode form, runs of spaces and outer punctuation folded.

    A text of nothing but such punctuation keeps it, so that "?" and "" stay different answers.
    """
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.lstrip(_OPENING).rstrip(_CLOSING) or folded


def matches_gold(task: Question, answer: str) -> bool:
    """Return whether `answer` equals one of `task.answers`, both normalised; an empty answer never does.

    Raises:
        DataError: the task has no answers.
    """
    if not task.answers:
        raise DataError(f"task {task.id!r}: `answers` is empty, wanted at least one gold answer; add it to the task")
    given = normalise(answer)
    return bool(given) and any(given == normalise(gold) for gold in task.answers)
