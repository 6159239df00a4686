"""The policy that learns: what every method of RL shares of an update. A method is an object with `update`."""

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

PER_ACTION = ("entropy", "clip_fraction", "ratio", "sampler_gap")  # summed by the objective, a mean in the log


class Policy:
    """A language model that learns from rollouts: minibatches, the pretraining term, and the average of its weights."""

    def __init__(self, config: PolicyConfig, reference: Transformer, text: BatchLoader | None = None, head: ValueHeadModel | None = None) -> None:  # fmt: skip
        """Start from `reference`, which stays as it is. With a `head` of the critic, its trunk is the policy."""
        self.config, self.text = config, text
        optimizer = OptimizerConfig.of(config, eps=1e-5)  # Huang et al. 2024, detail 7
        self.shared = head is not None
        self.module: Transformer | ValueHeadModel = adapt(head or copy.deepcopy(reference), config)
        self.model = self.module.backbone if isinstance(self.module, ValueHeadModel) else self.module
        self.learner: Learner[Any] = Learner(self.module, optimizer)
        self.average = {n: p.detach().clone() for n, p in self.model.state_dict().items()} if config.ema else None
        self.updates = 0

    def minibatches(self, step: int, rollouts: Rollouts) -> Iterator[list[Rollouts]]:
        """Yield the micro-batches of every epoch's minibatches. Whole groups stay together; the order is the seed's.

        Stale rollouts count by π_old / π_sampler, cut. A minibatch with nothing to learn from is left out.
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
        """Whether they were sampled from older weights."""
        return bool((rollouts.version < self.updates).any())

    def with_old(self, rollouts: Rollouts) -> Rollouts:
        """Fill in π_old where it is not what is trained (several updates) or not what was sampled from (stale)."""
        if not self.stale(rollouts) and self.config.epochs * self.config.minibatches == 1:
            return rollouts
        return replace(rollouts, logp=logprobs(self.model, rollouts, self.config.temperature))

    def per_action(self, metrics: dict[str, float]) -> dict[str, float]:
        """Metrics of an objective as they are logged: sums over actions become means."""
        actions = metrics.pop("actions", 1.0)
        return metrics | {n: metrics[n] / actions for n in PER_ACTION if n in metrics}

    def on_policy(self, objective: Objective[Rollouts]) -> Objective[Rollouts]:
        """The objective on what the learner holds: with a shared critic the policy is only its trunk."""
        return (lambda module, batch: objective(module.backbone, batch)) if self.shared else objective

    def read_text(self) -> dict[str, float]:
        """Add the gradients of the pretraining term, γ times the loss on raw text; what is logged of it."""
        if self.text is None:
            return {}
        before = [g.clone() for g in self.learner.optimizer.gradients()]
        read = (lambda m, b: next_token(m.backbone, b)) if self.shared else next_token
        batch = [self.text.batch(self.updates)]
        loss = self.learner.forward_backward(batch, read, coef=self.config.gamma)["loss"]
        added = total_norm(a - b for a, b in zip(self.learner.optimizer.gradients(), before))
        return {"pretrain_loss": loss, "ptx_gradient_ratio": added / max(total_norm(before), 1e-12)}

    def step(self, number: int, done: dict[str, float], metrics: dict[str, float]) -> dict[str, float]:
        """One optimizer step in training step `number`; returns `metrics` with what is logged of this minibatch, `done`.

        The last minibatch's metrics are logged, and of the first the ratio: before any step it is 1 but for rounding.
        """
        norm = self.learner.optim_step(self.scale(number))
        self.updates += 1
        if self.average is not None:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.average[name].lerp_(value, 1 - self.config.ema)
        first = {}
        if "ratio" in done and "first_ratio" not in metrics:
            first = {"first_ratio": done["ratio"], "first_sampler_gap": done["sampler_gap"]}
        return metrics | first | done | {"grad_norm": norm}

    def kept(self) -> Transformer:
        """The model that is kept: of the averaged weights, where there is an average."""
        if self.average is None:
            return self.model
        kept = copy.deepcopy(self.model)
        kept.load_state_dict(self.average)
        return kept

    def scale(self, step: int) -> float:
        """The learning-rate multiplier of this step."""
        return schedule(step, self.config.steps, self.config.warmup, self.config.cooldown)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds; "model" is what the run's children load: the average where there is one."""
        learner = self.learner.state()
        model = dict(self.model.state_dict())
        out = {"model": model if self.average is None else self.average, "optimizer": learner["optimizer"]}
        if self.shared or self.average is not None:
            out["policy"] = learner["model"]
        return out

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Take over what `state` gave."""
        self.learner.load({**tensors, "model": tensors.get("policy", tensors["model"])}, {"step": updates})
        self.updates = updates
        if self.average is not None:
            self.average = tensors["model"]


def truncated(rollouts: Rollouts, cap: float) -> Rollouts:
    """Weight every action by min(π_old / π_behaviour, cap): truncated importance sampling (Espeholt et al. 2018; Yao et al. 2025)."""
    if rollouts.logp is None:
        raise ValueError("π_old must be filled in first")
    factor = (rollouts.logp - rollouts.behaviour).exp().clamp(max=cap) * rollouts.action_mask
    return replace(rollouts, weights=factor if rollouts.weights is None else rollouts.weights * factor)


class Method(Protocol):
    """What `reinforce` drives: PPO, or a group method."""

    policy: Policy
    resample: int  # rounds of further prompts in place of groups that teach nothing

    def update(self, step: int, rollouts: Rollouts, beta: float) -> dict[str, float]:
        """Learn from the rollouts of a step at this KL weight; returns what to log."""
        ...

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors for a checkpoint."""
        ...

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Take over what `state` gave."""
        ...
