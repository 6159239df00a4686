"""The stated rubric that plays the people who rank answers: right, a sentence, direct, finished."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from tercet.data.types import Task
from tercet.errors import DataError

WEIGHTS = {"right": 0.5, "sentence": 0.2, "direct": 0.2, "finished": 0.1}
MOST_WORDS = 12
FEWEST_WORDS = 3
# What makes an answer hedged or padded, as the start, the end or the middle of it.
HEDGES = (
    "i think",
    "i guess",
    "i believe",
    "i hope",
    "i am not sure",
    "maybe",
    "perhaps",
    "probably",
    "well,",
    "hmm",
    "let me",
    "what i think",
)
_HEDGED = re.compile("|".join(rf"\b{re.escape(hedge)}(?!\w)" for hedge in HEDGES))

RUBRIC_TEXT = f"""\
Each answer gets a score from 0 to 1, the weighted sum of four parts that are each 0 or 1.
right ({WEIGHTS["right"]}): the answer equals one of the accepted answers, hedged ones included; case, spaces and
  punctuation around it do not matter.
sentence ({WEIGHTS["sentence"]}): it starts with a capital letter or a digit, ends with ".", "!" or "?", has at least
  {FEWEST_WORDS} words, and the model ended it by itself.
direct ({WEIGHTS["direct"]}): it has at most {MOST_WORDS} words and none of: {"; ".join(HEDGES)}.
finished ({WEIGHTS["finished"]}): the model ended the answer by itself, before the limit of length.
An empty answer gets 0 in all parts.
"""

# Signs such as - + % $ # belong to an answer ("-3"), so only these are folded away around it.
_OPENING = " \t\r\n\"'“”‘’«»([{¿¡"
_CLOSING = " \t\r\n\"'“”‘’«»)]}.,;:!?…"


@dataclass(frozen=True)
class RubricScore:
    """The four parts of the rubric, each 0.0 or 1.0, and `total`, their sum by `WEIGHTS`."""

    right: float
    sentence: float
    direct: float
    finished: float
    total: float


def normalise(text: str) -> str:
    """Return `text` with its case, Unicode form, runs of spaces and outer punctuation folded.

    A text of nothing but such punctuation keeps it, so that "?" and "" stay different answers.
    """
    folded = " ".join(unicodedata.normalize("NFC", text).casefold().split())
    return folded.lstrip(_OPENING).rstrip(_CLOSING) or folded


def exact_match(task: Task, answer: str) -> bool:
    """Return whether `answer` equals one of `task.answers`, both normalised; an empty answer never does.

    Raises:
        DataError: the task has no answers.
    """
    if not task.answers:
        raise DataError(f"task {task.id!r}: `answers` is empty, wanted at least one gold answer; add it to the task")
    given = normalise(answer)
    return bool(given) and any(given == normalise(gold) for gold in task.answers)


def _is_sentence(text: str) -> bool:
    starts = text[:1].isupper() or text[:1].isdigit()
    return starts and text.endswith((".", "!", "?")) and len(text.split()) >= FEWEST_WORDS


def rubric_score(task: Task, answer: str, finished: bool) -> RubricScore:
    """Score `answer` to `task` by `RUBRIC_TEXT`; `finished` says that the model ended its answer itself.

    Raises:
        DataError: the task has no answers.
    """
    text = answer.strip()
    right = exact_match(task, text)
    if not text:
        return RubricScore(0.0, 0.0, 0.0, 0.0, 0.0)
    parts = {
        "right": float(right),
        "sentence": float(finished and _is_sentence(text)),
        "direct": float(len(text.split()) <= MOST_WORDS and not _HEDGED.search(" ".join(text.casefold().split()))),
        "finished": float(finished),
    }
    # Rounded because the sum of the weights as floats is not exactly 1.
    return RubricScore(**parts, total=round(sum(WEIGHTS[name] * part for name, part in parts.items()), 6))
