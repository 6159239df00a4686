"""Going on with runs."""

from __future__ import annotations

from pathlib import Path

from tercet.errors import CheckpointError
from tercet.recipes.verbs import STAGES
from tercet.training.progress import Progress
from tercet.training.run import Run
from tercet.training.settings import from_json


def resume(path: str | Path, progress: Progress | None = None) -> Run:
    """Continue a run that was interrupted or killed; the result has the same bits as if it never had been.

    Raises CheckpointError where `path` is no run, or is finished.
    """
    run = Run(path)
    verb = run.manifest.get("verb")
    if verb not in STAGES:
        raise CheckpointError(f"{path}: run.json has the verb {verb!r}; known are {', '.join(STAGES)}")
    if run.manifest["status"] == "finished":
        raise CheckpointError(f"{path}: is finished; there is nothing to resume")
    stage = STAGES[verb]
    config = from_json(stage.config(), run.config, f"{path}/config.json")
    done: Run = stage.run()(config, path, resume=True, progress=progress)
    return done
