"""Runs to models: always plain ones, with a run's adapters added to the weights."""

from __future__ import annotations

from typing import TypeVar

from tercet.errors import CheckpointError, ConfigError
from tercet.model.config import LoRAConfig
from tercet.model.heads import ScalarModel
from tercet.model.lora import apply_lora, merge
from tercet.model.transformer import Transformer
from tercet.training.run import Run

LANGUAGE_MODELS = ("pretrain", "import", "sft", "ppo", "grpo", "dpo")  # the verbs whose runs have a language model
M = TypeVar("M", bound=Transformer | ScalarModel)


def _load(model: M, run: Run) -> M:
    lora = adapters_of(run)
    if lora is not None:
        apply_lora(model, lora, seed=0)
    try:
        model.load_state_dict(run.weights())
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.last_checkpoint()}: weights of another model than model.json says: {error}"
        ) from error
    if lora is not None:
        merge(model)
    model.eval()
    return model


def adapters_of(run: Run) -> LoRAConfig | None:
    """The adapters that a run's checkpoints hold beside the weights; None where there are none."""
    if not run.config.get("lora_rank"):
        return None
    return LoRAConfig(run.config["lora_rank"], run.config["lora_alpha"], tuple(run.config["lora_targets"]))


def trained_by(run: Run) -> str:
    """The verb of the stage that made the weights: a merged run's is that of the run it was made from."""
    return str(run.manifest.get("merges", run.manifest["verb"]))


def language_model_run(path: str) -> Run:
    """Open a run that has a language model. Raises ConfigError where it is of another kind."""
    run = Run(path)
    if (verb := trained_by(run)) not in LANGUAGE_MODELS:
        kind = "reward model" if verb == "reward" else f"{verb} run"
        raise ConfigError(f"{run.path} is a {kind}; wanted a language model, as of `tercet pretrain`, `sft` or `ppo`")
    return run


def reward_model_run(path: str) -> Run:
    """Open a run that has a reward model. Raises ConfigError where it is of another kind."""
    run = Run(path)
    if (verb := trained_by(run)) != "reward":
        raise ConfigError(f"{run.path} is a {verb} run; wanted a run of `tercet reward`")
    return run


def load_language_model(run: Run) -> Transformer:
    """The language model of a run."""
    return _load(Transformer(run.model_config()), run)


def load_reward_model(run: Run) -> ScalarModel:
    """The reward model of a run."""
    return _load(ScalarModel(Transformer(run.model_config())), run)
