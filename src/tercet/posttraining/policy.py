"""The policy that learns: what every method of RL shares of an update, and the loop around it.

A method is an object with `update(step, rollouts)`; `train_policy` samples, scores, updates, records and saves.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from tercet.data.readers import BadRows, documents, fingerprints
from tercet.evaluation.likelihood import average, bits_per_byte, by_source
from tercet.evaluation.primitives import Primitives
from tercet.evaluation.score_files import logged
from tercet.evaluation.scorers import scorer_files
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.actor import Actor
from tercet.posttraining.rewards import reward_files, reward_runs
from tercet.posttraining.rl_config import PolicyConfig
from tercet.posttraining.rollouts import Clock, Rollouts, logprobs
from tercet.pretraining.clm import build_feed, limit_bytes
from tercet.training.adapt import adapt, write_adapter
from tercet.training.batch import rows_per_pass
from tercet.training.feed import Feed, permuted
from tercet.training.fit import due
from tercet.training.learner import Learner, Objective
from tercet.training.load import language_model_run
from tercet.training.objectives import next_token
from tercet.training.optim import OptimizerConfig, schedule, total_norm
from tercet.training.progress import Progress
from tercet.training.run import Run, threads
from tercet.training.settings import shares

PER_ACTION = ("entropy", "clip_fraction", "ratio", "sampler_gap")  # summed by the objective, a mean in the log
C = TypeVar("C", bound=PolicyConfig)


class Policy:
    """A language model that learns from rollouts: minibatches, the pretraining term, and the average of its weights."""

    def __init__(self, config: PolicyConfig, reference: Transformer, text: Feed | None = None, head: ScalarModel | None = None) -> None:  # fmt: skip
        """Start from `reference`, which stays as it is. With a `head` of the critic, its trunk is the policy."""
        self.config, self.text = config, text
        optimizer = OptimizerConfig.of(config, eps=1e-5)  # Huang et al. 2024, detail 7
        self.shared = head is not None
        self.module: Transformer | ScalarModel = adapt(head or copy.deepcopy(reference), config)
        self.model = self.module.backbone if isinstance(self.module, ScalarModel) else self.module
        self.learner: Learner[Any] = Learner(self.module, optimizer)
        self.average = {n: p.detach().clone() for n, p in self.model.state_dict().items()} if config.ema else None
        self.updates = 0

    def minibatches(self, step: int, rollouts: Rollouts) -> Iterator[list[Rollouts]]:
        """For every epoch and minibatch, its micro-batches. Whole groups stay together; the order is the seed's."""
        config, k = self.config, self.config.group_size
        groups = len(rollouts.tokens) // k
        size = -(-groups // config.minibatches)
        group_tokens = rollouts.tokens.shape[1] + (k - 1) * float(rollouts.lengths().double().mean())
        micro = config.micro_batch or k * rows_per_pass(0, group_tokens)
        for epoch in range(config.epochs):
            order = [permuted(i, groups, (config.seed, 4, step, epoch)) for i in range(groups)]
            for a in range(0, groups, size):
                rows = torch.tensor([g * k + i for g in order[a : a + size] for i in range(k)])
                yield list(rollouts.rows(rows).split(micro))

    def stale(self, rollouts: Rollouts) -> bool:
        """Whether they were sampled from older weights."""
        return bool((rollouts.version < self.updates).any())

    def with_old(self, rollouts: Rollouts) -> Rollouts:
        """Fill in π_old where it is not what is trained (several updates) or not what was sampled from (stale)."""
        if not self.stale(rollouts) and self.config.epochs * self.config.minibatches == 1:
            return rollouts
        return replace(rollouts, logp=logprobs(self.model, rollouts, self.config.temperature))

    def learn(self, step: int, rollouts: Rollouts, objective: Objective[Rollouts],
              beside: Callable[[Sequence[Rollouts]], dict[str, float]] = lambda batches: {}) -> dict[str, float]:  # fmt: skip
        """One optimizer step for every minibatch of every epoch; `beside` learns something else from the same batches first.

        Stale rollouts count by π_old / π_sampler, cut. Returns what to log, of the last minibatch and of the first.
        """
        if self.stale(rollouts):
            rollouts = truncated(rollouts, self.config.importance_cap)
        metrics: dict[str, float] = {}
        for batches in self.minibatches(step, rollouts):
            if sum(b.count for b in batches) == 0:  # nothing to imitate
                continue
            done = self.accumulate(batches, objective) | beside(batches)
            done["grad_norm"] = self.step(self.scale(step))
            if "ratio" in done and "first_ratio" not in metrics:  # before any step: 1 and 0 but for rounding
                metrics |= {"first_ratio": done["ratio"], "first_sampler_gap": done["sampler_gap"]}
            metrics |= done
        return metrics

    def accumulate(self, batches: Sequence[Rollouts], objective: Objective[Rollouts]) -> dict[str, float]:
        """Gradients of the method's objective, then of the pretraining term; what is logged of both."""
        on = (lambda m, b: objective(m.backbone, b)) if self.shared else objective
        metrics = self.learner.forward_backward(batches, on)
        actions = metrics.pop("actions", 1.0)
        metrics |= {n: metrics[n] / actions for n in PER_ACTION if n in metrics}
        if self.text is not None:
            before = [g.clone() for g in self.learner.optimizer.gradients()]
            read = (lambda m, b: next_token(m.backbone, b)) if self.shared else next_token
            batch = [self.text.batch(self.updates)]
            metrics["pretrain_loss"] = self.learner.forward_backward(batch, read, coef=self.config.gamma)["loss"]
            added = total_norm(a - b for a, b in zip(self.learner.optimizer.gradients(), before))
            metrics["ptx_gradient_ratio"] = added / max(total_norm(before), 1e-12)
        return metrics

    def step(self, scale: float) -> float:
        """One optimizer step; returns the gradient norm."""
        norm = self.learner.optim_step(scale)
        self.updates += 1
        if self.average is not None:
            with torch.no_grad():
                for name, value in self.model.state_dict().items():
                    self.average[name].lerp_(value, 1 - self.config.ema)
        return norm

    def kept(self) -> Transformer:
        """The model that is kept: of the averaged weights, where there is an average."""
        if self.average is None:
            return self.model
        kept = copy.deepcopy(self.model)
        kept.load_state_dict(self.average)
        return kept

    def scale(self, step: int) -> float:
        """The learning-rate multiplier of this step."""
        return schedule(step, self.config.steps, self.config.warmup, self.config.decay)

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
        self.learner.load(tensors.get("policy", tensors["model"]), tensors["optimizer"], updates)
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
    """What `train_policy` drives: PPO, or a group method."""

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


def adapted_beta(beta: float, kl: float, config: PolicyConfig, answers: int) -> float:
    """The adaptive controller (Ziegler et al. 2019, section 2.2): error cut to ± .2, moved by answers / horizon.

    With more answers than the horizon it moves as with as many: β changes by a fifth at most, and stays above 0.
    """
    if not config.target_kl:
        return beta
    error = min(0.2, max(-0.2, kl / config.target_kl - 1))
    return beta * (1 + error * min(1.0, answers / config.kl_horizon))


class _Training:
    """One run: sampling, the method, the records, the checkpoints."""

    def __init__(self, run: Run, config: PolicyConfig, actor: Actor, method: Method, heldout: list[Any]) -> None:
        self.run, self.config, self.actor, self.method, self.heldout = run, config, actor, method, heldout
        self.beta = config.beta
        self.lagging = copy.deepcopy(method.policy.model) if config.sync_every > 1 else None
        self.version = 0

    def step(self, number: int) -> dict[str, float]:
        """Sample, score, update."""
        policy, clock = self.method.policy, Clock()
        if self.lagging is not None and number % self.config.sync_every == 0:
            self.lagging.load_state_dict(policy.model.state_dict())
            self.version = policy.updates
        sampler, version = (self.lagging, self.version) if self.lagging is not None else (policy.model, policy.updates)
        rollouts, metrics = self.actor.collect(sampler, number, version, clock, self.method.resample)
        with clock("update"):
            metrics |= self.method.update(number, rollouts, self.beta)
        metrics["beta"] = self.beta
        if self.config.target_kl:
            self.beta = adapted_beta(self.beta, metrics["kl"], self.config, len(rollouts.tokens))
        return metrics | clock.seconds

    def go(self) -> None:
        """All steps that are left."""
        run, config = self.run, self.config
        done = self.restore()
        with run.training(config.steps):
            if done == 0:
                with run.at_step(0):
                    self.measure(0)
            while done < config.steps:
                with run.at_step(done):
                    metrics = self.step(done)
                done += 1
                run.log(done, **metrics)
                shown = ("reward", "kl", *logged(metrics))
                run.progress.step(done, {k: metrics[k] for k in shown if k in metrics})
                if due(done, config.eval_every, config.steps):
                    with run.at_step(done):
                        self.measure(done)
                if due(done, config.checkpoint_every, config.steps):
                    self.save(done)
                run.stop_if_interrupted(done, lambda: self.save(done))  # noqa: B023
        write_adapter(self.method.policy.kept(), run)

    def measure(self, done: int) -> None:
        """Held-out bits per byte of the policy: what alignment costs (the alignment tax)."""
        if self.heldout:
            bits = bits_per_byte(Primitives(self.method.policy.kept(), self.actor.tokenizer), self.heldout)
            self.run.log(done, **{f"heldout/{s}": e.value for s, e in bits.items()}, heldout=average(bits))

    def save(self, done: int) -> None:
        """Write a checkpoint."""
        tensors = self.method.state()
        if self.lagging is not None:
            tensors["sampler"] = dict(self.lagging.state_dict())
        state = {"updates": self.method.policy.updates, "beta": self.beta, "version": self.version}
        self.run.save_checkpoint(done, tensors, state, self.config.keep)

    def restore(self) -> int:
        """Take over the newest checkpoint, if there is one; returns the steps done."""
        if (saved := self.run.load_checkpoint()) is None:
            return 0
        tensors, state = saved
        self.method.load(tensors, int(state["updates"]))
        self.beta, self.version = float(state["beta"]), int(state["version"])
        if self.lagging is not None:
            self.lagging.load_state_dict(tensors["sampler"])
        return int(state["step"])


def train_policy(verb: str, config: C, make: Callable[[C, Actor, Feed | None], Method], out: str | Path, resume: bool,
                 progress: Progress | None) -> Run:  # fmt: skip
    """The loop of PPO and the group methods: sample, score, update, record; returns the run.

    Raises ConfigError, DataError, ContextError on bad input, NonFiniteError where training diverges.
    """
    parents = {"model": language_model_run(config.model), **reward_runs(config.reward)}
    with (
        Run.start(verb, config, out, parents=parents, resume=resume, progress=progress) as run,
        threads(config.threads),
    ):
        files = (*reward_files(config.reward), *scorer_files(config.scorer))
        run.pin_inputs(fingerprints(config.prompts, config.pretrain_data, config.heldout_text, files))
        bad = BadRows(skip=config.skip_bad_rows)
        actor = Actor(config, run, parents["model"], bad)
        text = None
        if config.gamma > 0:
            sources = by_source(list(documents(config.pretrain_data, bad)))
            length = actor.reference.config.context_length
            text = build_feed(actor.tokenizer, sources, shares(config.pretrain_mixture, "pretrain_mixture"), length,
                              config.pretrain_rows, config.seed)  # fmt: skip
        heldout = (
            limit_bytes(list(documents(config.heldout_text, bad)), config.heldout_bytes) if config.heldout_text else []
        )
        run.log_skipped(bad.count, bad.messages)
        with actor.rewards:  # their processes end with the run
            _Training(run, config, actor, make(config, actor, text), heldout).go()
    return run
