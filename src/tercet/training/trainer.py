"""The loop around every step of training: resume, measure, record, save, stop. What a step does stands in the stage's file:

for step in training_steps(run, config, learner, evaluate):
    metrics = learner.forward_backward(batches, next_token)
    step.update(learner, metrics, batches)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from tercet.training.learner import Learner
from tercet.training.load import write_adapter
from tercet.training.optim import schedule
from tercet.training.run import Run
from tercet.training.settings import TrainSettings
from tercet.training.time_budget import Deadline

# what the line of progress shows; metrics.jsonl has all
SHOWN = ("loss", "reward_margin", "accuracy", "reward", "kl")
SCORE = "score/"  # what begins with it is shown too


class Trained(Protocol):
    """What a run saves and resumes: a learner, or a policy with all that belongs to it."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Tensors of a checkpoint by file; "model" is what the run's children load."""
        ...

    def numbers(self) -> dict[str, Any]:
        """What else a checkpoint must hold, as JSON; the trainer adds "step"."""
        ...

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Take over what `state` and `numbers` gave."""
        ...

    @property
    def kept_model(self) -> nn.Module:
        """The model that the run saves; its adapters are written at the end."""
        ...


@dataclass
class Step:
    """One step of training: its number (0, 1, …), the learning-rate multiplier, and what is recorded of it."""

    number: int
    scale: float
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0  # read in this step; recorded as tokens per second

    def update(self, learner: Learner[Any], metrics: dict[str, float], batches: Sequence[Any]) -> None:
        """Apply the gradients of `batches` and record the step."""
        norm = learner.optim_step(self.scale)
        self.metrics = {**metrics, "grad_norm": norm, "lr_scale": self.scale}
        self.tokens = sum(b.tokens.numel() for b in batches)


def due(done: int, every: int, steps: int) -> bool:
    """Whether something done every `every` steps (0: never between) and at the end is due after `done` steps."""
    return done == steps or (every > 0 and done % every == 0)


def training_steps(run: Run, config: TrainSettings, trained: Trained, evaluate: Callable[[int], None],
                   deadline: Deadline | None = None) -> Iterator[Step]:  # fmt: skip
    """Yield every step that is left, from the run's newest checkpoint on where there is one.

    The caller trains and fills in the step; the trainer records it, saves and evaluates. `evaluate(done)` is called
    before the first step, every `eval_every` steps and after the last one, and writes its own metrics. With a `deadline`
    `config.steps` is only the first guess: as many steps are taken as fit, and the learning rate reaches 0 with the last.
    """
    steps, done = config.steps, 0
    if (saved := run.load_checkpoint()) is not None:
        trained.load(*saved)
        done = int(saved[1]["step"])

    def save() -> None:
        run.save_checkpoint(done, trained.state(), trained.numbers(), config.keep)

    run.step = done
    run.begin_training(config.steps)
    if done == 0:
        start = time.monotonic()
        evaluate(0)
        if deadline:  # what follows the last step takes about as long: the same measurement, and a checkpoint
            run.update(reserve=1.1 * (time.monotonic() - start) + 0.3)
    if deadline:
        deadline.reserve = run.manifest["reserve"]
        steps = max(steps, done + 1)  # a resumed run may be beyond the first guess
    began, tokens = time.monotonic(), 0
    while done < steps:
        step = Step(done, schedule(done, steps, config.warmup, config.cooldown))
        yield step
        done = run.step = done + 1
        if deadline:
            steps = deadline.steps(done)
        tokens += step.tokens
        speed = {"tokens_per_s": tokens / (time.monotonic() - began)} if tokens else {}
        run.log(done, **step.metrics, **speed)
        shown = {k: v for k, v in step.metrics.items() if k in SHOWN or k.startswith(SCORE)}
        run.progress.step(done, shown | speed)
        if due(done, config.eval_every, steps):
            evaluate(done)
        if due(done, config.checkpoint_every, steps):
            save()
        run.stop_if_interrupted(save)
    run.end_training()
    write_adapter(trained.kept_model, run)
