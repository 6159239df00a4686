"""Rankings by a SIMULATED annotator, in the file format that people's rankings use.

Every row says `"labeler": "simulated"`: no person has seen these answers.
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
from tercet.evaluation.scoring.scorers import Answer
from tercet.inference.chat import answer_all, answer_params
from tercet.microworld.rubric import RUBRIC_TEXT, rubric_score
from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.held_out import split_key
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import load_language_model
from tercet.training.run import Run

LABELER = "simulated"


def ranked(task: Question, answers: Sequence[Answer], noise: float, tie_width: float, rng: random.Random) -> Comparison:
    """Rank answers, best first: rubric score plus Normal(0, noise), rounded to steps of `tie_width`; equal steps tie."""
    steps = [
        round((rubric_score(task, text, done).total + rng.gauss(0.0, noise)) / tie_width) for text, done in answers
    ]
    order = sorted(set(steps), reverse=True)
    return Comparison(
        task.prompt, tuple(text for text, _ in answers), tuple(order.index(s) + 1 for s in steps), LABELER
    )


def annotate(config: AnnotateConfig, run: Run) -> None:
    """Sample K answers to each task and rank them; writes RUN/rankings/{train,heldout}.jsonl."""
    bad = BadRows(skip=config.skip_bad_rows)
    questions = [t for _, t in read_questions(config.questions, bad)]
    run.log_skipped(bad.count, bad.messages)
    parent = run.parents["model"]
    model, tokenizer = load_language_model(parent), Tokenizer.load(parent.path)
    params = answer_params(tokenizer, config.max_new_tokens, config.temperature)
    prompts = [(t.where, t.prompt) for t in questions for _ in range(config.answers)]
    answers = answer_all(model, tokenizer, prompts, params, config.seed)
    sides: tuple[list[Comparison], list[Comparison]] = ([], [])
    pairs = ties = 0
    for number, task in enumerate(questions):
        mine = answers[number * config.answers : (number + 1) * config.answers]
        comparison = ranked(task, mine, config.noise, config.tie_width, random.Random(f"{config.seed}/{task.id}"))
        k = len(comparison.ranks)
        pairs += k * (k - 1) // 2
        ties += sum(comparison.ranks[i] == comparison.ranks[j] for i in range(k) for j in range(i))
        sides[in_split(split_key(task.prompt), config.heldout_share)].append(comparison)
    if not sides[0] or not sides[1]:
        raise DataError(
            f"{len(questions)} task(s) are too few for a training and a held-out part; give more, or change heldout_share"
        )
    for name, side in zip(("train", "heldout"), sides):
        write_jsonl(run.path / "rankings" / f"{name}.jsonl", (to_row(c) for c in side))
    (run.path / "rankings" / "README.txt").write_text(
        f"SIMULATED rankings: no person has seen these answers. Rubric, with noise {config.noise}:\n\n{RUBRIC_TEXT}",
        encoding="utf-8",
    )
    counts = {"prompts": len(questions), "answers": config.answers, "pairs": pairs, "ties": ties}
    run.update(rankings={"labeler": LABELER, **counts})
    run.log_line(
        f"simulated annotator: {len(questions)} prompts with {config.answers} answers each, {pairs} pairs of which {ties} tied"
    )
