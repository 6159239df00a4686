"""Rank answers with a SIMULATED annotator, in the file format of human rankings.

Every row has `"labeler": "simulated"`: no person has seen these answers.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tercet.data.formats.preferences import to_row
from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows, write_jsonl
from tercet.data.splits import in_split
from tercet.data.types import Comparison, Question
from tercet.errors import DataError
from tercet.evaluation.scoring.answers import Answer
from tercet.inference.chat import answer_all, answer_params
from tercet.microworld.rubric import RUBRIC_TEXT, rubric_score
from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.held_out import split_key
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import load_language_model
from tercet.training.run import Run

LABELER = "simulated"


def ranked(
    question: Question, answers: Sequence[Answer], noise: float, tie_width: float, rng: random.Random
) -> Comparison:
    """Return the answers with their ranks by rubric score plus Normal(0, noise), rounded to steps of `tie_width`.

    Answers on the same step have the same rank.
    """
    steps = [
        round((rubric_score(question, text, done).total + rng.gauss(0.0, noise)) / tie_width) for text, done in answers
    ]
    order = sorted(set(steps), reverse=True)
    texts, ranks = tuple(text for text, _ in answers), tuple(order.index(step) + 1 for step in steps)
    return Comparison(question.prompt, texts, ranks, LABELER)


def annotate(config: AnnotateConfig, run: Run) -> None:
    """Sample K answers to each question and rank them; writes RUN/rankings/{train,heldout}.jsonl.

    Raises DataError for bad rows, and if the training or the held-out part would be empty.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    questions = [q for _, q in read_questions(config.questions, bad)]
    run.log_skipped(bad.count, bad.messages)
    parent = run.parents["model"]
    model, tokenizer = load_language_model(parent), Tokenizer.load(parent.path)
    params = answer_params(tokenizer, config.max_new_tokens, config.temperature)
    prompts = [(q.where, q.prompt) for q in questions for _ in range(config.answers)]
    answers = answer_all(model, tokenizer, prompts, params, config.seed)
    train: list[Comparison] = []
    heldout: list[Comparison] = []
    pairs = ties = 0
    for number, question in enumerate(questions):
        own = answers[number * config.answers : (number + 1) * config.answers]
        rng = random.Random(f"{config.seed}/{question.id}")
        comparison = ranked(question, own, config.noise, config.tie_width, rng)
        k = len(comparison.ranks)
        pairs += k * (k - 1) // 2
        ties += sum(comparison.ranks[i] == comparison.ranks[j] for i in range(k) for j in range(i))
        (heldout if in_split(split_key(question.prompt), config.heldout_share) else train).append(comparison)
    if not train or not heldout:
        raise DataError(
            f"--questions has {len(questions)} question(s), which leaves the training or the held-out part empty; give "
            f"more questions, or change --heldout-share (now {config.heldout_share})"
        )
    for name, comparisons in (("train", train), ("heldout", heldout)):
        write_jsonl(run.path / "rankings" / f"{name}.jsonl", map(to_row, comparisons))
    (run.path / "rankings" / "README.txt").write_text(
        f"SIMULATED rankings: no person has seen these answers. Rubric, with noise {config.noise}:\n\n{RUBRIC_TEXT}",
        encoding="utf-8",
    )
    counts = {"prompts": len(questions), "answers": config.answers, "pairs": pairs, "ties": ties}
    run.update(rankings={"labeler": LABELER, **counts})
    run.log_line(
        f"simulated annotator: {len(questions)} prompts, {config.answers} answers each; {ties} of {pairs} pairs tied"
    )
