"""`tercet doctor`: what is wrong with a run, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("doctor", no_args_is_help=True)(doctor)


def doctor(
    run: Annotated[Path, typer.Argument(help="run directory; it may be finished, running, interrupted or failed")],
    probe: Annotated[
        bool, typer.Option(help="also load the newest checkpoint and measure it afresh on a few inputs (seconds)")
    ] = True,
) -> None:
    """Say what is wrong with a run: its records, its checkpoints, its model. Exit code 1 where something is wrong.

    Example: tercet doctor runs/rlhf
    """
    from rich.table import Table

    from tercet.cli.show import console
    from tercet.diagnostics.doctor import examine

    found = examine(run, probe)
    table = Table(title=f"{run}: {len(found)} checks", title_justify="left", box=None)
    for column in ("", "check", "found", "normal"):
        table.add_column(column, overflow="fold")
    for f in found:
        table.add_row(f.verdict, f.name, f.found, f.normal)
    console.print(table)
    troubles = [f for f in found if f.verdict != "ok"]
    for f in troubles:
        console.print(f"{f.verdict}: {f.name}: {f.found} (normal: {f.normal}). {f.advice}.", soft_wrap=True)
    wrong = sum(f.verdict == "wrong" for f in found)
    console.print(f"{wrong} wrong, {len(troubles) - wrong} to look at, {len(found) - len(troubles)} ok")
    if wrong:
        raise typer.Exit(1)
