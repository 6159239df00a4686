"""A small world for the known curves: text from a random source, a gold reward, labelers, proxies, and one PPO run.

Words follow one another by a fixed random table (a Markov source). Text is such words; a demonstration is the same after
the token ASK. The base policy is a two-layer transformer pretrained on both. A prompt is ASK and three words, an answer
at most 12 tokens with its end. The gold reward is another, wider transformer with random weights, which nobody learns
from directly: labelers compare two answers by it, with noise, and proxies are trained on their comparisons.
"""

from __future__ import annotations

import copy
from collections import Counter
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tercet.generation.sampler import Completion, SamplingParams
from tercet.model.config import ModelConfig
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.ppo import PPO
from tercet.posttraining.rankings import Ranked
from tercet.posttraining.reward import collate, normalise, ranking_loss, score_texts
from tercet.posttraining.rl_config import PPOConfig
from tercet.posttraining.rollouts import Clock, explore, sample
from tercet.training.batch import Rows, pack_whole
from tercet.training.feed import Feed, permuted
from tercet.training.learner import Learner
from tercet.training.objectives import mean_loss, next_token
from tercet.training.optim import OptimizerConfig, schedule

END, ASK, WORDS = 0, 1, 30
import os
ALPHA=float(os.environ.get('ALPHA','.2'))
VOCABULARY = 2 + WORDS
LONGEST, SHORTEST = 12, 5  # tokens of an answer, its end included
MISSING_END = -1.0
PARAMS = SamplingParams(LONGEST, 1.0, stop_ids=(END,))
Ids = tuple[int, ...]
Ints = NDArray[np.int64]


def shape(size: int, layers: int) -> ModelConfig:
    """A model of `layers` layers, `size` wide."""
    return ModelConfig(
        vocab_size=VOCABULARY, context_length=24, hidden_size=size, num_layers=layers, num_heads=size // 16,
        num_kv_heads=size // 16, head_dim=16, intermediate_size=2 * size,
    )  # fmt: skip


