"""Commands to and from other programs: export, import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import add_command, option
from tercet.errors import ConfigError
from tercet.exchange.config import ImportConfig


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("export", no_args_is_help=True)(export)
    out = option(Path, "--out", "new folder for the run", ...)
    add_command(app, "import", ImportConfig, _import, extra={"out": out}, positional="model",
                example="tercet import stories15M.bin --tokenizer tokenizer.bin --out runs/stories")  # fmt: skip


def export(
    run: Annotated[Path, typer.Argument(help="run with a language model or a reward model")],
    out: Annotated[Path, typer.Option(help="new folder for the files")],
    to: Annotated[str, typer.Option(help="format: hf (a folder that Hugging Face transformers loads)")] = "hf",
) -> None:
    """Write a run's model for other programs: weights, shape, tokenizer with chat template.

    Example: tercet export runs/sft --to hf --out exported
    """
    from tercet.exchange.huggingface import export_model

    if to != "hf":
        raise ConfigError(f"--to {to}: unknown format; wanted hf")
    typer.echo(f"written: {export_model(run, out)}")


def _import(config: ImportConfig, out: Path) -> None:
    from tercet.exchange.importing import import_model
    from tercet.training.progress import for_terminal

    typer.echo(f"done: {import_model(config, out, progress=for_terminal()).path}")
