"""Asking models tasks and scoring what they answer: in chat form, and by completion with 0, 1 or few examples."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tercet.data.microworld.rubric import RubricScore, exact_match, rubric_score
from tercet.data.types import Task
from tercet.errors import ConfigError
from tercet.evaluation.metrics import Estimate, mean, proportion
from tercet.generation.chat import answer_all
from tercet.generation.sampler import SamplingParams, generate
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


@dataclass(frozen=True)
class Form:
    """How a task becomes text: a description, then examples in the template, then the question without its answer."""

    description: str = ""
    template: str = "Q: {input}\nA: {output}"
    separator: str = "\n\n"

    def _question(self, task: Task) -> str:
        before = self.template.replace("{output}", "")
        return before.replace("{input}", "\n".join(m.content for m in task.prompt if m.role == "user"))

    def prompt(self, task: Task, examples: Sequence[Task]) -> str:
        """The text that the model continues. The trailing space goes: the model writes " word" as one token."""
        shots = [self._question(e) + e.answers[0] for e in examples]
        return self.description + self.separator.join([*shots, self._question(task).rstrip(" ")])

    def answer(self, text: str) -> str:
        """The model's answer: its first line."""
        return text.strip(" ").split("\n", 1)[0]


def few_shot(model: Transformer, tokenizer: Tokenizer, questions: Sequence[Task], examples: Sequence[Task], shots: int, form: Form,
             max_new_tokens: int, seed: int) -> tuple[list[str], list[bool], str]:  # fmt: skip
    """Greedy completions of `shots`-shot prompts: (answers, whether each is right, the first prompt).

    Each question's examples are drawn from `examples` of the same ability, by the seed and the question. Raises
    ConfigError where an ability has too few examples.
    """
    prompts = []
    for task in questions:
        pool = [e for e in examples if e.ability == task.ability and e.prompt != task.prompt and len(e.prompt) == 1]
        if len(pool) < shots:
            raise ConfigError(
                f"{shots} shots for {task.ability!r}, but there are only {len(pool)} examples of that ability"
            )
        prompts.append(form.prompt(task, random.Random(f"{seed}/{task.id}").sample(pool, shots)))
    newline = tokenizer.encode("\n")
    params = SamplingParams(max_new_tokens, temperature=0.0, stop_ids=(tokenizer.endoftext, *newline))
    ids = [[tokenizer.endoftext, *i] for i in tokenizer.encode_batch(prompts)]
    done = generate(model, ids, params, [seed] * len(ids), batch_size=128)
    answers = [form.answer(tokenizer.decode(c.tokens)) for c in done]
    return answers, [exact_match(t, a) for t, a in zip(questions, answers)], prompts[0]
