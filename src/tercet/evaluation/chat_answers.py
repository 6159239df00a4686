"""Asking models questions in chat form and scoring what they answer (by completion: asking.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tercet.data.text_matching import matches_gold
from tercet.data.types import Question
from tercet.evaluation.scoring.scorers import Answer
from tercet.inference.chat import answer_all
from tercet.inference.generate import SamplingParams
from tercet.model.transformer import Transformer
from tercet.statistics.intervals import Estimate, proportion
from tercet.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class AnswerScores:
    """What a model's answers are worth: exact match, and the share that the model ended itself."""

    exact: Estimate
    finished: Estimate


def ask_all(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], params: SamplingParams, seed: int
) -> list[Answer]:
    """The model's answer to every task, in chat form."""
    return answer_all(model, tokenizer, [(t.where or t.id, t.prompt) for t in questions], params, seed)


def score_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> AnswerScores:
    """Exact match and share of finished answers, each with its 95 % interval."""
    hits = sum(matches_gold(task, text) for task, (text, _) in zip(questions, answers))
    return AnswerScores(proportion(hits, len(questions)), proportion(sum(f for _, f in answers), len(answers)))
