"""The policy in training: the parts of an update that all RL methods share. A method is an object with `update`."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.rollouts import Rollouts, logprobs
from tercet.posttraining.rl.stage import PolicyConfig
from tercet.training.learner import Learner, Objective
from tercet.training.load import adapt
from tercet.training.loader import BatchLoader, permuted
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig, schedule, total_norm
from tercet.training.packing import sequences_per_pass

PER_ACTION = (
    "entropy",
    "clip_fraction",
    "ratio",
    "sampler_gap",
)  # the objective sums them over actions, the log has their means


class Policy:
    """A language model that learns from rollouts, with minibatches, the pretraining term and EMA weights."""

    def __init__(
        self,
        config: PolicyConfig,
        reference: Transformer,
        text: BatchLoader | None = None,
        shared_critic: ValueHeadModel | None = None,
    ) -> None:
        """Start from a copy of `reference`. With a `shared_critic`, the policy is the critic's backbone."""
        self.config, self.text = config, text
        optimizer = OptimizerConfig.of(config, eps=1e-5)  # Huang et al. 2024, detail 7
        self.shared = shared_critic is not None
        self.module: Transformer | ValueHeadModel = adapt(shared_critic or copy.deepcopy(reference), config)
        self.model = self.module.backbone if isinstance(self.module, ValueHeadModel) else self.module
        self.learner: Learner[Any] = Learner(self.module, optimizer)
        weights = self.model.state_dict()
        self.ema_weights = {n: p.detach().clone() for n, p in weights.items()} if config.ema else None
        self.updates = 0

    def minibatches(self, step: int, rollouts: Rollouts) -> Iterator[list[Rollouts]]:
        """Yield the micro-batches of every minibatch of every epoch, in an order that depends on seed, step and epoch.

        Groups are not split. Stale rollouts are weighted by the truncated ratio π_old / π_sampler. Minibatches without
        any action to learn from are left out.
        """
        config, k = self.config, self.config.group_size
        if self.stale(rollouts):
            rollouts = truncated(rollouts, config.importance_cap)
        groups = len(rollouts.tokens) // k
        size = -(-groups // config.minibatches)
        group_tokens = rollouts.tokens.shape[1] + (k - 1) * float(rollouts.lengths().double().mean())
        micro = config.micro_batch or k * sequences_per_pass(0, group_tokens)
        for epoch in range(config.epochs):
            order = [permuted(i, groups, (config.seed, 4, step, epoch)) for i in range(groups)]
            for a in range(0, groups, size):
                rows = torch.tensor([g * k + i for g in order[a : a + size] for i in range(k)])
                batches = list(rollouts.rows(rows).split(micro))
                if sum(b.count for b in batches):
                    yield batches

    def stale(self, rollouts: Rollouts) -> bool:
        """Return whether any of the rollouts were sampled from older weights."""
        return bool((rollouts.version < self.updates).any())

    def with_old(self, rollouts: Rollouts) -> Rollouts:
        """Fill in log π_old if it is not the policy in training (several updates) or not the sampler (stale)."""
        if not self.stale(rollouts) and self.config.epochs * self.config.minibatches == 1:
            return rollouts
        return replace(rollouts, logp=logprobs(self.model, rollouts, self.config.temperature))

    def per_action(self, metrics: dict[str, float]) -> dict[str, float]:
        """Return an objective's metrics with the sums over actions divided by the number of actions."""
        actions = metrics.pop("actions", 1.0)
        return metrics | {n: metrics[n] / actions for n in PER_ACTION if n in metrics}

    def on_policy(self, objective: Objective[Rollouts]) -> Objective[Rollouts]:
        """Return the objective on the learner's model; with a shared critic, the policy is that model's backbone."""
        return (lambda module, batch: objective(module.backbone, batch)) if self.shared else objective

    def read_text(self) -> dict[str, float]:
        """Add the gradients of the pretraining term, γ times the loss on raw text; returns metrics."""
        if self.text is None:
            return {}
        before = [g.clone() for g in self.learner.optimizer.gradients()]
        read = (lambda m, b: next_token(m.backbone, b)) if self.shared else next_token
        batch = [self.text.batch(self.updates)]
        loss = self.learner.forward_backward(batch, read, coef=self.config.gamma)["loss"]
        added = total_norm(a - b for a, b in zip(self.learner.optimizer.gradients(), before))
        return {"pretrain_loss": loss, "ptx_gradient_ratio": added / max(total_norm(before), 1e-12)}

    def step(self, number: int, done: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """Take an optimizer step in training step `number`; returns `metrics` updated with this minibatch's, `done`.

        So the last minibatch's metrics are logged. The ratio of the first minibatch is logged too: before any
        optimizer step it must be 1, except for rounding.
        """
        norm = self.learner.optim_step(self.scale(number))
        self.updates += 1
        if self.ema_weights is not None:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.ema_weights[name].lerp_(value, 1 - self.config.ema)
        first = {}
        if "ratio" in done and "first_ratio" not in metrics:
            first = {"first_ratio": done["ratio"], "first_sampler_gap": done["sampler_gap"]}
        return metrics | first | done | {"grad_norm": norm}

    def ema_model(self) -> Transformer:
        """Return a copy of the model with the EMA weights, or the model itself if there is no average."""
        if self.ema_weights is None:
            return self.model
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.ema_weights)
        return model

    def scale(self, step: int) -> float:
        """Return the learning-rate multiplier of this step."""
        return schedule(step, self.config.steps, self.config.warmup, self.config.cooldown)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return a checkpoint's tensors by file. Children of the run load "model", the EMA weights if there are any."""
        learner = self.learner.state()
        model = dict(self.model.state_dict()) if self.ema_weights is None else self.ema_weights
        out = {"model": model, "optimizer": learner["optimizer"]}
        if self.shared or self.ema_weights is not None:
            out["policy"] = learner["model"]
        return out

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned."""
        self.learner.load({**tensors, "model": tensors.get("policy", tensors["model"])}, {"step": updates})
        self.updates = updates
        if self.ema_weights is not None:
            self.ema_weights = tensors["model"]


def truncated(rollouts: Rollouts, cap: float) -> Rollouts:
    """Weight every action by min(π_old / π_sampler, cap), which is truncated importance sampling.

    Source: Espeholt et al. 2018; Yao et al. 2025. Raises ValueError if log π_old is not filled in.
    """
    if rollouts.logp is None:
        raise ValueError("the rollouts have no log-probabilities of π_old; fill them in with Policy.with_old")
    factor = (rollouts.logp - rollouts.behaviour).exp().clamp(max=cap) * rollouts.action_mask
    return replace(rollouts, weights=factor if rollouts.weights is None else rollouts.weights * factor)


class Method(Protocol):
    """An RL method as `reinforce` uses it: PPO or a group method."""

    policy: Policy
    resample: int  # extra rounds of prompts to replace groups whose answers all have the same score

    def update(self, step: int, rollouts: Rollouts, beta: float) -> dict[str, float]:
        """Learn from the rollouts of a step with KL weight `beta`; returns metrics."""
        ...

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint by file."""
        ...

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned."""
        ...
