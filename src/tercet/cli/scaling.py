"""`tercet scaling`: run a ladder, fit scaling laws to it, and predict the loss of a run from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tercet.cli.options import add_command, option, split_list
from tercet.errors import ConfigError
from tercet.scaling.config import LadderConfig
from tercet.training.progress import for_terminal

BACKENDS = (
    "Where to train the runs: processes, on this machine, or ray, as tasks of a Ray cluster whose nodes share --out."
)
ADDRESS = "Ray cluster, as host:port or auto.  [default: RAY_ADDRESS, or a Ray of this machine]"
PRINT = "Only print the commands of the remaining runs, one torchrun command per line."


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    scaling = typer.Typer(help="Fit scaling laws and predict from them.", no_args_is_help=True, rich_markup_mode=None)
    extra = {
        "out": option(Path, "--out", "Folder of the ladder; each run gets a folder in it.", ...),
        "jobs": option(int, "--jobs", "Runs at the same time, each in its own process.", 1),
        "backend": option(str, "--backend", BACKENDS, "processes"),
        "address": option(str, "--address", ADDRESS, ""),
        "print_commands": option(bool, "--print-commands", PRINT, False),
    }
    example = "tercet scaling run --data books/ --tokenizer tokenizer.json --flops 1e10,4e10 --out ladder"
    add_command(scaling, "run", LadderConfig, _run, example, extra=extra)
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
    ladder: Annotated[list[str], typer.Argument(help="Folders of pretraining runs.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for fit.json and the figures.  [default: the first LADDER]")
    ] = None,
    max_flops: Annotated[float, typer.Option(help="Fit only runs of at most this many FLOPs (0: all).")] = 0.0,
    draws: Annotated[int, typer.Option(help="Bootstrap draws for the intervals.", min=20)] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.")] = 0,
    figures: Annotated[bool, typer.Option(help="Draw the figures.")] = True,
) -> None:
    """Fit scaling laws to a ladder of runs.

    All laws are fitted to the finished runs. The command prints a table with 95 % intervals and writes fit.json and the
    figures.

    Example: tercet scaling fit ladder
    """
    import json

    from tercet.cli.show import console, law_table
    from tercet.reporting.scaling_figures import write_figures
    from tercet.scaling.fit import fit_ladder
    from tercet.scaling.ladder import read_runs
    from tercet.training.records import write_text

    folders = [Path(name) for name in split_list(ladder)]
    runs = read_runs(folders)
    if max_flops:
        if not (runs.flops <= max_flops).any():
            least = runs.flops.min()
            raise ConfigError(f"--max-flops {max_flops:g}: the smallest run has {least:.3g} FLOPs; give at least that")
        runs = runs.take(runs.flops <= max_flops)
    laws = fit_ladder(runs, draws, seed)
    folder = out or folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "fit.json", json.dumps(laws.to_json(), indent=1) + "\n")
    console.print(law_table(laws))
    for name, why in laws.missing.items():
        typer.echo(f"not fitted: {name}: {why}")
    written = [folder / "fit.json", *(write_figures(laws, folder) if figures else [])]
    typer.echo("written: " + ", ".join(map(str, written)))


def predict(
    ladder: Annotated[Path, typer.Argument(help="fit.json, or its folder.")],
    flops: Annotated[
        float,
        typer.Option(help="Training FLOPs, instead of --size and --tokens; the best size for them is predicted too."),
    ] = 0.0,
    size: Annotated[float, typer.Option(help="Parameters of the model, embeddings included; with --tokens.")] = 0.0,
    tokens: Annotated[float, typer.Option(help="Training tokens; with --size.")] = 0.0,
    level: Annotated[float, typer.Option(help="Confidence level of the interval.", min=0.01, max=0.999)] = 0.9,
) -> None:
    """Predict the loss of a run before training it.

    The prediction is the geometric mean of the predictions of two laws, the parametric one and the simple one.

    Example: tercet scaling predict ladder --flops 1e13
    """
    from tercet.scaling.fit import FAR, Law, best_for_flops

    if (flops > 0) == (size > 0 and tokens > 0) or (size > 0) != (tokens > 0):
        raise ConfigError("give either --flops, or both --size and --tokens, above 0")
    law = Law.load(ladder)
    if flops:
        choice = best_for_flops(law, flops)
        size, tokens = choice.shape.parameters(), choice.tokens
        typer.echo(
            f"best size: {size:,.0f} parameters (width {choice.width}), trained on {tokens:,.0f} tokens, "
            f"{tokens / size:.1f} tokens per parameter"
        )
    expected = law.predict(size, tokens, level)
    laws = " and ".join(fit.law for fit in law.forecasters())
    typer.echo(
        f"expected loss: {expected.value:.3f} bits per byte, {100 * level:g} % interval "
        f"[{expected.low:.3f}, {expected.high:.3f}] (laws: {laws})"
    )
    if 6 * size * tokens > FAR * law.flops:
        typer.echo(
            f"This is far beyond the ladder, whose largest run had {law.flops:.2g} FLOPs. The interval covers only the "
            "noise of the fit and the law's error on the ladder's own largest runs."
        )
