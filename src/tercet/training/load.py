"""Runs to models."""

from __future__ import annotations

from tercet.errors import CheckpointError, ConfigError
from tercet.model.transformer import ScalarModel, Transformer
from tercet.training.run import Run


def _load(model: Transformer | ScalarModel, run: Run) -> None:
    try:
        model.load_state_dict(run.weights())
    except RuntimeError as error:
        raise CheckpointError(
            f"{run.last_checkpoint()}: weights of another model than model.json says: {error}"
        ) from error
    model.eval()


def load_language_model(run: Run) -> Transformer:
    """The language model of a run (pretrain, sft or ppo). Raises ConfigError where the run is a reward model."""
    if run.manifest["verb"] == "reward":
        raise ConfigError(f"{run.path} is a reward model; wanted a run of `tercet pretrain`, `sft` or `ppo`")
    model = Transformer(run.model_config())
    _load(model, run)
    return model


def load_reward_model(run: Run) -> ScalarModel:
    """The reward model of a run. Raises ConfigError where the run is of another kind."""
    if run.manifest["verb"] != "reward":
        raise ConfigError(f"{run.path} is a {run.manifest['verb']} run; wanted a run of `tercet reward`")
    model = ScalarModel(Transformer(run.model_config()))
    _load(model, run)
    return model
