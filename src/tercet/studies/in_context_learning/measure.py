"""Measurements of a model that may have learned to learn from its context."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from tercet.diagnostics.attention import attention_patterns, prefix_matching, previous_token, repeated_tokens
from tercet.inference.generate import SamplingParams, generate
from tercet.microworld.mappings import WORDS, Prompt, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.studies.in_context_learning.study import MOST, SHOTS, TUNED_SHOTS, InContextLearningConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.losses import next_token, next_token_batch
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import pack_whole

PASSAGE, COPIES, PASSAGES = 24, 2, 24  # random words that heads are scored on: longer than any passage in training


def hits(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[bool]:
    """Return for each prompt whether the likeliest next token is the answer."""
    ids = [[tokenizer.endoftext, *tokenizer.encode(p.text)] for p in prompts]
    done = generate(model, ids, SamplingParams(1, temperature=0.0), [0] * len(ids), batch_size=64)
    return [tokenizer.decode(c.tokens) == f" {p.answer}" for c, p in zip(done, prompts)]


def accuracy_by_shots(
    model: Transformer, tokenizer: Tokenizer, world: World, questions: int, *, heldout: bool
) -> list[dict[str, Any]]:
    """Return for each number of examples the accuracy, that with the answer in context, and the best possible."""
    out = []
    for shots in SHOTS:
        prompts = world.prompts(questions, shots, heldout=heldout)
        right = hits(model, tokenizer, prompts)
        in_context = [hit for hit, p in zip(right, prompts) if p.in_context]
        row = {
            "shots": shots,
            "accuracy": sum(right) / len(right),
            "ceiling": sum(p.ceiling for p in prompts) / len(prompts),
            "in_context": len(in_context),
            "accuracy_in_context": sum(in_context) / len(in_context) if in_context else None,
        }
        out.append(row)
    return out


def head_scores(model: Transformer, tokenizer: Tokenizer, seed: int) -> dict[str, list[list[float]]]:
    """Return three scores of each head [layers][heads], on random words that are repeated.

    They are prefix matching at the position right behind the earlier copy, prefix matching one position further, and
    attention to the previous token.
    """
    ids = [tokenizer.encode(f" {word}")[0] for word in WORDS]
    words = repeated_tokens(ids, tokenizer.endoftext, PASSAGE, COPIES, PASSAGES, seed).to(model.device)
    patterns = attention_patterns(model, words)
    return {
        "prefix_matching": prefix_matching(patterns, words).tolist(),
        "one_further": prefix_matching(patterns, words, offset=2).tolist(),
        "previous_token": previous_token(patterns).tolist(),
    }


def without_each_head(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[float]]:
    """Return accuracy [layers][heads] without one head at a time: its columns of the output projection are 0."""
    out: list[list[float]] = []
    c = model.config.head_dim
    for layer in range(model.config.num_layers):
        out.append([])
        for head in range(model.config.num_heads):
            cut = copy.deepcopy(model)
            projection = cut.get_submodule(f"model.layers.{layer}.self_attn.o_proj")
            with torch.no_grad():
                projection.get_parameter("weight")[:, head * c : (head + 1) * c] = 0.0
            right = hits(cut, tokenizer, prompts)
            out[-1].append(sum(right) / len(right))
    return out


def forward_flops(shape: ModelConfig, tokens: int, answers: int = 1) -> float:
    """Return the FLOPs of reading `tokens` tokens of one text and computing the logits at `answers` of them.

    They are 2 for each weight of a layer and token, 4 for each element of a head and pair of tokens that attention sees
    (Kaplan et al. 2020, section 2.1, without their assumption of a full context), and 2 for each weight of the output
    layer and answer.
    """
    weights = shape.parameters(embeddings=False)
    pairs = tokens * (tokens + 1) / 2
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    return 2.0 * weights * tokens + attention + 2.0 * shape.vocab_size * shape.hidden_size * answers


@dataclass(frozen=True)
class Outcome:
    """Which questions were answered right, and the cost: before the first answer and for each answer."""

    right: list[bool]
    training_flops: float
    training_seconds: float
    answer_flops: float
    answer_seconds: float
    answer_tokens: int

    def to_json(self) -> dict[str, float]:
        """Return accuracy and costs."""
        costs = asdict(self)
        right = costs.pop("right")
        return {"accuracy": sum(right) / len(right), **costs}


def tuned(
    model: Transformer, tokenizer: Tokenizer, examples: Sequence[tuple[str, str]], config: InContextLearningConfig
) -> Transformer:
    """Return a copy of the model trained on the examples, each a text of its own; only outputs count in the loss.

    Full batches, AdamW for all weights, a constant learning rate.
    """
    student = copy.deepcopy(model)
    texts = [[tokenizer.endoftext, *tokenizer.encode(f" {word} {output}")] for word, output in examples]
    rows = pack_whole([(ids, [0.0] * (len(ids) - 1) + [1.0]) for ids in texts], len(texts[0]) - 1, tokenizer.pad)
    whole = [next_token_batch(rows)]
    learner = Learner(student, OptimizerConfig(lr=config.tuning_lr, muon_lr=0.0))
    for _ in range(config.tuning_steps):
        learner.forward_backward(whole, next_token)
        learner.optim_step(1.0)
    return student


def prompted(
    model: Transformer, tokenizer: Tokenizer, pairs: Mapping[str, str], examples: Sequence[tuple[str, str]]
) -> Outcome:
    """Answer for every word of `pairs` with the examples in the prompt: as many of the last as the context holds."""
    return _answered(model, tokenizer, pairs, tuple(examples[-MOST:]))


def trained(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: Mapping[str, str],
    examples: Sequence[tuple[str, str]],
    config: InContextLearningConfig,
) -> Outcome:
    """Answer for every word of `pairs` after training a copy of the model on all examples."""
    began = time.process_time()
    student = tuned(model, tokenizer, examples, config)
    seconds = time.process_time() - began
    # forward and backward pass: three times the forward pass
    flops = 3.0 * config.tuning_steps * len(examples) * forward_flops(model.config, 2)
    return replace(_answered(student, tokenizer, pairs, ()), training_flops=flops, training_seconds=seconds)


def _answered(
    model: Transformer, tokenizer: Tokenizer, pairs: Mapping[str, str], examples: tuple[tuple[str, str], ...]
) -> Outcome:
    prompts = [Prompt(examples, word, output) for word, output in pairs.items()]
    began = time.process_time()
    right = hits(model, tokenizer, prompts)
    seconds = (time.process_time() - began) / len(right)
    tokens = 1 + len(tokenizer.encode(prompts[0].text))
    return Outcome(right, 0.0, 0.0, forward_flops(model.config, tokens), seconds, tokens)


def prompting_and_tuning(
    model: Transformer, tokenizer: Tokenizer, world: World, config: InContextLearningConfig
) -> list[dict[str, Any]]:
    """Compare both uses of the same examples, for each number of them: means over held-out mappings."""
    rows = []
    for shots in TUNED_SHOTS:
        outcomes: dict[str, list[dict[str, float]]] = {"prompting": [], "tuning": []}
        ceilings = []
        for number in range(config.tuning_mappings):
            pairs, examples = world.drawn(number, shots)
            ceilings.append(sum((w, o) in examples for w, o in pairs.items()) / len(pairs))
            outcomes["prompting"].append(prompted(model, tokenizer, pairs, examples).to_json())
            outcomes["tuning"].append(trained(model, tokenizer, pairs, examples, config).to_json())
        means = {name: {k: sum(o[k] for o in each) / len(each) for k in each[0]} for name, each in outcomes.items()}
        rows.append({"shots": shots, "in_context": sum(ceilings) / len(ceilings), **means})
    return rows
