"""Answers of a model to questions in chat form, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tercet.data.text_matching import matches_gold
from tercet.data.types import Question
from tercet.evaluation.scoring.answers import Answer
from tercet.inference.chat import answer_all
from tercet.inference.generate import SamplingParams
from tercet.model.transformer import Transformer
from tercet.statistics.intervals import Estimate, proportion
from tercet.tokenizer.bpe import Tokenizer


@dataclass(frozen=True)
class AnswerScores:
    """Exact match of a model's answers, and the share of answers that it ended itself."""

    exact: Estimate
    finished: Estimate


def answer_questions(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], params: SamplingParams, seed: int
) -> list[Answer]:
    """Return the model's answer to every question, in chat form."""
    return answer_all(model, tokenizer, [(q.where or q.id, q.prompt) for q in questions], params, seed)


def score_answers(questions: Sequence[Question], answers: Sequence[Answer]) -> AnswerScores:
    """Return exact match and the share of finished answers, each with its 95 % interval."""
    hits = sum(matches_gold(question, text) for question, (text, _) in zip(questions, answers))
    return AnswerScores(
        proportion(hits, len(questions)), proportion(sum(finished for _, finished in answers), len(answers))
    )
