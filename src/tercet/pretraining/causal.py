"""Pretraining: next-token prediction on raw text (Radford et al. 2019)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from tercet.data.readers import BadRows, read_documents
from tercet.data.splits import split
from tercet.data.types import Document
from tercet.errors import ConfigError, DataError
from tercet.evaluation.bits_per_byte import average, bits_per_byte, by_source, limit_bytes
from tercet.inference.generate import SamplingParams, generate
from tercet.inference.language_model import TransformerLM
from tercet.model.config import SIZES, ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.stage import PretrainConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.loader import BatchLoader
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import PackedSequences, pack_stream, sequences_per_pass
from tercet.training.run import Run
from tercet.training.settings import shares
from tercet.training.time_budget import Deadline
from tercet.training.trainer import training_steps


def pack_documents(tokenizer: Tokenizer, texts: Sequence[Document], length: int) -> PackedSequences:
    """Pack documents, each between two `<|endoftext|>`, into rows of `length` targets."""
    eot = tokenizer.endoftext
    return pack_stream(
        [[eot, *ids, eot] for ids in tokenizer.encode_batch([d.text for d in texts])], length, tokenizer.pad
    )


def load_text(config: PretrainConfig, run: Run) -> tuple[dict[str, list[Document]], list[Document]]:
    """Read (training documents by source, held-out documents). Raises DataError if either is empty."""
    bad = BadRows(skip=config.skip_bad_rows)
    every = list(read_documents(config.data, bad))
    if config.heldout:
        train, heldout = every, list(read_documents(config.heldout, bad))
    else:
        train, heldout = split(every, config.heldout_share)
        if not heldout:  # of a few documents the hash may select none; then the last one is held out
            train, heldout = every[:-1], every[-1:]
    if not train or not heldout:
        raise DataError(
            f"{len(every)} document(s) in {', '.join(config.data)}; wanted at least two, one to train on and one to "
            "hold out: give more documents (JSONL rows), or name other files with --heldout"
        )
    run.log_skipped(bad.count, bad.messages)
    return by_source(train), limit_bytes(heldout, config.heldout_bytes)


def check_mixture(mixture: Mapping[str, float] | None, sources: Collection[str]) -> None:
    """Check that a mixture names exactly the sources of the data. Raises ConfigError if it does not."""
    if mixture is not None and (wrong := sorted(set(mixture) ^ set(sources))):
        raise ConfigError(
            f"--mixture and --data disagree on {', '.join(wrong)}; give a share for each of the data's sources, "
            f"{', '.join(sources)}, and no other"
        )


def build_loader(
    tokenizer: Tokenizer,
    train: Mapping[str, Sequence[Document]],
    mixture: Mapping[str, float] | None,
    length: int,
    batch_size: int,
    seed: int,
) -> BatchLoader:
    """Pack each source and mix them. Raises ConfigError if the mixture names other sources than the data has."""
    check_mixture(mixture, train)
    packed = {source: pack_documents(tokenizer, group, length) for source, group in train.items()}
    return BatchLoader(packed, mixture, batch_size, seed)


def pretrain(config: PretrainConfig, run: Run) -> None:
    """Train a language model from scratch by next-token prediction."""
    tokenizer = Tokenizer.load(config.tokenizer)
    shape = ModelConfig(tokenizer.vocab_size, **{name: getattr(config, name) for name in SIZES})
    tokenizer.save(run.path / "tokenizer.json")
    run.save_model_config(shape)
    train, heldout = load_text(config, run)
    mixture = shares(config.mixture, "--mixture")
    loader = build_loader(tokenizer, train, mixture, config.context_length, config.batch_size, config.seed)
    model = Transformer(shape, seed=config.seed).to(run.device)
    learner = Learner(model, OptimizerConfig.of(config), config.precision)
    run.log_line(
        f"{shape.parameters():,} parameters ({shape.parameters(embeddings=False):,} without embeddings), "
        f"{config.steps * config.batch_size * config.context_length:,} tokens in {config.steps} steps"
        + (f", or as many as fit into {config.minutes:g} minutes" if config.minutes else "")
    )
    deadline = Deadline.after(60 * config.minutes - run.elapsed()) if config.minutes else None

    def evaluate(done: int) -> None:
        bits = bits_per_byte(TransformerLM(model, tokenizer), heldout)
        run.log(done, **{f"heldout/{source}": e.value for source, e in bits.items()}, heldout=average(bits))
        texts = continue_texts(model, tokenizer, config)
        run.log_samples(done, [{"prompt": p, "text": t} for p, t in zip(config.sample_prompts, texts)])
        if done == config.steps or deadline:
            run.update(heldout={source: e.to_json() for source, e in bits.items()})

    micro = sequences_per_pass(config.micro_batch, config.context_length)
    for step in training_steps(run, config, learner, evaluate, deadline):
        batches = list(loader.batch(step.number).split(micro))
        metrics = learner.forward_backward(batches, next_token)
        step.update(learner, metrics, batches)


def continue_texts(model: Transformer, tokenizer: Tokenizer, config: PretrainConfig) -> list[str]:
    """Generate a continuation of each of `sample_prompts`, with the same random numbers at every evaluation."""
    prompts = [[tokenizer.endoftext, *tokenizer.encode(p)] for p in config.sample_prompts]
    params = SamplingParams(max_new_tokens=60, temperature=0.7, stop_ids=(tokenizer.endoftext,))
    return [
        tokenizer.decode(c.tokens)
        for c in generate(model, prompts, params, [config.seed + i for i in range(len(prompts))])
    ]
