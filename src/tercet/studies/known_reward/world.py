"""A small world with a known reward: text from a random source, a gold reward, labelers, proxies, and one PPO run.

Words follow one another by a fixed random table (a Markov source). Text is such words; a demonstration is the same
after the token ASK. The base policy is a two-layer transformer pretrained on both. A prompt is ASK and three words. An
answer has at most 12 tokens with its end.

The gold reward has two parts, both functions of the whole answer: a wider transformer with random weights, and a
penalty of one point for every two equal words. Nothing learns from it directly. Labelers compare two answers of the
base policy by it, with noise, and proxies (reward models) are trained on their comparisons. The base policy repeats
little, so a proxy needs much data to learn what repetition costs. A policy that is optimised for a proxy begins to
repeat.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tercet.inference.generate import Completion, SamplingParams, generate
from tercet.inference.reward_scores import score_texts
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, normalise_rewards, ranking_loss
from tercet.posttraining.rl.ppo import PPO
from tercet.posttraining.rl.rollouts import Clock, Rollouts, generate_rollouts
from tercet.posttraining.rl.stage import PPOConfig
from tercet.training.learner import Learner
from tercet.training.loader import BatchLoader, permuted
from tercet.training.losses import mean_loss, next_token
from tercet.training.optim import OptimizerConfig, schedule
from tercet.training.packing import PackedSequences, pack_whole

END, ASK, WORDS = 0, 1, 20
VOCABULARY = 2 + WORDS
LONGEST, SHORTEST = 12, 5  # tokens of an answer, its end included
MISSING_END = -1.0
PARAMS = SamplingParams(LONGEST, 1.0, stop_ids=(END,))
SIZES = (125, 1000, 8000)  # comparisons that the proxies learn from: the first ones of one list
REPETITION = 1.0  # weight of the penalty for repetition; that of the random transformer is 1
NOISE = 0.3  # standard deviation of what a labeler adds to the gold score of an answer
Ids = tuple[int, ...]
Ints = NDArray[np.int64]


def shape(size: int, layers: int) -> ModelConfig:
    """Return the shape of a model with `layers` layers of width `size`."""
    heads = size // 16
    return ModelConfig(VOCABULARY, 24, size, layers, heads, heads, head_dim=16, intermediate_size=2 * size)


class Source:
    """A random table of which word follows which, the same for text and demonstrations."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng([seed, 1])
        self.table = np.cumsum(self.rng.dirichlet(np.full(WORDS, 0.5), WORDS), axis=1)

    def words(self, texts: int, length: int) -> Ints:
        """Draw word ids [texts, length]."""
        out = np.empty((texts, length), dtype=np.int64)
        out[:, 0] = self.rng.integers(WORDS, size=texts)
        for t in range(1, length):
            draw = self.rng.random((texts, 1))
            out[:, t] = (draw > self.table[out[:, t - 1]]).sum(1).clip(max=WORDS - 1)
        return out + 2

    def text(self, texts: int) -> PackedSequences:
        """Draw texts of 8 to 15 words and an end, packed."""
        lengths = self.rng.integers(8, 16, size=texts)
        ids = [[*map(int, row[:n]), END] for row, n in zip(self.words(texts, 15), lengths)]
        return pack_whole([(x, [1.0] * len(x)) for x in ids], 16, END)

    def demonstrations(self, texts: int) -> PackedSequences:
        """Draw demonstrations: ASK, three words of prompt, an answer and its end, packed."""
        lengths = self.rng.integers(SHORTEST - 1, LONGEST, size=texts)
        ids = [[ASK, *map(int, row[: 3 + n]), END] for row, n in zip(self.words(texts, 2 + LONGEST), lengths)]
        return pack_whole([(x, [1.0] * len(x)) for x in ids], 16, END)

    def prompts(self, count: int) -> list[Ids]:
        """Draw prompts: ASK and three words."""
        return [(ASK, *map(int, row)) for row in self.words(count, 3)]


def pretrained(source: Source, seed: int, steps: int = 250) -> Transformer:
    """Train the base policy on equal parts of text and demonstrations."""
    rows = {"text": source.text(6000), "demonstrations": source.demonstrations(6000)}
    feed = BatchLoader(rows, {"text": 0.5, "demonstrations": 0.5}, 48, seed)
    learner = Learner(Transformer(shape(48, 2), seed), OptimizerConfig(lr=4e-3))
    for step in range(steps):
        learner.forward_backward([feed.batch(step)], next_token)
        learner.optim_step(schedule(step, steps, 10, 0.4))
    return learner.model


