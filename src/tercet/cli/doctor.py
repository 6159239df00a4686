"""`tercet doctor`: check a run and say in words what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("doctor", no_args_is_help=True)(doctor)


def doctor(
    run: Annotated[
        Path, typer.Argument(help="Run directory; the run may be finished, running, interrupted or failed.")
    ],
    probe: Annotated[
        bool, typer.Option(help="Also load the newest checkpoint and test the model on a few inputs (takes seconds).")
    ] = True,
) -> None:
    """Check a run for problems.

    The checks cover its records, its checkpoints and its model. The exit code is 1 if something is wrong.

    Example: tercet doctor runs/rlhf
    """
    from rich.table import Table

    from tercet.cli.show import console
    from tercet.diagnostics.doctor import examine

    findings = examine(run, probe)
    table = Table(title=f"{run}: {len(findings)} checks", title_justify="left", box=None)
    for column in ("", "check", "found", "normal"):
        table.add_column(column, overflow="fold")
    for f in findings:
        table.add_row(f.verdict, f.name, f.found, f.normal)
    console.print(table)
    troubles = [f for f in findings if f.verdict != "ok"]
    for f in troubles:
        advice = f.advice[:1].upper() + f.advice[1:]
        console.print(f"{f.verdict}: {f.name}: {f.found} (normal: {f.normal}). {advice}.", soft_wrap=True)
    wrong = sum(f.verdict == "wrong" for f in findings)
    console.print(f"{wrong} wrong, {len(troubles) - wrong} to look at, {len(findings) - len(troubles)} ok")
    if wrong:
        raise typer.Exit(1)
