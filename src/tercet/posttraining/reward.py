"""The reward model: from rankings of K answers to a number for every answer (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.data.comparisons import comparisons
from tercet.data.conversations import conversations, to_messages
from tercet.data.readers import BadRows, fingerprints
from tercet.data.splits import in_split
from tercet.data.types import Comparison, Conversation
from tercet.errors import ConfigError, DataError
from tercet.evaluation.metrics import Estimate, pair_accuracy
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.config import RewardConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat import render_prompt
from tercet.training.batch import pad_right
from tercet.training.feed import permuted
from tercet.training.fit import due, fit
from tercet.training.learner import Learner
from tercet.training.load import language_model_run, load_language_model
from tercet.training.optim import OptimizerConfig
from tercet.training.progress import Progress
from tercet.training.run import Run, threads

SCORED_ROWS = 64  # answers per forward pass outside of training


@dataclass(frozen=True)
class Ranked:
    """One prompt's answers as ids (prompt, answer, `<|im_end|>`), the characters of each answer, and all strict pairs."""

    texts: tuple[tuple[int, ...], ...]
    characters: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...]  # (better, worse); ties give none


@dataclass(frozen=True)
class RankedBatch:
    """Several prompts' answers, each answer one row."""

    tokens: Tensor  # [N, T] i64
    last: Tensor  # [N] i64, position of each answer's last token
    pairs: Tensor  # [P, 2] i64, rows (better, worse)
    pair_weights: Tensor  # [P] f64, 1 / C(K, 2) of the pair's prompt
    count: float  # prompts


def encode_answer(tokenizer: Tokenizer, prompt: Conversation, answer: str) -> tuple[int, ...]:
    """Ids that the reward model reads: the prompt as chat sends it, the answer and its end."""
    return (*render_prompt(tokenizer, prompt), *tokenizer.encode(answer), tokenizer.im_end)


def encode_comparison(tokenizer: Tokenizer, comparison: Comparison) -> Ranked:
    """Ids of all answers, and every pair that is not tied."""
    ranks = comparison.ranks
    pairs = [
        (i, j) if ranks[i] < ranks[j] else (j, i) for i, j in combinations(range(len(ranks)), 2) if ranks[i] != ranks[j]
    ]
    texts = tuple(encode_answer(tokenizer, comparison.prompt, r) for r in comparison.responses)
    return Ranked(texts, tuple(len(r) for r in comparison.responses), tuple(pairs))


def collate(prompts: Sequence[Ranked], pad: int) -> RankedBatch:
    """Prompts side by side. Each answer is in the batch once, however many pairs it is in."""
    texts = [t for p in prompts for t in p.texts]
    tokens, lengths = pad_right(texts, pad)
    pairs, weights, base = [], [], 0
    for p in prompts:
        k = len(p.texts)
        pairs += [(base + i, base + j) for i, j in p.pairs]
        weights += [2.0 / (k * (k - 1))] * len(p.pairs)
        base += k
    return RankedBatch(
        tokens,
        lengths - 1,
        torch.tensor(pairs).reshape(-1, 2),
        torch.tensor(weights, dtype=torch.float64),
        float(len(prompts)),
    )


def ranking_loss(model: ScalarModel, batch: RankedBatch) -> tuple[Tensor, dict[str, float]]:
    """Σ over prompts of −1/C(K,2) Σ over pairs log σ(r_better − r_worse) (Ouyang et al. 2022, equation 1)."""
    scores = model(batch.tokens)[torch.arange(len(batch.tokens)), batch.last].double()
    margin = scores[batch.pairs[:, 0]] - scores[batch.pairs[:, 1]]
    loss = -(batch.pair_weights * F.logsigmoid(margin)).sum()
    return loss, {"loss": float(loss.detach())}


@torch.no_grad()
def score_texts(model: ScalarModel, texts: Sequence[Sequence[int]], pad: int) -> list[float]:
    """The reward of each text (ids), read at its last token."""
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    out = [0.0] * len(texts)
    for a in range(0, len(order), SCORED_ROWS):
        part = order[a : a + SCORED_ROWS]
        tokens, lengths = pad_right([texts[i] for i in part], pad)
        for i, score in zip(part, model(tokens)[torch.arange(len(part)), lengths - 1].tolist()):
            out[i] = score
    return out


def check_contexts(judge: ScalarModel, model: Transformer, judge_run: Run, run: Run) -> None:
    """Raises ConfigError where the reward model cannot read all that the language model can write."""
    if judge.config.context_length < model.config.context_length:
        raise ConfigError(
            f"the reward model {judge_run.path} reads {judge.config.context_length} tokens, but {run.path} writes up to "
            f"{model.config.context_length}; train the reward model from a model with as long a context"
        )


def accuracy(prompts: Sequence[Ranked], scores: Sequence[Sequence[float]]) -> Estimate:
    """Share of strict pairs in which the better answer scores higher (equal scores count one half), clustered by prompt."""
    hits, groups = [], []
    for number, (p, s) in enumerate(zip(prompts, scores)):
        for better, worse in p.pairs:
            hits.append(1.0 if s[better] > s[worse] else 0.5 if s[better] == s[worse] else 0.0)
            groups.append(number)
    return pair_accuracy(hits, groups)