def random_reward(seed: int, scale: float = 0.05) -> ValueHeadModel:
    """Return a reward model with random weights, whose score depends on the words, their order and how they combine."""
    backbone = Transformer(shape(64, 3), seed)
    generator = torch.Generator().manual_seed(10_000 + seed)
    with torch.no_grad():
        for p in backbone.parameters():
            if p.dim() == 2:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return ValueHeadModel(backbone, seed=seed)


def joined(prompts: Sequence[Ids], done: Sequence[Completion]) -> list[Ids]:
    """Join each prompt with its answer."""
    return [(*p, *c.tokens) for p, c in zip(prompts, done)]


def repeated(answer: Sequence[int]) -> int:
    """Count the pairs of equal words in an answer."""
    return sum(math.comb(n, 2) for n in Counter(answer).values())


class World:
    """The world of one seed: source, base policy, gold reward, comparisons, proxies, held-out text."""

    def __init__(self, seed: int) -> None:
        self.seed, self.source = seed, Source(seed)
        self.base = pretrained(self.source, seed)
        self.heldout = self.source.text(1000)
        self.pretraining = BatchLoader({"text": self.source.text(4000)}, None, 32, seed)
        self.base_loss = mean_loss(self.base, self.heldout, 64)
        self.prompts, self.fresh = self.source.prompts(4000), self.source.prompts(1024)
        self._random = random_reward(seed)
        prompts, done = self.draw(self.prompts[:2000], 1)
        self.usual = [t for t, c in zip(joined(prompts, done), done) if c.tokens[-1] == END]
        self.normalised(self._random)
        self._parts = (0.0, 1.0, 1.0)  # mean and standard deviation of repetition, standard deviation of the sum
        pairs = np.array([repeated(t[4:]) for t in self.usual], dtype=np.float64)
        self._parts = (float(pairs.mean()), float(pairs.std()), 1.0)
        scores = self._gold(self.usual, [t[4:] for t in self.usual])
        self._parts = (float(pairs.mean()), float(pairs.std()), float(scores.std()))

    def draw(self, prompts: Sequence[Ids], key: int, each: int = 1) -> tuple[list[Ids], list[Completion]]:
        """Sample `each` answers of the base policy to every prompt; return the prompts, repeated, and the answers."""
        every = [p for p in prompts for _ in range(each)]
        first = (self.seed * 100 + key) * 1_000_003
        seeds = range(first, first + len(every))
        return every, generate(self.base, every, PARAMS, seeds, batch_size=128)

    def normalised(self, model: ValueHeadModel) -> ValueHeadModel:
        """Scale a reward model to mean 0 and standard deviation 1 over answers of the base policy; return it."""
        normalise_rewards(model, [], score_texts(model, self.usual, END))
        return model

    def _gold(self, texts: Sequence[Ids], answers: Sequence[Sequence[int]]) -> NDArray[np.float64]:
        mean, std, spread = self._parts
        penalty = (np.array([repeated(a) for a in answers]) - mean) / std
        return (np.array(score_texts(self._random, texts, END)) - REPETITION * penalty) / spread

    def gold(self, prompts: Sequence[Ids], done: Sequence[Completion]) -> NDArray[np.float64]:
        """Return the gold reward of every answer: mean 0 and standard deviation 1 for the base policy.

        An answer without an end has MISSING_END.
        """
        scores = self._gold(joined(prompts, done), [c.tokens for c in done])
        return np.where([c.tokens[-1] == END for c in done], scores, MISSING_END)

    def proxy_scores(
        self, proxy: ValueHeadModel, prompts: Sequence[Ids], done: Sequence[Completion]
    ) -> NDArray[np.float64]:
        """Return a proxy's scores, with the same rule for a missing end."""
        scores = score_texts(proxy, joined(prompts, done), END)
        return np.where([c.tokens[-1] == END for c in done], scores, MISSING_END)

    @cached_property
    def comparisons(self) -> list[Ranked]:
        """Pairs of the base policy's answers; the labeler prefers the one with the higher gold reward plus noise."""
        prompts, done = self.draw(self.source.prompts(max(SIZES)), 2, each=2)
        gold = self.gold(prompts, done)
        seen = gold + NOISE * np.random.default_rng([self.seed, 5]).standard_normal(len(gold))
        out = []
        for i in range(0, len(done), 2):
            answers = tuple(tuple(c.tokens) for c in done[i : i + 2])
            ranks = (1, 2) if seen[i] > seen[i + 1] else (2, 1)
            out.append(Ranked(prompts[i], answers, tuple(map(len, answers)), ranks, ()))
        return out

    @cached_property
    def proxies(self) -> dict[int, ValueHeadModel]:
        """The proxy of every size, trained from the base policy by the reward stage's loss and then normalised."""
        return {n: self._proxy(self.comparisons[:n], round(4 * n**0.5)) for n in SIZES}

    def _proxy(self, data: Sequence[Ranked], steps: int) -> ValueHeadModel:
        model = ValueHeadModel(copy.deepcopy(self.base), seed=self.seed)
        model.score.bias.requires_grad_(False)
        learner = Learner(model, OptimizerConfig(lr=2e-3, muon_lr=0.0, weight_decay=0.1))
        for step in range(steps):
            picks = [data[permuted(step * 32 + i, len(data), (self.seed, 2))] for i in range(32)]
            learner.forward_backward([collate(picks)], ranking_loss)
            learner.optim_step(schedule(step, steps, 10, 0.8))
        return self.normalised(model)

    def agreement(self) -> dict[int, float]:
        """Return the correlation of each proxy with the gold reward, over fresh answers of the base policy."""
        prompts, done = self.draw(self.fresh, 3)
        gold = self.gold(prompts, done)
        return {n: float(np.corrcoef(gold, self.proxy_scores(p, prompts, done))[0, 1]) for n, p in self.proxies.items()}

    def rollouts(
        self,
        policy: Transformer,
        proxy: ValueHeadModel,
        prompts: Sequence[Ids],
        seeds: Sequence[int],
        version: int = 0,
    ) -> tuple[Rollouts, list[Completion]]:
        """Generate one answer of `policy` to each prompt, scored by `proxy`, with the base policy as reference."""

        def score(_: Sequence[int], done: Sequence[Completion]) -> list[float]:
            return score_texts(proxy, joined(prompts, done), END)

        end: dict[str, Any] = {"end_id": END, "missing_eos_score": MISSING_END, "pad": END}
        return generate_rollouts(
            policy, self.base, prompts, PARAMS, seeds, score, group_size=1, version=version, clock=Clock(), **end
        )

    def measure(self, policy: Transformer, proxy: ValueHeadModel) -> dict[str, float]:
        """Measure a policy on 1,024 fresh prompts: KL in nats, proxy and gold reward, and the alignment tax.

        The tax is the loss on held-out text above that of the base policy, in nats per token.
        """
        rollouts, done = self.rollouts(policy, proxy, self.fresh, range(len(self.fresh)))
        return {
            "kl": float(rollouts.kl().sum(1).mean()),
            "proxy": float(rollouts.rewards.mean()),
            "gold": float(self.gold(self.fresh, done).mean()),
            "tax": mean_loss(policy, self.heldout, 64) - self.base_loss,
        }


