"""Add a run's adapters to its weights, in a run of its own."""

from __future__ import annotations

from pathlib import Path

from tercet.errors import ConfigError
from tercet.posttraining.config import MergeConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import adapters_of, load_language_model, load_reward_model, trained_by
from tercet.training.progress import Progress
from tercet.training.run import Run


def merge_run(config: MergeConfig, out: str | Path, *, progress: Progress | None = None) -> Run:
    """A run with the weights of `config.model` and its adapters added up; it serves wherever that one does.

    Raises ConfigError where that run has no adapters.
    """
    parent = Run(config.model)
    if adapters_of(parent) is None:
        raise ConfigError(
            f"{parent.path} has no adapters to merge (it was not trained with --lora-rank): use it as it is"
        )
    verb = trained_by(parent)
    with Run.start("merge", config, out, parents={"model": parent}, progress=progress) as run:
        model = load_reward_model(parent) if verb == "reward" else load_language_model(parent)
        Tokenizer.load(parent.path).save(run.path / "tokenizer.json")
        run.save_model_config(model.config)
        run.update(merges=verb)
        step = int(parent.last_checkpoint().name.removeprefix("step-"))
        run.save_checkpoint(step, {"model": model.state_dict()}, {}, keep=1)
        run.log_line(f"the adapters of {parent.path} are merged into its weights")
    return run
