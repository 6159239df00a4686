"""Settings: a frozen dataclass per stage is the one place that names, types, explains and checks them.

The command line's options, `config.json` and the documentation are made from these classes. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeVar

from tercet.errors import ConfigError

C = TypeVar("C")


def setting(default: Any, help: str, *, minimum: float | None = None, choices: tuple[str, ...] | None = None) -> Any:
    """A dataclass field with its explanation and its bounds; `...` as default makes it required."""
    metadata = {"help": help, "minimum": minimum, "choices": choices}
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@lru_cache(maxsize=None)
def field_types(cls: type) -> dict[str, Any]:
    """Resolved type of every field."""
    return typing.get_type_hints(cls)


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part) for part in typing.get_args(kind))
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(isinstance(v, typing.get_args(kind)[0]) for v in value)
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Base of every stage's settings: checked when made, strict when read back."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), field_types(type(self))[field.name]
            where = f"{type(self).__name__}.{field.name}"
            if not _fits(value, kind):
                raise ConfigError(f"{where} is {value!r}; wanted {getattr(kind, '__name__', kind)}")
            minimum, choices = field.metadata.get("minimum"), field.metadata.get("choices")
            if minimum is not None and value is not None and not value >= minimum:
                raise ConfigError(f"{where} is {value!r}; it must be at least {minimum:g}")
            if choices is not None and value not in choices:
                raise ConfigError(f"{where} is {value!r}; wanted one of {', '.join(choices)}{suggest(str(value), choices)}")

    def to_json(self) -> dict[str, Any]:
        """Every setting with its value, for `config.json`."""
        return dataclasses.asdict(self)


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """"; did you mean X?" where a known name is close, else nothing."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def from_json(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """The settings of class `cls` from JSON values. Unknown and missing settings raise ConfigError naming `where`."""
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for name in values:
        if name not in names:
            raise ConfigError(f"{where}: unknown setting {name!r}{suggest(name, names)}; known are {', '.join(names)}")
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return cls(**kwargs)
    except TypeError as error:  # a required setting is missing
        raise ConfigError(f"{where}: {error}") from error
