"""Asking models questions in chat form and scoring what they answer (by completion: asking.py)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tercet.data.microworld.rubric import RubricScore, exact_match, rubric_score
from tercet.data.types import Task
from tercet.evaluation.metrics import Estimate, mean, proportion
from tercet.inference.chat import answer_all
from tercet.inference.generate import SamplingParams
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer

Answer = tuple[str, bool]  # its text, and whether the model ended it itself


@dataclass(frozen=True)
class AnswerScores:
    """What a model's answers are worth; `rubric` holds every answer's gold rubric score, in the order of the tasks."""

    exact: Estimate
    by_ability: dict[str, Estimate]
    finished: Estimate
    rubric: list[RubricScore]
    mean_rubric: Estimate


def ask_all(
    model: Transformer, tokenizer: Tokenizer, questions: Sequence[Task], params: SamplingParams, seed: int
) -> list[Answer]:
    """The model's answer to every task, in chat form."""
    return answer_all(model, tokenizer, [(t.where or t.id, t.prompt) for t in questions], params, seed)


def score_answers(questions: Sequence[Task], answers: Sequence[Answer]) -> AnswerScores:
    """Exact match (over all and per ability), share of finished answers, gold rubric; each with its 95 % interval."""
    hits: dict[str, list[bool]] = {}
    for task, (text, _) in zip(questions, answers):
        hits.setdefault(task.ability, []).append(exact_match(task, text))
    rubric = [rubric_score(task, text, finished) for task, (text, finished) in zip(questions, answers)]
    return AnswerScores(
        exact=proportion(sum(map(sum, hits.values())), len(questions)),
        by_ability={ability: proportion(sum(h), len(h)) for ability, h in sorted(hits.items())},
        finished=proportion(sum(f for _, f in answers), len(answers)),
        rubric=rubric,
        mean_rubric=mean([r.total for r in rubric]),
    )
