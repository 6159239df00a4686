"""Reinforcement learning: sample, score, update, record. PPO and the group methods are one loop with one method each."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from tercet.data.readers import BadRows, read_documents
from tercet.data.types import Document
from tercet.evaluation.bits_per_byte import average, bits_per_byte, by_source, limit_bytes
from tercet.inference.language_model import TransformerLM
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.actor import Actor
from tercet.posttraining.rl.group_methods import GroupMethod
from tercet.posttraining.rl.policy import Method
from tercet.posttraining.rl.ppo import PPO
from tercet.posttraining.rl.rollouts import Clock, Rollouts
from tercet.posttraining.rl.stage import GRPOConfig, PolicyConfig, PPOConfig
from tercet.pretraining.causal import build_loader
from tercet.training.load import load_reward_model
from tercet.training.loader import BatchLoader
from tercet.training.run import Run
from tercet.training.settings import shares
from tercet.training.trainer import training_steps


def reinforce(config: PPOConfig | GRPOConfig, run: Run) -> None:
    """Train a policy against rewards: E[r(x, y) − β log(π(y|x) / π_SFT(y|x))] + γ E_pretrain[log π(x)]."""
    bad = BadRows(skip=config.skip_bad_rows)
    actor = Actor(config, run.parents["model"], bad)
    text = pretraining_text(config, actor, bad) if config.gamma > 0 else None
    heldout = (
        limit_bytes(list(read_documents(config.heldout_text, bad)), config.heldout_bytes) if config.heldout_text else []
    )
    run.log_skipped(bad.count, bad.messages)
    learning = Learning(run, config, actor, method_of(config, actor, text), heldout)
    with actor.rewards:  # their processes end with the run
        for step in training_steps(run, config, learning, learning.measure):
            clock = Clock()
            sampler, version = learning.sampler(step.number)
            rollouts, metrics = actor.collect(sampler, step.number, version, clock, learning.method.resample)
            with clock("update"):
                metrics |= learning.method.update(step.number, rollouts, learning.beta)
            metrics["beta"] = learning.beta
            learning.adapt_beta(metrics, rollouts)
            step.metrics = metrics | clock.seconds


def method_of(config: PPOConfig | GRPOConfig, actor: Actor, text: BatchLoader | None) -> Method:
    """PPO, or the group method that the settings name."""
    if isinstance(config, GRPOConfig):
        return GroupMethod(config, actor.reference, text)
    judge = actor.rewards.runs.get("reward")
    return PPO(config, actor.reference, load_reward_model(judge) if judge is not None else None, text)


def pretraining_text(config: PolicyConfig, actor: Actor, bad: BadRows) -> BatchLoader:
    """The batches of the pretraining term."""
    return build_loader(
        actor.tokenizer, by_source(list(read_documents(config.pretrain_data, bad))),
        shares(config.pretrain_mixture, "pretrain_mixture"), actor.reference.config.context_length, config.pretrain_rows,
        config.seed,
    )  # fmt: skip


def adapted_beta(beta: float, kl: float, config: PolicyConfig, answers: int) -> float:
    """The adaptive controller (Ziegler et al. 2019, section 2.2): error cut to ± .2, moved by answers / horizon.

    With more answers than the horizon it moves as with as many: β changes by a fifth at most, and stays above 0.
    """
    if not config.target_kl:
        return beta
    error = min(0.2, max(-0.2, kl / config.target_kl - 1))
    return beta * (1 + error * min(1.0, answers / config.kl_horizon))


class Learning:
    """What a run of RL saves and resumes: the method, β, and the lagging copy of the policy that samples, if there is one."""

    def __init__(self, run: Run, config: PolicyConfig, actor: Actor, method: Method, heldout: list[Document]) -> None:
        self.run, self.config, self.actor, self.method, self.heldout = run, config, actor, method, heldout
        self.beta = config.beta
        self.lagging = copy.deepcopy(method.policy.model) if config.sync_every > 1 else None
        self.version = 0  # optimizer steps of the weights that sample

    @property
    def kept(self) -> Transformer:
        """The model that the run keeps."""
        return self.method.policy.kept()

    def sampler(self, number: int) -> tuple[Transformer, int]:
        """The model that samples in this step, and its version: the policy, or a copy that lags behind."""
        policy = self.method.policy
        if self.lagging is None:
            return policy.model, policy.updates
        if number % self.config.sync_every == 0:
            self.lagging.load_state_dict(policy.model.state_dict())
            self.version = policy.updates
        return self.lagging, self.version

    def adapt_beta(self, metrics: Mapping[str, float], rollouts: Rollouts) -> None:
        """Move β towards the KL that was asked for, if one was."""
        if self.config.target_kl:
            self.beta = adapted_beta(self.beta, metrics["kl"], self.config, len(rollouts.tokens))

    def measure(self, done: int) -> None:
        """Record held-out bits per byte of the policy: what alignment costs (the alignment tax)."""
        if self.heldout:
            bits = bits_per_byte(TransformerLM(self.kept, self.actor.tokenizer), self.heldout)
            self.run.log(done, **{f"heldout/{s}": e.value for s, e in bits.items()}, heldout=average(bits))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of a checkpoint by file."""
        sampler = {} if self.lagging is None else {"sampler": dict(self.lagging.state_dict())}
        return self.method.state() | sampler

    def numbers(self) -> dict[str, Any]:
        """What else a checkpoint holds."""
        return {"updates": self.method.policy.updates, "beta": self.beta, "version": self.version}

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Take over what `state` and `numbers` gave."""
        self.method.load(tensors, int(numbers["updates"]))
        self.beta, self.version = float(numbers["beta"]), int(numbers["version"])
        if self.lagging is not None:
            self.lagging.load_state_dict(tensors["sampler"])
