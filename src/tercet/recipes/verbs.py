"""Every stage by its verb: where its settings and its function live (no torch here)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tercet.training.settings import Settings


@dataclass(frozen=True)
class Stage:
    """Where a stage's settings and its function live; they are imported when used."""

    config_module: str
    config_name: str
    module: str
    function: str

    def config(self) -> type[Settings]:
        """The class of its settings (imports no torch)."""
        found: type[Settings] = getattr(import_module(self.config_module), self.config_name)
        return found

    def run(self) -> Callable[..., Any]:
        """The function (config, out, *, resume, progress) → Run."""
        found: Callable[..., Any] = getattr(import_module(self.module), self.function)
        return found


STAGES = {
    "pretrain": Stage("tercet.pretraining.config", "PretrainConfig", "tercet.pretraining.clm", "pretrain"),
    "sft": Stage("tercet.posttraining.config", "SFTConfig", "tercet.posttraining.sft", "sft"),
    "rank": Stage("tercet.posttraining.config", "RankConfig", "tercet.posttraining.annotator", "rank"),
    "reward": Stage("tercet.posttraining.config", "RewardConfig", "tercet.posttraining.reward", "reward"),
    "best-of-n": Stage(
        "tercet.posttraining.best_config", "BestOfNConfig", "tercet.posttraining.best_of_n", "best_of_n"
    ),
    "ppo": Stage("tercet.posttraining.rl_config", "PPOConfig", "tercet.posttraining.ppo", "ppo"),
    "grpo": Stage("tercet.posttraining.rl_config", "GRPOConfig", "tercet.posttraining.grpo", "grpo"),
    "dpo": Stage("tercet.posttraining.preference_config", "DPOConfig", "tercet.posttraining.dpo", "dpo"),
}
