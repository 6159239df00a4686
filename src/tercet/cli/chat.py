"""`tercet chat`: talk to one model, or to two at once."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.errors import ContextError


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("chat", no_args_is_help=True)(chat)


def chat(
    run: Annotated[Path, typer.Argument(help="Run of the model to talk to.")],
    base: Annotated[
        bool, typer.Option("--base", help="Continue raw text instead of answering messages; for base models.")
    ] = False,
    compare: Annotated[Path | None, typer.Option(help="Second run, which answers the same messages.")] = None,
    system: Annotated[str, typer.Option(help="System message at the start of the conversation.")] = "",
    temperature: Annotated[float, typer.Option(help="Sampling temperature (0: always the likeliest token).")] = 0.7,
    top_k: Annotated[int, typer.Option(help="Sample among this many of the likeliest tokens (0: all).")] = 0,
    top_p: Annotated[
        float, typer.Option(help="Sample among the likeliest tokens that together have this probability.")
    ] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 64,
    seed: Annotated[int, typer.Option(help="Seed of the sampled answers.")] = 0,
) -> None:
    """Chat with a model.

    The answer appears while it is generated. /new starts a new conversation; /quit or the end of the input leaves.

    Example: tercet chat demo/rlhf --compare demo/sft
    """
    from tercet.inference.chat import Chat

    paths = [run] + ([compare] if compare else [])
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    chats = [Chat(path, system=system, max_new_tokens=max_new_tokens, **sampling) for path in paths]
    if sys.stdin.isatty():
        typer.echo("/new starts a new conversation, /quit leaves.")
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are not UTF-8 are replaced, so that the chat goes on
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


def _answer(complete: Callable[[str, Callable[[str], None]], str], text: str, label: str) -> None:
    typer.echo(label, nl=False)
    try:
        complete(text, _show)
    except ContextError as error:
        typer.echo(f"({error})", nl=False)
    typer.echo()


def _show(piece: str) -> None:
    typer.echo(piece, nl=False)
    sys.stdout.flush()