def load_rankings(
    config: RewardConfig, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Ranked], list[Ranked]]:
    """(training, held-out) prompts that have at least one strict pair. Others are counted and left out.

    Raises DataError where a side is empty.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    every = list(comparisons(config.data, bad))
    if config.heldout:
        sides = [c for _, c in every], [c for _, c in comparisons(config.heldout, bad)]
    else:
        keys = [in_split(json.dumps(to_messages(c.prompt)), config.heldout_share) for _, c in every]
        sides = [c for (_, c), k in zip(every, keys) if not k], [c for (_, c), k in zip(every, keys) if k]
    run.log_skipped(bad.count, bad.messages)
    out = []
    for name, side in zip(("training", "held-out"), sides):
        encoded = [encode_comparison(tokenizer, c) for c in side]
        fitting = [r for r in encoded if max(map(len, r.texts)) <= length]
        kept = [r for r in fitting if r.pairs]
        run.log_line(
            f"{name}: {len(kept)} prompts with {sum(len(r.pairs) for r in kept)} pairs; left out: {len(fitting) - len(kept)} with ties only, "
            f"{len(encoded) - len(fitting)} longer than the context of {length} tokens"
        )
        if not kept:
            raise DataError(f"no {name} prompt has two answers of different rank that fit; give more comparisons")
        out.append(kept)
    return out[0], out[1]


def load_demonstrations(config: RewardConfig, tokenizer: Tokenizer, length: int, run: Run) -> list[tuple[int, ...]]:
    """Every assistant answer of the demonstrations with what came before it, as ids; at most `demonstrations_limit`."""
    if not config.demonstrations:
        return []
    bad = BadRows(skip=config.skip_bad_rows)
    found = [c for _, c in conversations(config.demonstrations, bad)]
    run.log_skipped(bad.count, bad.messages)
    chosen = [
        found[permuted(i, len(found), (config.seed, 3))] for i in range(min(len(found), config.demonstrations_limit))
    ]
    texts = [
        encode_answer(tokenizer, c[:i], m.content) for c in chosen for i, m in enumerate(c) if m.role == "assistant"
    ]
    if not (fitting := [t for t in texts if len(t) <= length]):
        raise DataError(
            f"none of {len(texts)} demonstrations fits into the context of {length} tokens; give shorter ones"
        )
    return fitting


def normalise(
    model: ScalarModel, demonstrations: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad: int
) -> None:
    """Set gain so that the ranked answers' scores have standard deviation 1, and bias so that demonstrations average 0.

    Without demonstrations the ranked answers average 0.
    """
    model.gain.fill_(1.0)
    model.bias.fill_(0.0)
    raw = torch.tensor(score_texts(model, answers, pad), dtype=torch.float64)
    zero = torch.tensor(score_texts(model, demonstrations, pad), dtype=torch.float64) if demonstrations else raw
    gain = 1.0 / max(float(raw.std(correction=0)), 1e-6)
    model.gain.fill_(gain)
    model.bias.fill_(-gain * float(zero.mean()))


def reward(config: RewardConfig, out: str | Path, *, resume: bool = False, progress: Progress | None = None) -> Run:
    """Train a reward model from comparisons; returns its run. Raises ConfigError, DataError on bad input."""
    parent = language_model_run(config.model)
    with (
        Run.start("reward", config, out, parents={"model": parent}, resume=resume, progress=progress) as run,
        threads(config.threads),
    ):
        run.pin_inputs(fingerprints(config.data, config.heldout, config.demonstrations))
        backbone, tokenizer = load_language_model(parent), Tokenizer.load(parent.path)
        tokenizer.save(run.path / "tokenizer.json")
        run.save_model_config(backbone.config)
        train, heldout = load_rankings(config, tokenizer, backbone.config.context_length, run)
        demonstrations = load_demonstrations(config, tokenizer, backbone.config.context_length, run)
        model = ScalarModel(backbone, seed=config.seed)
        # the bias cancels in every pair: its gradient is rounding noise, which Adam would blow up
        model.score.bias.requires_grad_(False)
        learner = Learner(model, OptimizerConfig.of(config), config.precision)
        longer = accuracy(heldout, [p.characters for p in heldout])
        micro = config.micro_batch or config.batch_size

        def batch(step: int) -> Iterator[RankedBatch]:
            picks = [
                train[permuted(step * config.batch_size + i, len(train), (config.seed, 2))]
                for i in range(config.batch_size)
            ]
            return (collate(picks[a : a + micro], tokenizer.pad) for a in range(0, len(picks), micro))

        def evaluate(done: int) -> None:
            if due(done, 0, config.steps):
                normalise(model, demonstrations, [t for p in train for t in p.texts], tokenizer.pad)
            scores = iter(score_texts(model, [t for p in heldout for t in p.texts], tokenizer.pad))
            right = accuracy(heldout, [[next(scores) for _ in p.texts] for p in heldout])
            run.log(done, heldout_accuracy=right.value, longer_wins=longer.value)
            if due(done, 0, config.steps):
                mean = (
                    sum(score_texts(model, demonstrations, tokenizer.pad)) / len(demonstrations)
                    if demonstrations
                    else None
                )
                run.update(accuracy=right.to_json(), longer_wins=longer.to_json(), demonstrations_mean=mean)

        fit(run, learner, lambda step: list(batch(step)), ranking_loss, config, evaluate)
    return run
