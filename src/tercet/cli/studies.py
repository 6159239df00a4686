"""The commands that run studies: `tercet study NAME`."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import typer

from tercet.cli.options import add_command, option
from tercet.studies.study import Study, studies
from tercet.training.progress import for_terminal
from tercet.training.settings import Settings

OUT = option(Path, "--out", "Folder for results, figures and summary: new, or begun by the same command.", ...)


def register(app: typer.Typer) -> None:
    """Add `tercet study` with a command for every study."""
    group = typer.Typer(
        help="Run an experiment that answers a question.\n\nWithout a name, the command lists the studies.",
        invoke_without_command=True,
        rich_markup_mode=None,
    )
    group.callback()(list_studies)
    for study in studies().values():
        add_command(group, study.name, study.settings, partial(_run, study), example=study.example, extra={"out": OUT})
    app.add_typer(group, name="study")


def list_studies(context: typer.Context) -> None:
    """Print every study with its question, where no study is named."""
    if context.invoked_subcommand is None:
        width = max(map(len, studies()))
        for study in studies().values():
            typer.echo(f"{study.name:{width}}  {study.question}")


def _run(study: Study, config: Settings, out: Path) -> None:
    study(config, out, for_terminal())
