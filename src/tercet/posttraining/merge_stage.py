"""The merge stage, which adds LoRA adapters to the weights. It imports torch only when it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tercet.errors import ConfigError
from tercet.training.settings import ANY_MODEL, REWARD_MODEL, Settings, setting
from tercet.training.stage import Stage

if TYPE_CHECKING:
    from tercet.training.run import Run


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Settings):
    """Merge the LoRA adapters of a run into its weights.

    The new run holds a model without adapters.
    """

    model: str = setting(..., "Run that was trained with LoRA adapters (--lora-rank).", reads=ANY_MODEL)


def merge_run(config: MergeConfig, run: Run) -> None:
    """Save the parent's weights with its adapters merged in; the run can be used wherever the parent can.

    Raises ConfigError if the parent has no adapters.
    """
    from tercet.training.load import adapters_of, load_language_model, load_reward_model
    from tercet.training.stage import holds, trained_by

    parent = run.parents["model"]
    if adapters_of(parent) is None:
        raise ConfigError(
            f"{parent.path} was trained without --lora-rank, so it has no adapters to merge; use the run as it is"
        )
    model = load_reward_model(parent) if holds(parent) == REWARD_MODEL else load_language_model(parent)
    run.update(merges=trained_by(parent))
    step = int(parent.last_checkpoint().name.removeprefix("step-"))
    run.save_checkpoint(step, {"model": model.state_dict()}, {}, keep=1)
    run.log_line(f"the adapters of {parent.path} are merged into its weights")


MERGE = Stage(
    "merge",
    MergeConfig,
    "tercet.posttraining.merge_stage:merge_run",
    order=100,
    label="merged",
    makes=ANY_MODEL,
    example="tercet merge runs/sft --out runs/sft-merged",
    positional="model",
)
