"""Load the models of runs, with LoRA adapters merged into the weights, and add adapters for training."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from tercet.errors import CheckpointError
from tercet.model.config import LoRAConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.lora import adapters, apply_lora, merge, save_adapter
from tercet.model.transformer import Transformer
from tercet.training.run import Run
from tercet.training.settings import TuneSettings

M = TypeVar("M", bound=Transformer | ValueHeadModel)


def _load(model: M, run: Run) -> M:
    lora = adapters_of(run)
    if lora is not None:
        apply_lora(model, lora, seed=0)
    try:
        model.load_state_dict(run.weights())
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.last_checkpoint()}: its weights do not fit the model that model.json describes: {error}"
        ) from error
    if lora is not None:
        merge(model)
    model.eval()
    return model


def adapters_of(run: Run) -> LoRAConfig | None:
    """Return the settings of the LoRA adapters in a run's checkpoints, or None if there are none."""
    if not run.config.get("lora_rank"):
        return None
    return LoRAConfig(run.config["lora_rank"], run.config["lora_alpha"], tuple(run.config["lora_targets"]))


def load_language_model(run: Run) -> Transformer:
    """The language model of a run, on the run's device and in its type."""
    return _load(Transformer(run.model_config()), run).to(run.device, run.dtype)


def load_reward_model(run: Run) -> ValueHeadModel:
    """The reward model of a run, on the run's device and in its type."""
    return _load(ValueHeadModel(Transformer(run.model_config())), run).to(run.device, run.dtype)


def adapt(model: M, config: TuneSettings) -> M:
    """Add LoRA adapters to `model` if `config.lora_rank` is above 0, and return the model.

    A value head is trained with them. Call this before the Learner is made, which trains the parameters that require
    gradients at that moment.
    """
    if (lora := config.lora()) is not None:
        apply_lora(model, lora, config.seed)
    return model


def write_adapter(model: nn.Module, run: Run) -> None:
    """Write RUN/adapter in PEFT's format if the model has adapters."""
    if isinstance(model, (Transformer, ValueHeadModel)) and adapters(model):
        save_adapter(model, run.path / "adapter")
