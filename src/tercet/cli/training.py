"""Commands that make things: every stage, resume, tokenizer, data, demo."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.cli.options import MANY, SettingsParser, option, split_list
from tercet.errors import ConfigError
from tercet.training.progress import for_terminal
from tercet.training.stage import Stage, stages

OUT = option(Path, "--out", "new folder for the run", ...)
BUDGET = {
    "budget": option(
        str, "--budget", "20min, 90s, 1.5h or 1e15flops: chooses size, steps, batch and learning rate", ""
    ),
    "target_bpb": option(
        float, "--target-bpb", "the same for the cheapest run that reaches so many bits per byte", 0.0
    ),
    "law": option(
        str, "--law", "fit.json that --budget goes by, of `tercet scaling fit`  [default: tercet's own]", ""
    ),
}  # fmt: skip


def stage_command(app: typer.Typer, stage: Stage) -> None:
    """Add the command of a stage: its settings, --out, and for pretraining the budget."""
    parser = SettingsParser(stage.verb, stage.settings, {"out": OUT, **(BUDGET if stage.verb == "pretrain" else {})})

    # the stage's own function is called here and not by Stage.__call__: the way from a command to the model stays short
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
    """The settings as a budget or a target changes them; without either, as they are. Prints the plan."""
    if not (budget or target_bpb):
        if law:
            raise ConfigError("--law is for --budget or --target-bpb; give one of them")
        return config
    from tercet.scaling.budget import plan

    found = plan(config, budget=budget, target_bpb=target_bpb, law=law, began=began)
    for line in found.lines():
        typer.echo(line)
    return found.config


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for stage in stages().values():
        stage_command(app, stage)
    app.command("resume", no_args_is_help=True)(resume)
    app.command("data", no_args_is_help=True)(data)
    app.command("demo")(demo)
    tokenizer = typer.Typer(
        help="Train a tokenizer, or look at what one does.", no_args_is_help=True, rich_markup_mode=None
    )
    tokenizer.command("train", no_args_is_help=True)(tokenizer_train)
    tokenizer.command("show", no_args_is_help=True)(tokenizer_show)
    app.add_typer(tokenizer, name="tokenizer")


def resume(run: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run that was interrupted or killed, with the same result as if it never had been.

    Example: tercet resume runs/base
    """
    from tercet.training.stage import resume as go_on

    done = go_on(run, for_terminal())
    typer.echo(f"done: {done.path}")


def data(
    out: Annotated[Path, typer.Option(help="new folder")],
    seed: Annotated[int, typer.Option(help="seed of the generated part")] = 0,
) -> None:
    """Write the demo's data as ordinary files: real text, conversations, and the generated microworld.

    Example: tercet data --out runs/data
    """
    from tercet.recipes.demo_data import write_demo_data

    report = write_demo_data(out, seed)
    for source, sizes in report["text"].items():
        typer.echo(f"{source}: {sizes['train_bytes']:,} bytes to train on, {sizes['heldout_bytes']:,} held out")
    typer.echo(
        f"conversations: {report['chat']['train_conversations']:,} to train on, {report['chat']['heldout_conversations']:,} held out"
    )


def demo(
    out: Annotated[
        Path | None, typer.Option(help="new folder for all that the demo makes  [default: demo, or demo-2, …]")
    ] = None,
    minutes: Annotated[float, typer.Option(help="wall time to fill, 2 to 120")] = 12.0,
    seed: Annotated[int, typer.Option(help="seed of data, weights and samples")] = 0,
    threads: Annotated[int, typer.Option(help="CPU threads")] = 2,
) -> None:
    """The main job: from text to an aligned, measured model that one can talk to, with a report.

    Example: tercet demo --minutes 12 --out demo
    """
    from tercet.recipes.demo import run_demo

    free = (Path("demo" if n == 1 else f"demo-{n}") for n in itertools.count(1))
    out = out or next(path for path in free if not path.exists())
    run_demo(out, minutes=minutes, seed=seed, threads=threads, progress=for_terminal())


def tokenizer_train(
    data: Annotated[list[str], typer.Option(help="training text: files, folders or globs" + MANY)],
    out: Annotated[Path, typer.Option(help="where tokenizer.json goes")],
    vocab_size: Annotated[int, typer.Option(help="ids in all: 256 bytes, 5 special tokens, merges")] = 2048,
    skip_bad_rows: Annotated[bool, typer.Option(help="skip and count wrong rows instead of stopping")] = False,
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
    source: Annotated[Path, typer.Argument(help="tokenizer.json, or a run")],
    text: Annotated[str, typer.Option(help="text to cut into tokens")] = "",
    data: Annotated[
        list[str] | None, typer.Option(help="conversations, to see which tokens are trained on" + MANY)
    ] = None,
    limit: Annotated[int, typer.Option(help="conversations shown")] = 3,
) -> None:
    """Show how text becomes tokens, and which tokens of a conversation are trained on (in colour).

    Example: tercet tokenizer show runs/sft --data chats.jsonl
    """
    from tercet.cli.show import show_conversations, show_tokens
    from tercet.tokenizer.bpe import Tokenizer

    tokenizer = Tokenizer.load(source)
    if not text and not data:
        raise ConfigError("nothing to show: give --text or --data")
    if text:
        show_tokens(tokenizer, text)
    if data:
        show_conversations(tokenizer, split_list(data), limit)