class Source:
    """Which word follows which: a random table, the same for text and demonstrations."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.chances = self.rng.dirichlet(np.full(WORDS, ALPHA), WORDS)
        self.table = np.cumsum(self.chances, axis=1)

    def words(self, texts: int, length: int) -> Ints:
        """[texts, length] word ids."""
        out = np.empty((texts, length), dtype=np.int64)
        out[:, 0] = self.rng.integers(WORDS, size=texts)
        for t in range(1, length):
            draw = self.rng.random((texts, 1))
            out[:, t] = (draw > self.table[out[:, t - 1]]).sum(1).clip(max=WORDS - 1)
        return out + 2

    def text(self, texts: int) -> Rows:
        """Texts of 8 to 15 words and an end."""
        lengths = self.rng.integers(8, 16, size=texts)
        ids = [[*map(int, row[:n]), END] for row, n in zip(self.words(texts, 15), lengths)]
        return pack_whole([(x, [1.0] * len(x)) for x in ids], 16, END)

    def demonstrations(self, texts: int) -> Rows:
        """ASK, three words of prompt, and an answer."""
        lengths = self.rng.integers(SHORTEST - 1, LONGEST, size=texts)
        ids = [[ASK, *map(int, row[: 3 + n]), END] for row, n in zip(self.words(texts, 2 + LONGEST), lengths)]
        return pack_whole([(x, [1.0] * len(x)) for x in ids], 16, END)

    def fluency(self, ids: Sequence[int]) -> float:
        """Mean log-probability of each word after the one before it; what is no word counts as a very rare one."""
        words = np.array(ids) - 2
        before, after = words[:-1], words[1:]
        known = (before >= 0) & (after >= 0)
        chance = np.where(known, self.chances[before.clip(0), after.clip(0)], 0.0)
        return float(np.log(chance + 2e-3).mean())

    def prompts(self, count: int) -> list[Ids]:
        """ASK and three words."""
        return [(ASK, *map(int, row)) for row in self.words(count, 3)]


def pretrained(source: Source, seed: int, steps: int = 400) -> Transformer:
    """The base policy: equal parts of text and demonstrations."""
    rows = {"text": source.text(6000), "demonstrations": source.demonstrations(6000)}
    feed = Feed(rows, {"text": 0.5, "demonstrations": 0.5}, 48, seed)
    learner = Learner(Transformer(shape(48, 2), seed), OptimizerConfig(lr=4e-3))
    for step in range(steps):
        learner.forward_backward([feed.batch(step)], next_token)
        learner.optim_step(schedule(step, steps, 10, 0.4))
    return learner.model


def random_judge(seed: int, scale: float) -> ScalarModel:
    """A transformer whose random weights are so large that its number depends on words, order and their combinations."""
    backbone = Transformer(shape(64, 3), seed)
    generator = torch.Generator().manual_seed(10_000 + seed)
    with torch.no_grad():
        for p in backbone.parameters():
            if p.dim() == 2:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return ScalarModel(backbone, seed=seed)


@dataclass
class World:
    """Everything of one seed: the source, the base policy, the gold reward, labelled comparisons, held-out text."""

    seed: int
    scale: float = 0.15
    noise: float = 0.3
    omega: float = 1.0

    def __post_init__(self) -> None:
        self.source = Source(self.seed)
        self.base = pretrained(self.source, self.seed, 250)
        self.gold_model = random_judge(self.seed, self.scale)
        self.heldout = self.source.text(1000)
        self.pretraining = Feed({"text": self.source.text(4000)}, None, 32, self.seed)
        prompts, done = self.draw(self.base, 2000, 7)
        self.answers = [t for t, c in zip(texts(prompts, done), done) if c.tokens[-1] == END]
        self.normalised(self.gold_model)
        self.prompts = self.source.prompts(4000)
        self.labels = np.random.default_rng([self.seed, 5])

    def draw(self, model: Transformer, count: int, key: int, each: int = 1) -> tuple[list[Ids], list[Completion]]:
        """`count` prompts, `each` answers to every one."""
        prompts = [p for p in self.source.prompts(count) for _ in range(each)]
        return prompts, sample(
            model, prompts, PARAMS, [(self.seed * 100 + key) * 1_000_003 + i for i in range(len(prompts))]
        )

    def normalised(self, model: ScalarModel) -> ScalarModel:
        """Mean 0 and standard deviation 1 over answers of the base policy, as the reward stage does it."""
        normalise(model, [], score_texts(model, self.answers, END))
        return model

    def gold(self, prompts: Sequence[Ids], done: Sequence[Completion]) -> list[float]:
        scores = np.array(judged(self.gold_model, prompts, done))
        fluent = np.array([-sum(n*(n-1)/2 for t,n in Counter(c.tokens).items()) for c in done])
        if not hasattr(self, "zero"):
            self.zero, self.spread = fluent.mean(), fluent.std()
            nat=(fluent-self.zero)/self.spread; self.m=nat.mean(); self.ss=nat.std()
            self.s2 = (scores + self.omega*(nat-self.m)/self.ss).std() if 1 else (scores + self.omega * (fluent - self.zero) / self.spread).std()
        nat=(fluent-self.zero)/self.spread
        mixed = (scores + self.omega*(nat-self.m)/self.ss)/self.s2 if 1 else (scores + self.omega * (fluent - self.zero) / self.spread)/self.s2
        return np.where([c.tokens[-1] == END for c in done], mixed, MISSING_END).tolist()

    def comparisons(self, count: int, key: int = 8) -> list[Ranked]:
        """Pairs of answers of the base policy; a labeler prefers by gold plus noise."""
        prompts, done = self.draw(self.base, count, key, each=2)
        gold = np.array(self.gold(prompts, done)).reshape(-1, 2)
        seen = gold + self.noise * self.labels.standard_normal(gold.shape)
        out = []
        for i in range(count):
            answers = tuple(tuple(c.tokens) for c in done[2 * i : 2 * i + 2])
            ranks = (1, 2) if seen[i, 0] > seen[i, 1] else (2, 1)
            out.append(Ranked(prompts[2 * i], answers, tuple(map(len, answers)), ranks, tuple(gold[i])))
        return out

    def proxy(self, data: Sequence[Ranked], steps: int, lr: float = 2e-3, batch: int = 32) -> ScalarModel:
        model = ScalarModel(copy.deepcopy(self.base), seed=self.seed)
        model.score.bias.requires_grad_(False)
        learner = Learner(model, OptimizerConfig(lr=lr, muon_lr=0.0, weight_decay=0.1))
        for step in range(steps):
            picks = [data[permuted(step * batch + i, len(data), (self.seed, 2))] for i in range(batch)]
            learner.forward_backward([collate(picks)], ranking_loss)
            learner.optim_step(schedule(step, steps, 10, 0.8))
        return self.normalised(model)


def texts(prompts: Sequence[Ids], done: Sequence[Completion]) -> list[Ids]:
    return [(*p, *c.tokens) for p, c in zip(prompts, done)]


def judged(model: ScalarModel, prompts: Sequence[Ids], done: Sequence[Completion]) -> list[float]:
    """Scores of finished answers; a missing end replaces the score."""
    scores = score_texts(model, texts(prompts, done), END)
    return [s if c.tokens[-1] == END else MISSING_END for s, c in zip(scores, done)]


@dataclass(frozen=True)
class Point:
    """A step's rollouts, measured before the policy learns from them: means over answers."""

    kl: float  # nats per answer, sampled: log π − log π_base
    proxy: float
    gold: float


def ppo_config(**changes: Any) -> PPOConfig:
    """PPO as the curves use it: no run directory, so the names of runs are placeholders."""
    given: dict[str, Any] = {
        "model": "-", "reward": ("-",), "prompts": ("-",), "beta": 0.0, "gamma": 0.0, "steps": 150, "batch_size": 64, "lr": 2e-3, "muon_lr": 0.0,
        "critic_lr": 2e-3, "warmup": 5, "max_new_tokens": LONGEST, "missing_eos_score": MISSING_END, "threads": 1,
    }  # fmt: skip
    given |= {"pretrain_data": ("-",)} if changes.get("gamma") else {}
    return PPOConfig(**{**given, **changes})


def run_ppo(world: World, judge: ScalarModel, config: PPOConfig, key: int) -> tuple[Transformer, list[Point]]:
    """Train a policy from the base against `judge`; returns it and what every step measured."""
    method = PPO(config, world.base, judge, world.pretraining if config.gamma else None)
    points = []
    rng = np.random.default_rng([world.seed, key])
    for step in range(config.steps):
        prompts = [world.prompts[i] for i in rng.integers(len(world.prompts), size=config.batch_size)]
        seeds = rng.integers(2**62, size=config.batch_size).tolist()
        rollouts, done = explore(
            method.policy.model, world.base, prompts, PARAMS, seeds, lambda numbers, done: score_texts(judge, texts([prompts[i] for i in numbers], done), END),
            group_size=1, end_id=END, missing_eos_score=MISSING_END, pad=END, version=method.policy.updates, clock=Clock(),
        )  # fmt: skip
        gold = world.gold(prompts, done)
        points.append(Point(float(rollouts.kl().sum(1).mean()), float(rollouts.rewards.mean()), float(np.mean(gold))))
        method.update(step, rollouts, config.beta)
    return method.policy.model, points
