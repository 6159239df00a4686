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


def language_model_run(path: str) -> Run:
    """Open a run that has a language model. Raises ConfigError where it is of another kind."""
    run = Run(path)
    if run.manifest["verb"] not in ("pretrain", "sft", "ppo"):
        kind = "reward model" if run.manifest["verb"] == "reward" else f"{run.manifest['verb']} run"
        raise ConfigError(f"{run.path} is a {kind}; wanted a run of `tercet pretrain`, `sft` or `ppo`")
    return run


def reward_model_run(path: str) -> Run:
    """Open a run that has a reward model. Raises ConfigError where it is of another kind."""
    run = Run(path)
    if run.manifest["verb"] != "reward":
        raise ConfigError(f"{run.path} is a {run.manifest['verb']} run; wanted a run of `tercet reward`")
    return run


def load_language_model(run: Run) -> Transformer:
    """The language model of a run (pretrain, sft or ppo)."""
    model = Transformer(run.model_config())
    _load(model, run)
    return model


def load_reward_model(run: Run) -> ScalarModel:
    """The reward model of a run."""
    model = ScalarModel(Transformer(run.model_config()))
    _load(model, run)
    return model
