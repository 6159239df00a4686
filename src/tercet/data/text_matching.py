"""Compare an answer with the gold answers; case, white space and outer punctuation do not matter."""

from __future__ import annotations

import unicodedata

from tercet.data.types import Question
from tercet.errors import DataError

# Signs such as - + % $ # belong to an answer ("-3"), so only these characters are removed around it.
_OPENING = " \t\r\n\"'“”‘’«»([{¿¡"
_CLOSING = " \t\r\n\"'“”‘’«»)]}.,;:!?…"


def normalise(text: str) -> str:
    """Return `text` with its case, Unicode form and white space folded and its outer punctuation removed.

    A text that consists only of such punctuation keeps it, so that "?" and "" stay different answers.
    """
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.lstrip(_OPENING).rstrip(_CLOSING) or folded


def matches_gold(question: Question, answer: str) -> bool:
    """Return whether `answer` equals one of `question.answers`, both normalised; an empty answer never does.

    Raises:
        DataError: the question has no gold answers.
    """
    if not question.answers:
        raise DataError(f'question {question.id!r}: "answers" is empty; add at least one gold answer')
    given = normalise(answer)
    return bool(given) and any(given == normalise(gold) for gold in question.answers)
