"""Commands that make models: tokenizer, pretrain, sft, rank, reward, ppo, dpo, merge, resume, demo, data."""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.cli.options import add_command, option
from tercet.errors import ConfigError
from tercet.recipes.verbs import STAGES, Stage
from tercet.training.progress import for_terminal
from tercet.training.settings import Settings

EXAMPLES = {
    "pretrain": "tercet pretrain --data books/ --tokenizer tokenizer.json --steps 2000 --out runs/base",
    "sft": "tercet sft --model runs/base --data chats.jsonl --out runs/sft",
    "rank": "tercet rank --model runs/sft --tasks questions.jsonl --out runs/rank",
    "reward": "tercet reward --model runs/sft --data rankings.jsonl --demonstrations chats.jsonl --out runs/reward",
    "best-of-n": "tercet best-of-n --model runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/best",
    "ppo": "tercet ppo --model runs/sft --reward runs/reward --prompts prompts.jsonl --pretrain-data books/ --out runs/rlhf",
    "grpo": "tercet grpo --model runs/sft --reward exact_match --prompts questions.jsonl --method dr_grpo --out runs/grpo",
    "dpo": "tercet dpo --model runs/sft --data rankings.jsonl --out runs/dpo",
}


def _stage_command(app: typer.Typer, verb: str, stage: Stage) -> None:
    def action(config: Settings, out: Path) -> None:
        run = stage.run()(config, out, progress=for_terminal())
        typer.echo(f"done in {run.manifest['seconds']:.0f} s: {run.path}")

    out = option(Path, "--out", "new folder for the run", ...)
    add_command(app, verb, stage.config(), action, example=EXAMPLES[verb], extra={"out": out})


def _pretrain_command(app: typer.Typer, stage: Stage) -> None:
    """`pretrain` is a stage with a dial: a budget may choose size, tokens, batch and learning rate."""

    def action(config: Any, out: Path, budget: str, target_bpb: float, law: str) -> None:
        began = time.monotonic()
        if budget or target_bpb:
            from tercet.pretraining.budget import plan

            found = plan(config, budget=budget, target_bpb=target_bpb, law=law, began=began)
            for line in found.lines():
                typer.echo(line)
            config = found.config
        elif law:
            raise ConfigError("--law is for --budget or --target-bpb; give one of them")
        run = stage.run()(config, out, progress=for_terminal())
        typer.echo(f"done in {run.manifest['seconds']:.0f} s: {run.path}")

    extra = {
        "out": option(Path, "--out", "new folder for the run", ...),
        "budget": option(
            str, "--budget", "20min, 90s, 1.5h or 1e15flops: chooses size, steps, batch and learning rate", ""
        ),
        "target_bpb": option(
            float, "--target-bpb", "the same for the cheapest run that reaches so many bits per byte", 0.0
        ),
        "law": option(
            str, "--law", "fit.json that --budget goes by, of `tercet scaling fit`  [default: tercet's own]", ""
        ),
    }
    add_command(app, "pretrain", stage.config(), action, example=EXAMPLES["pretrain"], extra=extra)


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for verb, stage in STAGES.items():
        if verb == "pretrain":
            _pretrain_command(app, stage)
        else:
            _stage_command(app, verb, stage)
    app.command("merge", no_args_is_help=True)(merge)
    app.command("resume", no_args_is_help=True)(resume)
    app.command("data", no_args_is_help=True)(data)
    app.command("demo")(demo)
    tokenizer = typer.Typer(
        help="Train a tokenizer, or look at what one does.", no_args_is_help=True, rich_markup_mode=None
    )
    tokenizer.command("train", no_args_is_help=True)(tokenizer_train)
    tokenizer.command("show", no_args_is_help=True)(tokenizer_show)
    app.add_typer(tokenizer, name="tokenizer")


def merge(
    run: Annotated[Path, typer.Argument(help="run that was trained with adapters (--lora-rank)")],
    out: Annotated[Path, typer.Option(help="new folder for the run")],
) -> None:
    """Add a run's adapters (LoRA) to its weights: a run with a plain model, for what does not know adapters.

    Example: tercet merge runs/sft --out runs/sft-merged
    """
    from tercet.posttraining.config import MergeConfig
    from tercet.posttraining.merge import merge_run

    typer.echo(f"done: {merge_run(MergeConfig(model=str(run)), out, progress=for_terminal()).path}")


def resume(run: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Continue a run that was interrupted or killed, with the same result as if it never had been.

    Example: tercet resume runs/base
    """
    from tercet.recipes.stages import resume as go_on

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
    data: Annotated[list[str], typer.Option(help="training text: files, folders or globs (may be repeated)")],
    out: Annotated[Path, typer.Option(help="where tokenizer.json goes")],
    vocab_size: Annotated[int, typer.Option(help="ids in all: 256 bytes, 5 special tokens, merges")] = 2048,
    skip_bad_rows: Annotated[bool, typer.Option(help="skip and count wrong rows instead of stopping")] = False,
) -> None:
    """Train a byte-level BPE tokenizer.

    Example: tercet tokenizer train --data books/ --vocab-size 2048 --out tokenizer.json
    """
    from tercet.data.readers import BadRows, documents
    from tercet.tokenizer.bpe import train_tokenizer

    if out.exists():
        raise ConfigError(f"{out} exists; choose another --out")
    bad = BadRows(skip=skip_bad_rows)
    trained = train_tokenizer((d.text for d in documents(data, bad)), vocab_size)
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
    data: Annotated[list[str] | None, typer.Option(help="conversations, to see which tokens are trained on")] = None,
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
        show_conversations(tokenizer, data, limit)
