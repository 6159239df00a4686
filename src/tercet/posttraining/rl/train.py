"""The RL loop: sample, score, update, record. PPO and the group methods run in this one loop."""

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
    heldout: list[Document] = []
    if config.heldout_text:
        heldout = limit_bytes(list(read_documents(config.heldout_text, bad)), config.heldout_bytes)
    run.log_skipped(bad.count, bad.messages)
    state = RLState(run, config, actor, method_of(config, actor, text), heldout)
    with actor.rewards:  # ends the child processes with the run
        for step in training_steps(run, config, state, state.evaluate):
            clock = Clock()
            sampler, version = state.sampler(step.number)
            rollouts, metrics = actor.collect(sampler, step.number, version, clock, state.method.resample)
            with clock("update"):
                metrics |= state.method.update(step.number, rollouts, state.beta)
            metrics["beta"] = state.beta
            state.adapt_beta(metrics, rollouts)
            step.metrics = metrics | clock.seconds


def method_of(config: PPOConfig | GRPOConfig, actor: Actor, text: BatchLoader | None) -> Method:
    """Return PPO, or the group method that the settings name."""
    if isinstance(config, GRPOConfig):
        return GroupMethod(config, actor.reference, text)
    run = actor.rewards.runs.get("reward")
    return PPO(config, actor.reference, load_reward_model(run) if run is not None else None, text)


def pretraining_text(config: PolicyConfig, actor: Actor, bad: BadRows) -> BatchLoader:
    """Return the data loader of the pretraining term."""
    sources = by_source(list(read_documents(config.pretrain_data, bad)))
    mixture, length = shares(config.pretrain_mixture, "--pretrain-mixture"), actor.reference.config.context_length
    return build_loader(actor.tokenizer, sources, mixture, length, config.pretrain_rows, config.seed)


def adapted_beta(beta: float, kl: float, config: PolicyConfig, answers: int) -> float:
    """Return the next β of the adaptive KL controller (Ziegler et al. 2019, section 2.2).

    The relative error of the KL is clipped to ±0.2 and multiplied by answers / horizon, at most 1. So β changes by at
    most a fifth per step, and stays above 0.
    """
    if not config.target_kl:
        return beta
    error = min(0.2, max(-0.2, kl / config.target_kl - 1))
    return beta * (1 + error * min(1.0, answers / config.kl_horizon))


class RLState:
    """The state that an RL run saves and resumes: method, β, and, if there is one, the sampler's older policy."""

    def __init__(self, run: Run, config: PolicyConfig, actor: Actor, method: Method, heldout: list[Document]) -> None:
        self.run, self.config, self.actor, self.method, self.heldout = run, config, actor, method, heldout
        self.beta = config.beta
        self.lagging = copy.deepcopy(method.policy.model) if config.sync_every > 1 else None
        self.version = 0  # optimizer steps of the weights that sample

    @property
    def kept_model(self) -> Transformer:
        """The model that the run saves."""
        return self.method.policy.ema_model()

    def sampler(self, number: int) -> tuple[Transformer, int]:
        """Return the model that samples in this step (the policy or its older copy), and its version."""
        policy = self.method.policy
        if self.lagging is None:
            return policy.model, policy.updates
        if number % self.config.sync_every == 0:
            self.lagging.load_state_dict(policy.model.state_dict())
            self.version = policy.updates
        return self.lagging, self.version

    def adapt_beta(self, metrics: Mapping[str, float], rollouts: Rollouts) -> None:
        """Adapt β so that the KL moves towards --target-kl, if it is set."""
        if self.config.target_kl:
            self.beta = adapted_beta(self.beta, metrics["kl"], self.config, len(rollouts.tokens))

    def evaluate(self, done: int) -> None:
        """Log the policy's bits per byte on held-out text. Their rise is the alignment tax."""
        if self.heldout:
            bits = bits_per_byte(TransformerLM(self.kept_model, self.actor.tokenizer), self.heldout)
            self.run.log(done, **{f"heldout/{s}": e.value for s, e in bits.items()}, heldout=average(bits))

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint by file."""
        sampler = {} if self.lagging is None else {"sampler": dict(self.lagging.state_dict())}
        return self.method.state() | sampler

    def numbers(self) -> dict[str, Any]:
        """Return the numbers of a checkpoint."""
        return {"updates": self.method.policy.updates, "beta": self.beta, "version": self.version}

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Restore what `state` and `numbers` returned."""
        self.method.load(tensors, int(numbers["updates"]))
        self.beta, self.version = float(numbers["beta"]), int(numbers["version"])
        if self.lagging is not None:
            self.lagging.load_state_dict(tensors["sampler"])
