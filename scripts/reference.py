"""Write the generated pages of the documentation: the command line from its options, Python from its docstrings.

    python scripts/reference.py            # docs/reference/command-line.md and docs/reference/python.md

Both pages come from the code alone and are not committed, so that they cannot differ from it.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

import tercet
from tercet.cli.main import app
from tercet.training.stage import Stage

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "reference"
NOTICE = "This page is generated from the code by `scripts/reference.py`."


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command as ("tercet scaling run", command), in the order of `tercet --help`."""
    queue = [("tercet", typer.main.get_command(app))]
    while queue:
        name, command = queue.pop(0)
        inner: dict[str, Any] = getattr(command, "commands", {})
        if inner:
            queue[:0] = [(f"{name} {key}", value) for key, value in inner.items()]
        else:
            yield name, command


def command_line() -> str:
    """Return the page of all commands: what each does, an example, its arguments and options with their defaults."""
    lines = ["# Command line", "", NOTICE, "", "Every command prints the same text with `--help`.", ""]
    lines += ["| command | what it does |", "|---|---|"]
    for name, command in commands():
        first = _cell(_paragraphs(command.help)[0])
        lines.append(f"| [`{name}`](#{name.replace(' ', '-')}) | {first} |")
    lines += [
        "",
        "Exit codes: 0 done, 1 failure, 2 a wrong setting or input, 130 interrupted and saved ([errors](errors.md)).",
    ]
    for name, command in commands():
        lines += ["", f"## {name}", ""]
        for paragraph in _paragraphs(command.help):
            example = paragraph.removeprefix("Example: ")
            lines += ["    " + example if example != paragraph else _prose(paragraph), ""]
        lines += ["| argument or option | default | what it does |", "|---|---|---|"]
        lines += [_row(parameter) for parameter in command.params]
    return "\n".join(lines) + "\n"


def _paragraphs(text: str | None) -> list[str]:
    return [" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n") if part.strip()]


def _row(parameter: Any) -> str:
    """Return a table row for one argument or option."""
    argument = parameter.param_type_name == "argument"
    names = [parameter.name.upper()] if argument else [*parameter.opts, *parameter.secondary_opts]
    shown = ", ".join(f"`{name}`" for name in names)
    text = parameter.help or ""
    given = re.search(r"\s*\[default: (.*?)\]", text)
    needed = parameter.required or "[required]" in text
    fixed = parameter.default
    default = "required" if needed else given[1] if given else "" if fixed in (None, "", (), []) else str(fixed)
    text = re.sub(r"\s*\[(default: .*?|required)\]", "", text)
    return f"| {shown} | {_cell(default)} | {_cell(text)} |"


def _prose(text: str) -> str:
    """Return text in which nothing is taken for HTML or for a link."""
    parts = re.split(r"(`[^`]*`)", text)
    plain = [re.sub(r"([<\[*_])", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts)]
    return "".join(plain)


def _cell(text: str) -> str:
    return _prose(" ".join(text.split())).replace("|", "&#124;")


def python() -> str:
    """Return the page of the public names of `tercet`: signatures, settings and docstrings."""
    lines = ["# Python", "", NOTICE, "", "`import tercet` is fast: each name loads its module on first use.", ""]
    names = [name for name in tercet.__all__ if not name.startswith("_")]
    lines += ["".join(f"[`{name}`](#{_slug(name)}) " for name in names).rstrip()]
    for name in names:
        thing = getattr(tercet, name)
        lines += ["", f"## {name}", ""]
        if isinstance(thing, Stage):
            lines += _stage(thing)
            continue
        lines += [f"From `{thing.__module__}`.", ""]
        if inspect.isclass(thing) and dataclasses.is_dataclass(thing) and any(_helps(thing)):
            lines += [
                *_docstring(thing),
                "",
                "| setting | default | what it does |",
                "|---|---|---|",
                *_settings(thing),
            ]
            continue
        lines += ["```python", _signature(name, thing), "```", "", *_docstring(thing)]
        if inspect.isclass(thing):
            for method, function in _methods(thing):
                lines += ["", f"### {name}.{method}", "", "```python", _signature(method, function), "```", ""]
                lines += _docstring(function)
    return "\n".join(lines) + "\n"


def _stage(stage: Stage) -> list[str]:
    """Return what a stage does, how it is called, and where its settings and its command are explained."""
    settings = stage.settings.__name__
    call = str(inspect.signature(stage)).replace("config: 'Settings'", f"config: {settings}")
    return [
        f"The stage [`tercet {stage.verb}`](command-line.md#tercet-{stage.verb}), "
        f"from `{stage.body.partition(':')[0]}`. "
        f"Its settings are [`{settings}`](#{_slug(settings)}).",
        "",
        "```python",
        _plain(stage.name + call),
        "```",
        "",
        *_docstring(stage.settings),
    ]


def _slug(name: str) -> str:
    """Return the anchor of a heading, as the site makes it."""
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", name).strip().lower())


def _helps(cls: Any) -> list[str]:
    return [f.metadata["help"] for f in dataclasses.fields(cls) if "help" in f.metadata]


def _settings(cls: Any) -> Iterator[str]:
    for field in dataclasses.fields(cls):
        missing = field.default is dataclasses.MISSING
        default = "required" if missing else f"`{field.default!r}`"
        yield f"| `{field.name}` | {default} | {_cell(field.metadata.get('help', ''))} |"


def _methods(cls: Any) -> Iterator[tuple[str, Any]]:
    for name, member in vars(cls).items():
        if isinstance(member, property):
            continue
        function = getattr(member, "__func__", member)
        if inspect.isfunction(function) and not name.startswith("_"):
            yield name, function


def _signature(name: str, thing: Any) -> str:
    if getattr(thing, "_is_protocol", False):
        return f"class {name}(Protocol)"
    return re.sub(r"\((?:self|cls)(?:, )?", "(", _plain(f"{name}{inspect.signature(thing)}"), count=1)


def _plain(signature: str) -> str:
    """Return a signature without the quotes of annotations that are texts."""
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", signature)


def _docstring(thing: Any) -> list[str]:
    """Return a docstring as Markdown: indented lines and examples are code, all else is prose."""
    text = re.sub(r"^(>>> .*?) *# doctest.*$", r"    \1", inspect.cleandoc(thing.__doc__ or ""), flags=re.M)
    return [line if line.startswith("    ") else _prose(line) for line in text.splitlines()]


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    return {"command-line.md": command_line(), "python.md": python()}


if __name__ == "__main__":
    for file, page in pages().items():
        (FOLDER / file).write_text(page, encoding="utf-8")
        print(f"written: {FOLDER / file}")
