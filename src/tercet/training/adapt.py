"""LoRA on any stage that trains on from a model: one call before the learner is made, one after the last step."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from tercet.model.heads import ScalarModel
from tercet.model.lora import adapters, apply_lora, save_adapter
from tercet.model.transformer import Transformer
from tercet.training.run import Run
from tercet.training.settings import TuneSettings

M = TypeVar("M", bound=Transformer | ScalarModel)


def adapt(model: M, config: TuneSettings) -> M:
    """The model, with adapters on it where `config.lora_rank` asks for them; without, it is left alone.

    A score head stays trained. Call it before the Learner is made: that trains what then requires gradients.
    """
    if (lora := config.lora()) is not None:
        apply_lora(model, lora, config.seed)
    return model


def write_adapter(model: nn.Module, run: Run) -> None:
    """Write RUN/adapter in PEFT's format where the model has adapters."""
    if isinstance(model, (Transformer, ScalarModel)) and adapters(model):
        save_adapter(model, run.path / "adapter")
