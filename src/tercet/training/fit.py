"""The one supervised loop: pretraining, instruction tuning and the reward model run through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tercet.training.learner import Learner, Objective
from tercet.training.optim import schedule
from tercet.training.run import Run
from tercet.training.settings import TrainSettings

SHOWN = ("loss", "reward_margin", "accuracy")  # what the line of progress shows; metrics.jsonl has all


def due(done: int, every: int, steps: int) -> bool:
    """Whether something done every `every` steps (0: never between) and at the end is due after `done` steps."""
    return done == steps or (every > 0 and done % every == 0)


def fit(run: Run, learner: Learner[Any], batch: Callable[[int], Sequence[Any]], objective: Objective[Any], config: TrainSettings,
        evaluate: Callable[[int], None]) -> None:  # fmt: skip
    """Train for `config.steps` steps, resuming from the run's newest checkpoint where there is one.

    `batch(step)` gives the micro-batches of a step; `evaluate(done)` is called before the first step, every
    `eval_every` steps and after the last one, and writes its own metrics.
    """
    if (saved := run.load_checkpoint()) is not None:
        tensors, state = saved
        learner.load(tensors["model"], tensors["optimizer"], int(state["step"]))

    def save() -> None:
        run.save_checkpoint(learner.step, learner.state(), {}, config.keep)

    with run.training(config.steps):
        if learner.step == 0:
            with run.at_step(0):
                evaluate(0)
        began, tokens = time.monotonic(), 0
        while learner.step < config.steps:
            with run.at_step(learner.step):
                batches = batch(learner.step)
                metrics = learner.forward_backward(batches, objective)
                scale = schedule(learner.step, config.steps, config.warmup, config.decay)
                norm = learner.optim_step(scale)
            done = learner.step
            tokens += sum(b.tokens.numel() for b in batches)
            speed = tokens / (time.monotonic() - began)
            run.log(done, **metrics, grad_norm=norm, lr_scale=scale, tokens_per_s=speed)
            run.progress.step(done, {k: metrics[k] for k in SHOWN if k in metrics} | {"tokens_per_s": speed})
            if due(done, config.eval_every, config.steps):
                with run.at_step(done):
                    evaluate(done)
            if due(done, config.checkpoint_every, config.steps):
                save()
            run.stop_if_interrupted(done, save)
