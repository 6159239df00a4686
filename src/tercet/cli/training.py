"""Commands that make things: every stage, resume, tokenizer, data, demo."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.cli.options import MANY, SettingsParser, option, split_list
from tercet.errors import CheckpointError, ConfigError
from tercet.training.progress import for_terminal
from tercet.training.stage import Stage, stages

OUT = option(Path, "--out", "New folder for the run.", ...)
BY_BUDGET = (
    "Choose model size, steps, batch size and learning rates for this budget of time or compute, such as 20min, "
    "90s, 1.5h or 1e15flops."
)
BY_TARGET = (
    "Choose the settings that --budget chooses, for the cheapest run that reaches this many held-out bits per byte. "
    "0 means no target."
)
BY_LAW = "fit.json of `tercet scaling fit`, used by --budget and --target-bpb.  [default: a law that comes with tercet]"
BUDGET = {
    "budget": option(str, "--budget", BY_BUDGET, ""),
    "target_bpb": option(float, "--target-bpb", BY_TARGET, 0.0),
    "law": option(str, "--law", BY_LAW, ""),
}


def stage_command(app: typer.Typer, stage: Stage) -> None:
    """Add the command of a stage: its settings, --out, and for pretraining the budget."""
    parser = SettingsParser(stage.verb, stage.settings, {"out": OUT, **(BUDGET if stage.verb == "pretrain" else {})})

    # the stage's function is called here, not by Stage.__call__, so that a traceback from a command stays short
    def command(**given: Any) -> None:
        began = time.monotonic()
        config, own = parser.read(given)
        out = own.pop("out")
        config = planned(config, began, **own)
        with stage.start(config, out, progress=for_terminal()) as run:
            stage.function(config, run)
        typer.echo(f"done in {run.manifest['seconds']:.0f} s: {run.path}")

    parser.install(app, command, stage.example, stage.positional)


def planned(config: Any, began: float, budget: str = "", target_bpb: float = 0.0, law: str = "") -> Any:
    """Return the settings, changed to fit the budget or the target where one is given, and print the plan.

    Raises ConfigError where --law is given without either.
    """
    if not (budget or target_bpb):
        if law:
            raise ConfigError("--law: is used by --budget and --target-bpb only; give one of them, or leave out --law")
        return config
    from tercet.scaling.budget import plan

    planning = plan(config, budget=budget, target_bpb=target_bpb, law=law, began=began)
    for line in planning.lines():
        typer.echo(line)
    return planning.config


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for stage in stages().values():
        stage_command(app, stage)
    app.command("resume", no_args_is_help=True)(resume)
    app.command("data", no_args_is_help=True)(data)
    app.command("demo")(demo)
    tokenizer = typer.Typer(help="Train or inspect a tokenizer.", no_args_is_help=True, rich_markup_mode=None)
    tokenizer.command("train", no_args_is_help=True)(tokenizer_train)
    tokenizer.command("show", no_args_is_help=True)(tokenizer_show)
    app.add_typer(tokenizer, name="tokenizer")


def resume(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Continue an interrupted run to the same result.

    A run that was stopped or killed ends with the same weights as a run that was never interrupted.

    Example: tercet resume runs/base
    """
    from tercet.training.stage import resume as go_on

    done = go_on(run, for_terminal())
    typer.echo(f"done: {done.path}")


def data(
    out: Annotated[Path, typer.Option(help="New folder for the data.")],
    seed: Annotated[int, typer.Option(help="Seed of the generated text and questions.")] = 0,
) -> None:
    """Write the demo's data as ordinary files.

    The folder holds real text, conversations, and generated text and questions about a small made-up world, the
    microworld.

    Example: tercet data --out runs/data
    """
    from tercet.recipes.demo_data import write_demo_data

    report = write_demo_data(out, seed)
    for source, sizes in report["text"].items():
        typer.echo(f"{source}: {sizes['train_bytes']:,} bytes to train on, {sizes['heldout_bytes']:,} held out")
    chat = report["chat"]
    typer.echo(
        f"conversations: {chat['train_conversations']:,} to train on, {chat['heldout_conversations']:,} held out"
    )


def demo(
    out: Annotated[
        Path | None, typer.Option(help="New folder for everything the demo makes.  [default: demo, or demo-2, …]")
    ] = None,
    minutes: Annotated[float, typer.Option(help="Wall time to use, from 2 to 120 minutes.")] = 12.0,
    seed: Annotated[int, typer.Option(help="Seed of data, weights and samples.")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Run every stage, from raw text to a chat model.

    The demo trains a base model, tunes it on conversations, aligns it with RLHF, measures all models and writes a
    report.

    Example: tercet demo --minutes 12 --out demo
    """
    from tercet.recipes.demo import run_demo

    free = (Path("demo" if n == 1 else f"demo-{n}") for n in itertools.count(1))
    out = out or next(path for path in free if not path.exists())
    run_demo(out, minutes=minutes, seed=seed, threads=threads, progress=for_terminal())


def tokenizer_train(
    data: Annotated[list[str], typer.Option(help="Training text: files, folders or globs." + MANY)],
    out: Annotated[Path, typer.Option(help="The file to write, such as tokenizer.json.")],
    vocab_size: Annotated[
        int, typer.Option(help="Size of the vocabulary: 256 bytes, 5 special tokens, and merges for the rest.")
    ] = 2048,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Skip and count malformed rows instead of stopping.")
    ] = False,
) -> None:
    """Train a byte-level BPE tokenizer.

    Example: tercet tokenizer train --data books/ --vocab-size 2048 --out tokenizer.json
    """
    from tercet.data.readers import BadRows, read_documents
    from tercet.tokenizer.bpe import train_tokenizer

    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out")
    bad = BadRows(skip=skip_bad_rows)
    trained = train_tokenizer((d.text for d in read_documents(split_list(data), bad)), vocab_size)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        trained.save(out)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}") from error
    skipped = f", {bad.count} bad rows skipped" if bad.count else ""
    typer.echo(f"{out}: {trained.vocab_size} ids{skipped}")


def tokenizer_show(
    source: Annotated[Path, typer.Argument(help="tokenizer.json, or a run.")],
    text: Annotated[str, typer.Option(help="Text to split into tokens.")] = "",
    data: Annotated[
        list[str] | None, typer.Option(help="Conversations, to see which of their tokens are trained on." + MANY)
    ] = None,
    limit: Annotated[int, typer.Option(help="Number of conversations to show.")] = 3,
) -> None:
    """Show how text is split into tokens.

    For conversations, the tokens that are trained on are green and in [brackets].

    Example: tercet tokenizer show runs/sft --data chats.jsonl
    """
    from tercet.cli.show import show_conversations, show_tokens
    from tercet.tokenizer.bpe import Tokenizer

    if not text and not data:
        raise ConfigError("nothing to show: give --text or --data")
    try:
        tokenizer = Tokenizer.load(source)
    except CheckpointError as error:
        if source.exists():
            raise
        raise ConfigError(str(error)) from error  # a wrong path is wrong usage
    if text:
        show_tokens(tokenizer, text)
    if data:
        show_conversations(tokenizer, split_list(data), limit)
