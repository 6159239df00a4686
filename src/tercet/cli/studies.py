"""`tercet icl`: the study of in-context learning."""

from __future__ import annotations

from pathlib import Path

import typer

from tercet.cli.options import add_command, option
from tercet.studies.in_context_learning.config import InContextLearningConfig
from tercet.training.progress import for_terminal


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    out = option(Path, "--out", "New folder, or the folder of the same command to continue.", ...)
    example = "tercet icl --minutes 15 --seeds 3 --out runs/icl"
    add_command(app, "icl", InContextLearningConfig, _icl, example, extra={"out": out})


def _icl(config: InContextLearningConfig, out: Path) -> None:
    from tercet.studies.in_context_learning.study import run_in_context_learning

    run_in_context_learning(config, out, for_terminal())
