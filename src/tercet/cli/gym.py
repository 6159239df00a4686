"""The command that makes rows of reasoning-gym's tasks: data-gym."""

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
        list[str], typer.Option(help="reasoning-gym's name of a task, or NAME:key=value,key=value" + MANY)
    ],
    out: Annotated[Path, typer.Option(help="new folder for train.jsonl and heldout.jsonl")],
    size: Annotated[int, typer.Option(help="training tasks of each kind")] = 500,
    heldout: Annotated[int, typer.Option(help="held-out tasks of each kind")] = 100,
    seed: Annotated[int, typer.Option(help="other seeds give other tasks (0 to 4000)")] = 0,
) -> None:
    """Write tasks of reasoning-gym (pip install 'tercet[rlvr]') as rows that every stage reads.

    Their verifier is the reward `reasoning_gym`. No question is both in train.jsonl and in heldout.jsonl.

    Example: tercet data-gym --tasks gcd --tasks chain_sum:max_terms=2,max_digits=1 --out data/gym
    """
    from tercet.data.formats.reasoning_gym import write_gym_questions

    counts = write_gym_questions([t for text in tasks for t in re.split(r",(?!\w+=)", text)], size, heldout, seed, out)
    typer.echo(
        f"{out}: {counts['train']:,} tasks to train on, {counts['heldout']:,} held out; "
        f"{counts['left_out']:,} questions that came twice were left out"
    )
