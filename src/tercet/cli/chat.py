"""`tercet chat`: talk to one model, or to two at once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from tercet.errors import ContextError


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("chat", no_args_is_help=True)(chat)


def chat(
    run: Annotated[Path, typer.Argument(help="run of the model to talk to")],
    base: Annotated[
        bool, typer.Option("--base", help="continue raw text instead of answering messages (for base models)")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="a second run, whose answers stand beside the first's")] = None,
    system: Annotated[str, typer.Option(help="system message")] = "",
    temperature: Annotated[float, typer.Option(help="0: always the likeliest token")] = 0.7,
    top_k: Annotated[int, typer.Option(help="sample among the k likeliest tokens (0: all)")] = 0,
    top_p: Annotated[
        float, typer.Option(help="sample among the likeliest tokens that together have this probability")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="longest answer")] = 64,
    seed: Annotated[int, typer.Option(help="seed of the answers")] = 0,
) -> None:
    """Talk to a model; the answer streams. /new begins a new conversation, /quit (or end of input) leaves.

    Example: tercet chat demo/rlhf --compare demo/sft
    """
    from tercet.inference.chat import Chat

    paths = [run] + ([compare] if compare else [])
    chats = [
        Chat(
            p,
            system=system,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            max_new_tokens=max_new_tokens,
            seed=seed,
        )
        for p in paths
    ]
    if sys.stdin.isatty():
        typer.echo("/new begins a new conversation, /quit leaves")
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no UTF-8 are shown as such, and do not end the talk
        sys.stdin.reconfigure(errors="replace")
    while True:
        try:
            text = input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if not text.strip():
            continue
        if text.strip() == "/quit":
            return
        if text.strip() == "/new":
            for one in chats:
                one.messages = tuple(m for m in one.messages if m.role == "system")
            continue
        for path, one in zip(paths, chats):
            _answer(one.complete if base else one.say, text, f"{path}: " if compare else "")


def _answer(ask: Callable[[str, Callable[[str], None]], str], text: str, label: str) -> None:
    typer.echo(label, nl=False)
    try:
        ask(text, _show)
    except ContextError as error:
        typer.echo(f"({error})", nl=False)
    typer.echo()


def _show(piece: str) -> None:
    typer.echo(piece, nl=False)
    sys.stdout.flush()
