"""`tercet export`: write a model for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tercet.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("export", no_args_is_help=True)(export)


def export(
    run: Annotated[Path, typer.Argument(help="Run with a language model or a reward model.")],
    out: Annotated[Path, typer.Option(help="New folder for the files.")],
    to: Annotated[str, typer.Option(help="Format: hf, a folder that Hugging Face transformers loads.")] = "hf",
) -> None:
    """Export a model to the Hugging Face format.

    The folder holds the weights, the model's shape, and the tokenizer with its chat template.

    Example: tercet export runs/sft --to hf --out exported
    """
    from tercet.interop.huggingface import export_model

    if to != "hf":
        raise ConfigError(f"--to {to}: there is no such format; wanted hf")
    typer.echo(f"written: {export_model(run, out)}")
