"""`tercet data-gym`: write questions of reasoning-gym's tasks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import MANY


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("data-gym", no_args_is_help=True)(data_gym)


def data_gym(
    tasks: Annotated[
        list[str],
        typer.Option(help="Name of a reasoning-gym task, or NAME:key=value,key=value with its parameters." + MANY),
    ],
    out: Annotated[Path, typer.Option(help="New folder for train.jsonl and heldout.jsonl.")],
    size: Annotated[int, typer.Option(help="Training questions of each task.")] = 500,
    heldout: Annotated[int, typer.Option(help="Held-out questions of each task.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the questions, from 0 to 4000.")] = 0,
) -> None:
    """Write questions of reasoning-gym's tasks as JSONL.

    It needs the package: pip install 'tercet[rlvr]'. Both files can be used as prompts and as questions, and the reward
    `reasoning_gym` checks the answers. No question is in both train.jsonl and heldout.jsonl.

    Example: tercet data-gym --tasks gcd --tasks chain_sum:max_terms=2,max_digits=1 --out data/gym
    """
    from tercet.data.formats.reasoning_gym import write_gym_questions

    counts = write_gym_questions([t for text in tasks for t in re.split(r",(?!\w+=)", text)], size, heldout, seed, out)
    typer.echo(
        f"{out}: {counts['train']:,} questions to train on, {counts['heldout']:,} held out; "
        f"{counts['left_out']:,} duplicates were left out"
    )
