"""The one supervised loop: pretraining, instruction tuning and the reward model run through it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from tercet.training.deadline import Deadline
from tercet.training.learner import Learner, Objective
from tercet.training.optim import schedule
from tercet.training.run import Run
from tercet.training.settings import TrainSettings

SHOWN = ("loss", "reward_margin", "accuracy")  # what the line of progress shows; metrics.jsonl has all


def due(done: int, every: int, steps: int) -> bool:
    """Whether something done every `every` steps (0: never between) and at the end is due after `done` steps."""
    return done == steps or (every > 0 and done % every == 0)


def fit(run: Run, learner: Learner[Any], batch: Callable[[int], Sequence[Any]], objective: Objective[Any], config: TrainSettings,
        evaluate: Callable[[int], None], deadline: Deadline | None = None) -> None:  # fmt: skip
    """Train for `config.steps` steps, resuming from the run's newest checkpoint where there is one.

    `batch(step)` gives the micro-batches of a step; `evaluate(done)` is called before the first step, every
    `eval_every` steps and after the last one, and writes its own metrics. With a `deadline`, `config.steps` is only the first
    guess: the steps are those that fit, and the learning rate falls to 0 with the last of them.
    """
    steps = config.steps
    if (saved := run.load_checkpoint()) is not None:
        tensors, state = saved
        learner.load(tensors["model"], tensors["optimizer"], int(state["step"]))

    def save() -> None:
        run.save_checkpoint(learner.step, learner.state(), {}, config.keep)

    with run.training(config.steps):
        if learner.step == 0:
            start = time.monotonic()
            with run.at_step(0):
                evaluate(0)
            # what follows the last step takes about as long: the same measurement, and a checkpoint
            if deadline:
                run.update(reserve=1.1 * (time.monotonic() - start) + 0.3)
        if deadline:
            deadline.reserve = run.manifest["reserve"]
            steps = max(steps, learner.step + 1)  # a resumed run may be beyond the first guess
        began, tokens = time.monotonic(), 0
        while learner.step < steps:
            with run.at_step(learner.step):
                batches = batch(learner.step)
                metrics = learner.forward_backward(batches, objective)
                scale = schedule(learner.step, steps, config.warmup, config.decay)
                norm = learner.optim_step(scale)
            done = learner.step
            if deadline:
                steps = deadline.steps(done)
            tokens += sum(b.tokens.numel() for b in batches)
            speed = tokens / (time.monotonic() - began)
            run.log(done, **metrics, grad_norm=norm, lr_scale=scale, tokens_per_s=speed)
            run.progress.step(done, {k: metrics[k] for k in SHOWN if k in metrics} | {"tokens_per_s": speed})
            if due(done, config.eval_every, steps):
                with run.at_step(done):
                    evaluate(done)
            if due(done, config.checkpoint_every, steps):
                save()
            run.stop_if_interrupted(done, save)
