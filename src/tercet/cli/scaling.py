"""`tercet scaling`: a ladder of runs, the laws fitted to it, and what they say of a run that has not been made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import add_command, option
from tercet.errors import ConfigError
from tercet.scaling.config import LadderConfig
from tercet.training.progress import for_terminal


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    scaling = typer.Typer(
        help="Make a ladder of runs, fit scaling laws to it, predict from them.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    extra = {
        "out": option(Path, "--out", "folder of the ladder, one run folder for each run in it", ...),
        "jobs": option(int, "--jobs", "runs at a time, each in a process of its own", 1),
        "backend": option(
            str,
            "--backend",
            "processes of this machine, or ray: tasks of a cluster whose nodes share --out",
            "processes",
        ),
        "address": option(
            str, "--address", "Ray cluster, as host:port or auto  [default: RAY_ADDRESS, or a Ray of this machine]", ""
        ),
        "print_commands": option(
            bool, "--print-commands", "only print what is left to do, one torchrun command a line", False
        ),
    }
    add_command(
        scaling, "run", LadderConfig, _run, extra=extra,
        example="tercet scaling run --data books/ --tokenizer tokenizer.json --flops 1e10 --flops 4e10 --out ladder",
    )  # fmt: skip
    scaling.command("fit", no_args_is_help=True)(fit)
    scaling.command("predict", no_args_is_help=True)(predict)
    app.add_typer(scaling, name="scaling")


def _run(config: LadderConfig, out: Path, jobs: int, backend: str, address: str, print_commands: bool) -> None:
    from tercet.scaling.ladder import commands, run_ladder

    if print_commands:
        for line in commands(config, out):
            typer.echo(line)
        return
    typer.echo(f"done: {run_ladder(config, out, jobs=jobs, backend=backend, address=address, progress=for_terminal())}")


def fit(
    ladder: Annotated[list[Path], typer.Argument(help="folder(s) of pretraining runs")],
    out: Annotated[Path | None, typer.Option(help="folder for fit.json and the figures  [default: LADDER]")] = None,
    max_flops: Annotated[float, typer.Option(help="only runs of at most so many FLOPs (0: all)")] = 0.0,
    draws: Annotated[int, typer.Option(help="bootstrap draws behind the intervals", min=20)] = 200,
    seed: Annotated[int, typer.Option(help="of the bootstrap")] = 0,
    figures: Annotated[bool, typer.Option(help="draw the figures")] = True,
) -> None:
    """Fit every law to the finished runs: a table with 95 % intervals, fit.json and figures.

    Example: tercet scaling fit ladder
    """
    import json

    from tercet.cli.show import console, law_table
    from tercet.reporting.scaling_figures import write_figures
    from tercet.scaling.fit import fit_ladder
    from tercet.scaling.ladder import read_runs
    from tercet.training.records import write_text

    runs = read_runs(ladder)
    if max_flops:
        if not (runs.flops <= max_flops).any():
            raise ConfigError(f"--max-flops {max_flops:g}: the smallest run has {runs.flops.min():.3g}; give more")
        runs = runs.take(runs.flops <= max_flops)
    found = fit_ladder(runs, draws, seed)
    folder = out or ladder[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "fit.json", json.dumps(found.to_json(), indent=1) + "\n")
    console.print(law_table(found))
    for name, why in found.missing.items():
        typer.echo(f"not fitted: {name}: {why}")
    written = [folder / "fit.json", *(write_figures(found, folder) if figures else [])]
    typer.echo("written: " + ", ".join(map(str, written)))


def predict(
    ladder: Annotated[Path, typer.Argument(help="fit.json, or the folder that has it")],
    flops: Annotated[float, typer.Option(help="training FLOPs: the best size and its loss")] = 0.0,
    size: Annotated[float, typer.Option(help="parameters, embeddings included; with --tokens")] = 0.0,
    tokens: Annotated[float, typer.Option(help="training tokens; with --size")] = 0.0,
    level: Annotated[float, typer.Option(help="of the interval", min=0.01, max=0.999)] = 0.9,
) -> None:
    """What a run that has not been made will reach, by the parametric and the simple law together.

    Example: tercet scaling predict ladder --flops 1e13
    """
    from tercet.scaling.fit import FAR, Law, best_for_flops

    if (flops > 0) == (size > 0 and tokens > 0) or (size > 0) != (tokens > 0):
        raise ConfigError("give --flops, or --size and --tokens; all above 0")
    law = Law.load(ladder)
    if flops:
        choice = best_for_flops(law, flops)
        size, tokens = choice.shape.parameters(), choice.tokens
        typer.echo(
            f"best size: width {choice.width}, {size:,.0f} parameters, {tokens:,.0f} tokens ({tokens / size:.1f} each)"
        )
    expected = law.predict(size, tokens, level)
    typer.echo(
        f"by {' and '.join(fit.law for fit in law.forecasters())}: expected loss: {expected.value:.3f} bits per byte, {100 * level:g} % interval [{expected.low:.3f}, {expected.high:.3f}]"
    )
    if 6 * size * tokens > FAR * law.flops:
        typer.echo(
            f"far beyond the ladder, whose largest run had {law.flops:.2g} FLOPs: the interval knows only its noise, and how the law strayed on its own largest runs"
        )
