"""Instruction tuning (SFT): the lecture's first step of RLHF, and a method of its own."""

from __future__ import annotations

from collections.abc import Sequence

from tercet.data.formats.conversations import read_conversations
from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows
from tercet.data.splits import fold
from tercet.data.types import Conversation, Question
from tercet.errors import ContextError, DataError
from tercet.evaluation.chat_answers import answer_questions, score_answers
from tercet.inference.chat import answer_params
from tercet.model.transformer import Transformer
from tercet.posttraining.held_out import split_heldout
from tercet.posttraining.sft.neftune import NoisyNextToken, place
from tercet.posttraining.sft.stage import SFTConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import Rendered, render_fitting
from tercet.training.learner import Learner
from tercet.training.load import adapt, load_language_model
from tercet.training.loader import BatchLoader
from tercet.training.losses import mean_loss, next_token
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import PackedSequences, pack_whole, sequences_per_pass
from tercet.training.run import Run
from tercet.training.trainer import due, training_steps


def render_all(
    tokenizer: Tokenizer, found: Sequence[tuple[str, Conversation]], length: int, refuse: bool, run: Run
) -> list[Rendered]:
    """Every conversation as ids and weights, cut to `length` tokens on a message border; what was cut is counted.

    A conversation of which nothing that fits is trained on is left out and counted. With `refuse`, both raise
    ContextError naming file and line. Raises DataError where nothing is left.
    """
    out, cut, lost = [], 0, 0
    for where, conversation in found:
        try:
            rendered, messages = render_fitting(tokenizer, conversation, length)
        except ContextError as error:
            if refuse:
                raise ContextError(f"{where}: {error}; shorten it, or set long_conversations to truncate") from error
            lost += 1
            continue
        if messages and refuse:
            raise ContextError(
                f"{where}: the conversation is longer than {length} tokens; shorten it, or set long_conversations to truncate"
            )
        cut += messages > 0
        out.append(rendered)
    if cut or lost:
        run.log_line(
            f"{cut} of {len(found)} conversations cut on a message border, {lost} left out: nothing of them that is trained on fits into {length} tokens"
        )
    if not out:
        raise DataError(f"none of {len(found)} conversations fits into the context of {length} tokens")
    return out


def load_conversations(
    config: SFTConfig, run: Run
) -> tuple[list[tuple[str, Conversation]], list[tuple[str, Conversation]]]:
    """(training, held-out) conversations with where they stand. The same first question never lands on both sides of a split."""
    bad = BadRows(skip=config.skip_bad_rows)
    every = list(read_conversations(config.data, bad))
    named = list(read_conversations(config.heldout, bad)) if config.heldout else None
    run.log_skipped(bad.count, bad.messages)

    def first_question(row: tuple[str, Conversation]) -> str:
        return fold(next(m.content for m in row[1] if m.role == "user"))

    train, heldout = split_heldout(every, named, first_question, config.heldout_share, run)
    if not train or not heldout:
        raise DataError(
            f"{len(every)} conversation(s) with {len(set(map(first_question, every)))} first question(s), heldout_share "
            f"{config.heldout_share:g}: training needs some and held-out measuring others; give more, name --heldout, or change the share"
        )
    return train, heldout


def sft(config: SFTConfig, run: Run) -> None:
    """Tune a base model on conversations."""
    model, tokenizer = adapt(load_language_model(run.parents["model"]), config), Tokenizer.load(run.path)
    length, refuse = model.config.context_length, config.long_conversations == "refuse"
    train, heldout = load_conversations(config, run)
    bad = BadRows(skip=config.skip_bad_rows)
    questions = [t for _, t in read_questions(config.questions, bad)] if config.questions else []
    run.log_skipped(bad.count, bad.messages)

    def pack(found: Sequence[tuple[str, Conversation]]) -> PackedSequences:
        rendered = render_all(tokenizer, found, length + 1, refuse, run)
        return pack_whole([(r.tokens, r.weights) for r in rendered], length, tokenizer.pad)

    feed, measured = BatchLoader({"chat": pack(train)}, None, config.batch_size, config.seed), pack(heldout)
    run.log_line(
        f"{len(train)} conversations in {len(feed.sources[0])} rows of {length} tokens, {len(heldout)} held out"
    )
    learner = Learner(model, OptimizerConfig.of(config), config.precision)

    def evaluate(done: int) -> None:
        metrics = {"heldout": mean_loss(model, measured, config.batch_size)}
        if questions and done in (0, config.steps):
            metrics |= measure_answers(run, model, tokenizer, questions, config, done)
        run.log(done, **metrics)
        if due(done, 0, config.steps):
            run.update(heldout_loss=metrics["heldout"])

    micro = sequences_per_pass(config.micro_batch, length)
    noisy = NoisyNextToken(config.neftune_alpha, config.seed) if config.neftune_alpha else None
    for step in training_steps(run, config, learner, evaluate):
        batches = list(feed.batch(step.number).split(micro))
        if noisy is None:
            metrics = learner.forward_backward(batches, next_token)
        else:
            metrics = learner.forward_backward(place(batches, step.number), noisy)
        step.update(learner, metrics, batches)


def measure_answers(
    run: Run, model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], config: SFTConfig, done: int
) -> dict[str, float]:
    """Exact match (greedy) and the share of answers that the model ends itself; a few answers go to samples.jsonl."""
    params = answer_params(tokenizer, config.max_new_tokens, temperature=0.0)
    answers = answer_questions(model, tokenizer, questions, params, config.seed)
    scores = score_answers(questions, answers)
    run.log_samples(
        done,
        [
            {"prompt": t.prompt[-1].content, "text": a[0], "gold": t.answers[0]}
            for t, a in list(zip(questions, answers))[:8]
        ],
    )
    return {"exact_match": scores.exact.value, "finished": scores.finished.value}
