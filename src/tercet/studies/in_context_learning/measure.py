"""What is measured of a model that may have learnt to learn from its context."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tercet.diagnostics.attention import attention_patterns, prefix_matching, previous_token, repeated_tokens
from tercet.inference.generate import SamplingParams, generate
from tercet.microworld.mappings import WORDS, Prompt, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.studies.in_context_learning.config import MOST, SHOTS, TUNED_SHOTS, InContextLearningConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.losses import next_token, next_token_batch
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import pack_whole

PASSAGE, COPIES, PASSAGES = 24, 2, 24  # random words that heads are scored on: longer than any passage in training


def hits(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[bool]:
    """Whether the likeliest next token is the answer, for each prompt."""
    ids = [[tokenizer.endoftext, *tokenizer.encode(p.text)] for p in prompts]
    done = generate(model, ids, SamplingParams(1, temperature=0.0), [0] * len(ids), batch_size=64)
    return [tokenizer.decode(c.tokens) == f" {p.answer}" for c, p in zip(done, prompts)]


def by_shots(
    model: Transformer, tokenizer: Tokenizer, world: World, questions: int, *, heldout: bool
) -> list[dict[str, Any]]:
    """Accuracy for each number of examples: of all questions, of those whose answer is shown, and the ceiling."""
    out = []
    for shots in SHOTS:
        prompts = world.prompts(questions, shots, heldout=heldout)
        right = hits(model, tokenizer, prompts)
        shown = [hit for hit, p in zip(right, prompts) if p.in_context]
        out.append({
            "shots": shots, "accuracy": sum(right) / len(right), "ceiling": sum(p.ceiling for p in prompts) / len(prompts),
            "shown": len(shown), "accuracy_shown": sum(shown) / len(shown) if shown else None,
        })  # fmt: skip
    return out


def heads(model: Transformer, tokenizer: Tokenizer, seed: int) -> dict[str, list[list[float]]]:
    """Scores of each head [layers][heads]: prefix matching on random words repeated, at the place behind the earlier copy and
    at the one after that, and attention to the token before.
    """
    ids = [tokenizer.encode(f" {word}")[0] for word in WORDS]
    words = repeated_tokens(ids, tokenizer.endoftext, PASSAGE, COPIES, PASSAGES, seed)
    patterns = attention_patterns(model, words)
    return {
        "prefix_matching": prefix_matching(patterns, words).tolist(),
        "one_further": prefix_matching(patterns, words, offset=2).tolist(), "previous_token": previous_token(patterns).tolist(),
    }  # fmt: skip


def without_each_head(model: Transformer, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[list[float]]:
    """Accuracy [layers][heads] when one head at a time says nothing: its columns of the output projection are 0."""
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
    """FLOPs of reading `tokens` tokens of one text and computing the logits at `answers` of them.

    2 for each weight of a layer and token, 4 for each element of a head and pair of tokens that attention sees (Kaplan et
    al. 2020, section 2.1, without their assumption of a full context), 2 for each weight of the output layer and answer.
    """
    weights = shape.parameters(embeddings=False)
    pairs = tokens * (tokens + 1) / 2
    attention = 4.0 * shape.num_layers * shape.num_heads * shape.head_dim * pairs
    return 2.0 * weights * tokens + attention + 2.0 * shape.vocab_size * shape.hidden_size * answers


@dataclass(frozen=True)
class FewShotSetting:
    """One way to the answers of a mapping: what was right, and what it cost, before the first answer and for each."""

    right: list[bool]
    training_flops: float
    training_seconds: float
    answer_flops: float
    answer_seconds: float
    answer_tokens: int

    def to_json(self) -> dict[str, float]:
        """Accuracy and costs."""
        cost = {
            k: getattr(self, k)
            for k in ("training_flops", "training_seconds", "answer_flops", "answer_seconds", "answer_tokens")
        }
        return {"accuracy": sum(self.right) / len(self.right), **cost}


def tuned(
    model: Transformer, tokenizer: Tokenizer, examples: Sequence[tuple[str, str]], config: InContextLearningConfig
) -> Transformer:
    """A copy of the model, trained on the examples alone, each a text of its own; only outputs count in the loss.

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


def ways(
    model: Transformer,
    tokenizer: Tokenizer,
    pairs: dict[str, str],
    examples: Sequence[tuple[str, str]],
    config: InContextLearningConfig,
) -> dict[str, FewShotSetting]:
    """Ask for every word of the mapping `pairs`, with the examples in the prompt, and after training on them.

    The prompt has the last examples that the context holds; training has all.
    """
    shape, out = model.config, {}
    for name in ("asking", "tuning"):
        began = time.process_time()
        asked = model if name == "asking" else tuned(model, tokenizer, examples, config)
        learnt = time.process_time()
        prompts = [
            Prompt(tuple(examples[-MOST:]) if name == "asking" else (), word, output) for word, output in pairs.items()
        ]
        right = hits(asked, tokenizer, prompts)
        ended = time.process_time()
        read = 1 + len(tokenizer.encode(prompts[0].text))
        training = 0.0
        if name == "tuning":  # forward and backward: three times the forward pass
            training = 3.0 * config.tuning_steps * len(examples) * forward_flops(shape, 2)
        out[name] = FewShotSetting(
            right, training, learnt - began if training else 0.0, forward_flops(shape, read), (ended - learnt) / len(right), read
        )  # fmt: skip
    return out


def tuning_against_asking(
    model: Transformer, tokenizer: Tokenizer, world: World, config: InContextLearningConfig
) -> list[dict[str, Any]]:
    """Both ways at the same examples, for each number of them: means over held-out mappings."""
    rows = []
    for shots in TUNED_SHOTS:
        found: dict[str, list[dict[str, float]]] = {"asking": [], "tuning": []}
        ceilings = []
        for number in range(config.tuning_mappings):
            pairs, examples = world.drawn(number, shots)
            ceilings.append(sum((w, o) in examples for w, o in pairs.items()) / len(pairs))
            for name, way in ways(model, tokenizer, pairs, examples, config).items():
                found[name].append(way.to_json())
        means = {name: {k: sum(f[k] for f in each) / len(each) for k in each[0]} for name, each in found.items()}
        rows.append({"shots": shots, "shown": sum(ceilings) / len(ceilings), **means})
    return rows
