"""Supervised fine-tuning (SFT), or instruction tuning: the first step of RLHF, and a method of its own."""

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
from tercet.posttraining.held_out import read_sides
from tercet.posttraining.sft.neftune import NoisyNextToken, noisy_batches
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
    tokenizer: Tokenizer, conversations: Sequence[tuple[str, Conversation]], length: int, refuse: bool, run: Run
) -> list[Rendered]:
    """Return the ids and weights of every conversation, truncated after a whole message to at most `length` tokens.

    A conversation without any trained token in that length is left out. Both are counted in the log; with `refuse`,
    both raise ContextError naming file and line. Raises DataError if no conversation is left.
    """
    out, cut, lost = [], 0, 0
    for where, conversation in conversations:
        try:
            rendered, messages = render_fitting(tokenizer, conversation, length)
        except ContextError as error:
            if refuse:
                raise ContextError(f"{where}: {error}; shorten it, or use --long-conversations truncate") from error
            lost += 1
            continue
        if messages and refuse:
            raise ContextError(
                f"{where}: the conversation is longer than {length} tokens; shorten it, or use --long-conversations "
                "truncate"
            )
        cut += messages > 0
        out.append(rendered)
    if cut or lost:
        run.log_line(
            f"{cut} of {len(conversations)} conversations truncated after a whole message; {lost} left out, because "
            f"no token that is trained on fits into {length} tokens"
        )
    if not out:
        raise DataError(
            f"none of {len(conversations)} conversations fits into {length} tokens; give shorter ones, or a model with "
            "a longer context"
        )
    return out


def load_conversations(
    config: SFTConfig, run: Run
) -> tuple[list[tuple[str, Conversation]], list[tuple[str, Conversation]]]:
    """Return (training, held-out) conversations with file and line; the split is by the first user message.

    Raises DataError if a side is empty.
    """

    def first_prompt(conversation: Conversation) -> str:
        return fold(next(m.content for m in conversation if m.role == "user"))

    train, heldout = read_sides(config, read_conversations, first_prompt, run)
    if not train or not heldout:
        different = {first_prompt(conversation) for _, conversation in train + heldout}
        raise DataError(
            f"{len(train) + len(heldout)} conversations with {len(different)} different first prompts, and "
            f"--heldout-share {config.heldout_share:g}: the split has {len(train)} for training and {len(heldout)} "
            "held out; wanted some on both sides: give more data, name --heldout, or change --heldout-share"
        )
    return train, heldout


def sft(config: SFTConfig, run: Run) -> None:
    """Fine-tune a base model on conversations."""
    model, tokenizer = adapt(load_language_model(run.parents["model"]), config), Tokenizer.load(run.path)
    length, refuse = model.config.context_length, config.long_conversations == "refuse"
    train, heldout = load_conversations(config, run)
    bad = BadRows(skip=config.skip_bad_rows)
    questions = [question for _, question in read_questions(config.questions, bad)] if config.questions else []
    run.log_skipped(bad.count, bad.messages)

    def pack(conversations: Sequence[tuple[str, Conversation]]) -> PackedSequences:
        rendered = render_all(tokenizer, conversations, length + 1, refuse, run)
        return pack_whole([(r.tokens, r.weights) for r in rendered], length, tokenizer.pad)

    loader = BatchLoader({"chat": pack(train)}, None, config.batch_size, config.seed)
    heldout_rows = pack(heldout)
    run.log_line(
        f"{len(train)} conversations in {len(loader.sources[0])} rows of {length} tokens, {len(heldout)} held out"
    )
    learner = Learner(model, OptimizerConfig.of(config), config.precision)

    def evaluate(done: int) -> None:
        metrics = {"heldout": mean_loss(model, heldout_rows, config.batch_size)}
        if questions and done in (0, config.steps):
            metrics |= evaluate_answers(run, model, tokenizer, questions, config, done)
        run.log(done, **metrics)
        if due(done, 0, config.steps):
            run.update(heldout_loss=metrics["heldout"])

    micro = sequences_per_pass(config.micro_batch, length)
    noisy = NoisyNextToken(config.neftune_alpha, config.seed) if config.neftune_alpha else None
    for step in training_steps(run, config, learner, evaluate):
        batches = list(loader.batch(step.number).split(micro))
        if noisy is None:
            metrics = learner.forward_backward(batches, next_token)
        else:
            metrics = learner.forward_backward(noisy_batches(batches, step.number), noisy)
        step.update(learner, metrics, batches)


def evaluate_answers(
    run: Run, model: Transformer, tokenizer: Tokenizer, questions: Sequence[Question], config: SFTConfig, done: int
) -> dict[str, float]:
    """Return exact match (greedy) and the fraction of finished answers; writes 8 answers to samples.jsonl."""
    params = answer_params(tokenizer, config.max_new_tokens, temperature=0.0)
    answers = answer_questions(model, tokenizer, questions, params, config.seed)
    scores = score_answers(questions, answers)
    rows = [{"prompt": q.prompt[-1].content, "text": a[0], "gold": q.answers[0]} for q, a in zip(questions, answers)]
    run.log_samples(done, rows[:8])
    return {"exact_match": scores.exact.value, "finished": scores.finished.value}