PPO_SETTINGS: dict[str, Any] = {
    "model": "-",  # no run folders are read or written: their names are placeholders
    "reward": ("-",),
    "prompts": ("-",),
    "beta": 0.0,
    "gamma": 0.0,
    "steps": 72,
    "batch_size": 64,
    "lr": 2.5e-3,
    "muon_lr": 0.0,
    "critic_lr": 2.5e-3,
    "warmup": 5,
    "max_new_tokens": LONGEST,
    "missing_eos_score": MISSING_END,
    "threads": 1,
}


def ppo_config(**changes: Any) -> PPOConfig:
    """Return the settings of PPO in these worlds, with `changes`."""
    pretraining = {"pretrain_data": ("-",)} if changes.get("gamma") else {}
    return PPOConfig(**{**PPO_SETTINGS, **pretraining, **changes})


def run_ppo(
    world: World, proxy: ValueHeadModel, config: PPOConfig, watch: bool = False
) -> tuple[Transformer, list[dict[str, float]]]:
    """Train a policy from the base policy against `proxy`; return it and, with `watch`, each step's scores."""
    method = PPO(config, world.base, proxy, world.pretraining if config.gamma else None)
    points, rng = [], np.random.default_rng([world.seed, 9])
    for step in range(config.steps):
        prompts = [world.prompts[i] for i in rng.integers(len(world.prompts), size=config.batch_size)]
        seeds = rng.integers(2**62, size=config.batch_size).tolist()
        rollouts, done = world.rollouts(method.policy.model, proxy, prompts, seeds, method.policy.updates)
        if watch:  # before the policy learns from them
            row = {"kl": float(rollouts.kl().sum(1).mean())}
            for name, scores in (("gold", world.gold(prompts, done)), ("proxy", rollouts.rewards.numpy())):
                row |= {name: float(scores.mean()), f"{name}_error": float(scores.std() / len(scores) ** 0.5)}
            points.append(row)
        method.update(step, rollouts, config.beta)
    return method.policy.model, points
