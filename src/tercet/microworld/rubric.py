"""The rubric of the simulated annotator: is an answer right, a sentence, direct and finished?"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tercet.data.text_matching import matches_gold
from tercet.data.types import Question

WEIGHTS = {"right": 0.5, "sentence": 0.2, "direct": 0.2, "finished": 0.1}
MOST_WORDS = 12
FEWEST_WORDS = 3
# Phrases that make an answer hedged or padded, wherever they occur in it.
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


@dataclass(frozen=True)
class RubricScore:
    """The four parts of the rubric, each 0.0 or 1.0, and `total`, their sum weighted by `WEIGHTS`."""

    right: float
    sentence: float
    direct: float
    finished: float
    total: float


def _is_sentence(text: str) -> bool:
    starts = text[:1].isupper() or text[:1].isdigit()
    return starts and text.endswith((".", "!", "?")) and len(text.split()) >= FEWEST_WORDS


def rubric_score(question: Question, answer: str, finished: bool) -> RubricScore:
    """Score `answer` to `question` by `RUBRIC_TEXT`; `finished` says that the model ended its answer itself.

    Raises:
        DataError: the question has no gold answers.
    """
    text = answer.strip()
    right = matches_gold(question, text)
    if not text:
        return RubricScore(0.0, 0.0, 0.0, 0.0, 0.0)
    parts = {
        "right": float(right),
        "sentence": float(finished and _is_sentence(text)),
        "direct": float(len(text.split()) <= MOST_WORDS and not _HEDGED.search(" ".join(text.casefold().split()))),
        "finished": float(finished),
    }
    # Rounded, because the sum of the weights as floats is not exactly 1.
    return RubricScore(**parts, total=round(sum(WEIGHTS[name] * part for name, part in parts.items()), 6))


def part_score(question: Question, answer: str, finished: bool, part: str = "total") -> float:
    """Return one part of the rubric for an answer, 0 to 1; "total" is the weighted sum (scorers `rubric[:PART]`)."""
    return float(getattr(rubric_score(question, answer, finished), part))
