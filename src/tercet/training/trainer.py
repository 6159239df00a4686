"""The loop around every training step: resume, evaluate, record, save, stop. The stage defines the step itself:

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

# metrics in the line of progress; metrics.jsonl has all of them
PROGRESS_METRICS = ("loss", "reward_margin", "accuracy", "reward", "kl")
SCORE = "score/"  # metrics with this prefix are in the line too


class Trained(Protocol):
    """An object that a run saves and resumes: a learner, or a policy with its critic and other state."""

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of a checkpoint by file; stages that use this run load the file "model"."""
        ...

    def numbers(self) -> dict[str, Any]:
        """Return the other values of a checkpoint, as JSON; the trainer adds "step"."""
        ...

    def load(self, tensors: dict[str, dict[str, Tensor]], numbers: Mapping[str, Any]) -> None:
        """Restore the results of `state` and `numbers`."""
        ...

    @property
    def kept_model(self) -> nn.Module:
        """The model that the run saves; its adapters are written at the end."""
        ...


@dataclass
class Step:
    """One training step: its number (0, 1, …), its learning-rate multiplier `scale`, and its metrics."""

    number: int
    scale: float
    metrics: dict[str, float] = field(default_factory=dict)
    tokens: int = 0  # tokens processed in this step; recorded as tokens per second

    def update(self, learner: Learner[Any], metrics: dict[str, float], batches: Sequence[Any]) -> None:
        """Update the weights with the gradients of `batches`, and set the step's metrics and tokens."""
        norm = learner.optim_step(self.scale)
        self.metrics = {**metrics, "grad_norm": norm, "lr_scale": self.scale}
        self.tokens = sum(b.tokens.numel() for b in batches)


def due(done: int, every: int, steps: int) -> bool:
    """Return whether an action is due after `done` steps: every `every` steps (0: never) and at the last step."""
    return done == steps or (every > 0 and done % every == 0)


def training_steps(
    run: Run, config: TrainSettings, trained: Trained, evaluate: Callable[[int], None], deadline: Deadline | None = None
) -> Iterator[Step]:
    """Yield every remaining step, beginning at the run's newest checkpoint if there is one.

    The caller trains and updates the step; the trainer records it, saves checkpoints and evaluates. `evaluate(done)` is
    called before the first step, every `eval_every` steps and after the last one, and writes its own metrics. With a
    `deadline`, as many steps as fit are taken, whatever `config.steps` says; the learning rate reaches 0 at the last.
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
        if deadline:  # after the last step the same evaluation and a checkpoint follow, which take about as long
            run.update(reserve=1.1 * (time.monotonic() - start) + 0.3)
    if deadline:
        deadline.reserve = run.manifest["reserve"]
        steps = max(steps, done + 1)  # a resumed run may be beyond config.steps
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
        metrics = {k: v for k, v in step.metrics.items() if k in PROGRESS_METRICS or k.startswith(SCORE)}
        run.progress.step(done, metrics | speed)
        if due(done, config.eval_every, steps):
            evaluate(done)
        if due(done, config.checkpoint_every, steps):
            save()
        run.stop_if_interrupted(save)
    run.end_training()
    write_adapter(trained.kept_model, run)
