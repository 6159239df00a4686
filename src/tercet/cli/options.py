"""Commands made from settings classes: each field is an option, with its help, type and default."""

from __future__ import annotations

import dataclasses
import glob
import inspect
import json
import os
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from tercet.errors import ConfigError
from tercet.training.settings import Settings, TuneSettings, from_json, option_name

# what the help of a list option ends with: its values are separated by commas, or they are texts that may hold commas
MANY, REPEATED = "  [list: with commas, or repeat the option]", "  [list: repeat the option]"
_COMMAND = re.compile(r"\s*([^\s*]+\s*\*\s*)?process:")  # a reward's command line, which may hold commas of its own
_CLOSING = {")": "(", "]": "[", "}": "{"}
_SHARED = {f.name for f in dataclasses.fields(TuneSettings)}  # settings that the stages have in common


def _option(field: dataclasses.Field[Any], hint: Any) -> tuple[Any, Any]:
    """Return (annotation, default) of a field's typer option. Every option may be left out: --config can give it."""
    many, value, flag = typing.get_origin(hint) is tuple, field.default, option_name(field)
    notes = ""
    if value is dataclasses.MISSING:
        notes = "  [required]"
    elif value is not False and value not in ((), "", None):
        text = "on" if value is True else ",".join(map(str, value)) if many else f"{value}"
        notes = f"  [default: {text}]"
    if choices := field.metadata.get("choices"):
        notes = f"  [one of: {', '.join(choices)}]{notes}"
    if many:
        notes += REPEATED if field.metadata.get("whole") else MANY
    if value is True:
        flag += "/--no-" + flag.removeprefix("--")
    annotation = list[str] | None if many else hint | None  # "0,1,4" is three numbers, so lists are read as text
    return annotation, typer.Option(None, flag, help=field.metadata["help"] + notes, show_default=False)


class SettingsParser:
    """Make the command-line options of a settings class, and read the settings that were typed."""

    def __init__(self, name: str, cls: type[Settings], extra: Mapping[str, inspect.Parameter] | None = None) -> None:
        self.name, self.cls, self.extra = name, cls, dict(extra or {})
        self.types = typing.get_type_hints(cls)

    def read(self, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Return (settings, values of the extra parameters) from what typer gives a command. Raises ConfigError."""
        own = {key: given.pop(key) for key in self.extra}
        file = given.pop("config")
        values = _from_file(file)
        fields = {f.name: f for f in dataclasses.fields(self.cls)}
        values |= {k: _values(fields[k], v, self.types[k]) for k, v in given.items() if v is not None and v != []}
        return from_json(self.cls, values, f"tercet {self.name}" + (f" --config {file}" if file else "")), own

    def install(self, app: typer.Typer, command: Callable[..., None], example: str, positional: str = "") -> None:
        """Make `command(**given)` a command of `app`. `positional` names the field that is typed without an option.

        Its options stand in this order: those that must be given, the command's own, those that all stages share.
        """
        fields = dataclasses.fields(self.cls)
        ranked = [(self._rank(f, positional), self._parameter(f, positional)) for f in fields]
        ranked += [(1 if p.default.default is ... else 3, p) for p in self.extra.values()]
        config_option = typer.Option(
            None, "--config", help="config.json of a run to repeat; options given here override it.", show_default=False
        )
        keyword = inspect.Parameter.KEYWORD_ONLY
        ranked.append((5, inspect.Parameter("config", keyword, default=config_option, annotation=Path | None)))
        parameters = [parameter for _, parameter in sorted(ranked, key=lambda pair: pair[0])]  # stable
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__ = self.name
        doc = inspect.cleandoc(self.cls.__doc__ or "")
        app.command(self.name, help=f"{doc}\n\nExample: {example}", no_args_is_help=True)(command)

    def _rank(self, field: dataclasses.Field[Any], positional: str) -> int:
        if field.name == positional:
            return 0
        return 1 if field.default is dataclasses.MISSING else 4 if field.name in _SHARED else 2

    def _parameter(self, field: dataclasses.Field[Any], positional: str) -> inspect.Parameter:
        annotation, default = _option(field, self.types[field.name])
        if field.name == positional:
            default = typer.Argument(None, help=field.metadata["help"] + "  [required]", show_default=False)
        return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def add_command(
    app: typer.Typer,
    name: str,
    cls: type[Settings],
    action: Callable[..., None],
    example: str,
    positional: str = "",
    extra: Mapping[str, inspect.Parameter] | None = None,
) -> None:
    """Add command `name`: options from `cls`, then `action(config, **extra)`.

    `positional` names a field that is given as argument(s) instead of an option; `extra` are the action's own
    parameters.
    """
    parser = SettingsParser(name, cls, extra)

    def command(**given: Any) -> None:
        config, own = parser.read(given)
        action(config, **own)

    parser.install(app, command, example, positional)


def split_list(texts: Sequence[str]) -> list[str]:
    """Return the values of a list option, which may be repeated and may hold several values with commas between them.

    Commas within brackets belong to a value, as in mean(runs/a,runs/b), and so do those of a command line
    (process:…), of a file that is there, and of a pattern that finds files.
    """
    out: list[str] = []
    for text in texts:
        # os.path.exists: a list may be longer than a file's name may be, which Path.exists does not take
        whole = _COMMAND.match(text) or os.path.exists(text) or any(glob.iglob(text))
        out += [text] if whole else _split(text)
    return [part.strip() for part in out if part.strip()]


def _split(text: str) -> list[str]:
    """Split a text at every comma that is not within a pair of brackets; a bracket without its other half is a letter.

    Brackets may be nested.
    """
    opened: list[int] = []
    within = [False] * len(text)
    for place, character in enumerate(text):
        if character in "([{":
            opened.append(place)
        elif opened and _CLOSING.get(character) == text[opened[-1]]:
            start = opened.pop()
            within[start:place] = [True] * (place - start)
    commas = [place for place, character in enumerate(text) if character == "," and not within[place]]
    return [text[start + 1 : end] for start, end in zip([-1, *commas], [*commas, len(text)], strict=True)]


def _values(field: dataclasses.Field[Any], value: Any, hint: Any) -> Any:
    """Return what was typed for a setting; of a list option its values. Raises ConfigError where one is no number."""
    if typing.get_origin(hint) is not tuple or field.metadata.get("whole"):
        return value
    inner = typing.get_args(hint)[0]
    try:
        return [inner(part) for part in split_list(value)]
    except ValueError as error:
        numbers = "whole numbers, for example 0,1,4" if inner is int else "numbers, for example 1e10,2e10"
        raise ConfigError(f"{option_name(field)} {','.join(value)}: wanted {numbers}") from error


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--config {path}: cannot be read: {error.strerror}; name the config.json of a run"
        ) from error
    except ValueError as error:
        raise ConfigError(f"--config {path}: cannot be read as JSON: {error}; name the config.json of a run") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: wanted an object with settings, found {type(values).__name__}")
    return values


def option(hint: Any, flag: str, help: str, default: Any = None) -> inspect.Parameter:
    """Return an extra option of a command made by `add_command`; `...` as default makes it required."""
    return inspect.Parameter(
        flag.strip("-").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(default, flag, help=help),
        annotation=hint,
    )
