"""Commands made from settings classes: each field is an option, with its help, type and default."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from tercet.errors import ConfigError
from tercet.training.settings import Settings, from_json, option_name

MANY, REPEATED = "  (several: with commas, or repeat it)", "  (may be repeated)"
_SEPARATOR = re.compile(r",(?![^()\[\]{}]*[)\]}])")  # a comma that is not within brackets


def _option(field: dataclasses.Field[Any], kind: Any, flag: str) -> tuple[Any, Any]:
    """(annotation, default) of the typer option for a field. Every option may be left out: --config can give it."""
    many = typing.get_origin(kind) is tuple
    required = field.default is dataclasses.MISSING
    value: Any = field.default
    default = "" if required or value in ((), "") else f"  [default: {' '.join(map(str, value)) if many else value}]"
    text = (
        field.metadata["help"]
        + ("  [required]" if required else default)
        + (MANY if many and not field.metadata.get("whole") else REPEATED if many else "")
    )
    if kind is bool and value is True:
        flag += "/--no-" + flag.removeprefix("--")
    inner = typing.get_args(kind)[0] if many else kind
    inner = str if many else inner  # "0,1,4" is three of them
    annotation = list[inner] | None if many else kind | None  # type: ignore[valid-type]
    return annotation, typer.Option(None, flag, help=text, show_default=False)


class SettingsParser:
    """The command-line options of a settings class, and the settings that were typed."""

    def __init__(self, name: str, cls: type[Settings], extra: Mapping[str, inspect.Parameter] | None = None) -> None:
        self.name, self.cls, self.extra = name, cls, dict(extra or {})
        self.kinds = typing.get_type_hints(cls)

    def read(self, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """(settings, values of the extra parameters) of what typer gives a command. Raises ConfigError."""
        own = {key: given.pop(key) for key in self.extra}
        values = _from_file(given.pop("config"))
        fields = {f.name: f for f in dataclasses.fields(self.cls)}
        values |= {k: _values(fields[k], v, self.kinds[k]) for k, v in given.items() if v is not None and v != []}
        return from_json(self.cls, values, f"tercet {self.name}"), own

    def install(self, app: typer.Typer, command: Callable[..., None], example: str, positional: str = "") -> None:
        """Make `command(**given)` a command of `app`. `positional` names the field that is typed without an option."""
        parameters = [self._parameter(field, positional) for field in dataclasses.fields(self.cls)]
        declared = self.cls.__annotations__
        own = {f.name: f.default is not dataclasses.MISSING for f in dataclasses.fields(self.cls) if f.name in declared}
        # what must be given comes first, then what is the stage's own, then what all stages share
        parameters.sort(key=lambda p: (p.name != positional, own.get(p.name, True), p.name not in own))
        config_option = typer.Option(
            None, "--config", help="config.json of a run to repeat; options given here override it", show_default=False
        )
        parameters.append(
            inspect.Parameter("config", inspect.Parameter.KEYWORD_ONLY, default=config_option, annotation=Path | None)
        )
        parameters += self.extra.values()
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters}
        command.__name__ = self.name
        doc = inspect.cleandoc(self.cls.__doc__ or "")
        app.command(self.name, help=f"{doc}\n\nExample: {example}", no_args_is_help=True)(command)

    def _parameter(self, field: dataclasses.Field[Any], positional: str) -> inspect.Parameter:
        flag = option_name(field)
        annotation, default = _option(field, self.kinds[field.name], flag)
        if field.name == positional:
            default = typer.Argument(None, help=field.metadata["help"], show_default=False)
        return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def add_command(app: typer.Typer, name: str, cls: type[Settings], action: Callable[..., None], *, example: str,
                extra: Mapping[str, inspect.Parameter] | None = None, positional: str = "") -> None:  # fmt: skip
    """Add command `name`: options from `cls`, then `action(config, **extra)`.

    `positional` names a field that is given as argument(s) instead of an option; `extra` are the action's own parameters.
    """
    parser = SettingsParser(name, cls, extra)

    def command(**given: Any) -> None:
        config, own = parser.read(given)
        action(config, **own)

    parser.install(app, command, example, positional)


def split_list(texts: Sequence[str]) -> list[str]:
    """The values of a list option, which may be repeated and may hold several values with commas between them.

    Commas within brackets belong to a value, as in mean(runs/a,runs/b), and so do those of a file that is there.
    """
    out: list[str] = []
    for text in texts:
        out += [text] if Path(text).exists() else _SEPARATOR.split(text)
    return [part.strip() for part in out if part.strip()]


def _values(field: dataclasses.Field[Any], value: Any, kind: Any) -> Any:
    """What was typed for a setting; of a list option its values. Raises ConfigError where one is no number."""
    if typing.get_origin(kind) is not tuple or field.metadata.get("whole"):
        return value
    parts, inner = split_list(value), typing.get_args(kind)[0]
    try:
        return [inner(part) for part in parts]
    except ValueError as error:
        numbers = "whole numbers, for example 0,1,4" if inner is int else "numbers, for example 1e10,2e10"
        raise ConfigError(f"{option_name(field)} {','.join(value)}: wanted {numbers}") from error


def _from_file(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--config {path}: cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"--config {path}: wanted an object with settings, found {type(values).__name__}")
    return values


def option(kind: Any, flag: str, help: str, default: Any = None) -> inspect.Parameter:
    """One extra option of a command made by `add_command`; `...` as default makes it required."""
    return inspect.Parameter(
        flag.strip("-").replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=typer.Option(default, flag, help=help),
        annotation=kind,
    )
