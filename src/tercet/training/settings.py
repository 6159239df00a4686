"""Settings: one frozen dataclass per stage names, types, explains and checks them.

The command line's options, `config.json` and the documentation are made from these classes. No torch here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from tercet.errors import ConfigError
from tercet.model.config import LORA_TARGETS, LoRAConfig

C = TypeVar("C")
OLD_NAMES = {"tasks": "questions", "decay": "cooldown", "journal": "cache"}  # setting names in older runs' config.json
# What a setting may name on disk: see `setting`.
FILES, TOKENIZER = "files", "tokenizer"
ANY_MODEL, LANGUAGE_MODEL, REWARD_MODEL = "model", "language model", "reward model"


def setting(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | None = None,
    flag: str = "",
    reads: str = "",
    whole: bool = False,
    check: Callable[[Any], None] | None = None,
) -> Any:
    """Make a dataclass field with its explanation and its bounds; `...` as default makes it required.

    `flag` is the option's name where it is not the field's. `reads` says what the setting names on disk: FILES,
    TOKENIZER, or a run by what it must hold (ANY_MODEL, LANGUAGE_MODEL, REWARD_MODEL). `check` raises ConfigError for
    any other wrong value. `whole` keeps the commas of a list option's texts; else they separate its values.
    """
    # not one per line: a list of the arguments
    metadata = {
        "help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "flag": flag, "reads": reads,
        "check": check, "whole": whole,
    }  # fmt: skip
    if default is ...:
        return dataclasses.field(metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


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
    """Base class of every stage's settings: values are checked when made, and unknown names are refused when read."""

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), kinds[field.name]
            if isinstance(value, str) and typing.get_origin(kind) is tuple:
                value = (value,)  # a single value may be given without its list
                object.__setattr__(self, field.name, value)
            where = option_name(field)
            if not _fits(value, kind):
                raise ConfigError(f"{where} is {value!r}; wanted {getattr(kind, '__name__', kind)}")
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{where} is {value}; wanted a finite number")
            minimum, choices = field.metadata.get("minimum"), field.metadata.get("choices")
            if minimum is not None and value is not None and not value >= minimum:
                raise ConfigError(f"{where} is {value!r}; it must be at least {minimum:g}")
            maximum = field.metadata.get("maximum")
            if maximum is not None and not value <= maximum:
                raise ConfigError(f"{where} is {value!r}; it must be at most {maximum:g}")
            if choices is not None and value not in choices:
                raise ConfigError(
                    f"{where} is {value!r}; wanted one of {', '.join(choices)}{suggest(str(value), choices)}"
                )
            if check := field.metadata.get("check"):
                check(value)

    def to_json(self) -> dict[str, Any]:
        """Return every setting with its value, for `config.json`."""
        return dataclasses.asdict(self)

    def parents(self) -> dict[str, tuple[str, str]]:
        """Return the runs that the settings name: role → (path, the kind of model that the run must hold)."""
        return {
            f.name: (getattr(self, f.name), f.metadata["reads"])
            for f in dataclasses.fields(self)
            if f.metadata["reads"] in (ANY_MODEL, LANGUAGE_MODEL, REWARD_MODEL) and getattr(self, f.name)
        }

    def files(self) -> tuple[str, ...]:
        """Return the input files, folders and globs that the settings name; a run pins them by their hashes."""
        named = (getattr(self, f.name) for f in dataclasses.fields(self) if f.metadata["reads"] == FILES)
        return tuple(path for value in named for path in ((value,) if isinstance(value, str) else value))


def option_name(field: dataclasses.Field[Any]) -> str:
    """Return the option of a setting as it is typed, such as --lr."""
    return str(field.metadata.get("flag") or "--" + field.name.replace("_", "-"))


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """Return "; did you mean X?" if a known name is close to `name`, else an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def from_json(cls: type[C], values: Mapping[str, Any], where: str) -> C:
    """Make the settings of class `cls` from JSON values.

    Raises ConfigError, naming `where`, if a setting is unknown, missing or has a wrong value.
    """
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    values = {OLD_NAMES[k] if k not in names and OLD_NAMES.get(k) in names else k: v for k, v in values.items()}
    for name in values:
        if name not in names:
            raise ConfigError(f"{where}: unknown setting {name!r}{suggest(name, names)}; known are {', '.join(names)}")
    kwargs = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    required = [f for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]  # type: ignore[arg-type]
    if missing := [option_name(f) for f in required if f.name not in kwargs]:
        raise ConfigError(f"{where}: {', '.join(missing)} must be given")
    return cls(**kwargs)


MUON_HELP = "Learning rate of Muon for the hidden weight matrices. 0 means that AdamW updates all weights."
WARMUP_HELP = "Number of steps at the start in which the learning rate rises linearly. 0 means no warm-up."
COOLDOWN_HELP = "Fraction of the steps, at the end, in which the learning rate falls linearly to 0. 0 means none."


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """Settings shared by every stage that trains."""

    steps: int = setting(1000, "Number of optimizer steps.", minimum=1)
    batch_size: int = setting(16, "Rows in each optimizer step; a row holds as many tokens as the context.", minimum=1)
    lr: float = setting(3e-3, "Learning rate of AdamW.", minimum=0, maximum=1e37)
    muon_lr: float = setting(0.0, MUON_HELP, minimum=0, maximum=1e37)
    weight_decay: float = setting(
        0.0, "Decoupled weight decay: a step shrinks weights by learning rate × this. 0 means none.", minimum=0
    )
    clip_norm: float = setting(
        1.0, "Largest norm of the whole gradient; longer gradients are scaled down to it. 0 means no limit.", minimum=0
    )
    warmup: int = setting(10, WARMUP_HELP, minimum=0)
    cooldown: float = setting(1.0, COOLDOWN_HELP, minimum=0, maximum=1)
    eval_every: int = setting(
        0, "Steps between held-out evaluations. 0 means only before the first and after the last step.", minimum=0
    )
    checkpoint_every: int = setting(100, "Steps between checkpoints. 0 means only after the last step.", minimum=0)
    keep: int = setting(2, "Number of checkpoints to keep; older ones are deleted.", minimum=1)
    skip_bad_rows: bool = setting(False, "Skip and count invalid input rows instead of stopping at the first.")
    threads: int = setting(
        2, "Number of CPU threads. Results are bit-identical only with the same number.", minimum=1, maximum=1024
    )
    seed: int = setting(
        0, "Seed of all random numbers: initial weights, order of the data, samples.", minimum=0, maximum=2**31 - 1
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSettings(TrainSettings):
    """Settings shared by every stage that fine-tunes a model: LoRA, which is off by default."""

    lora_rank: int = setting(
        0,
        "Rank of the low-rank adapters (LoRA) that AdamW trains instead of the weights. 0 means to train the weights.",
        minimum=0,
    )
    lora_alpha: float = setting(
        16.0, "Scale of the LoRA adapters: their output is multiplied by alpha / rank.", minimum=0
    )
    lora_targets: tuple[str, ...] = setting(LORA_TARGETS, "Names of the layers that get a LoRA adapter.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lora()  # refuses impossible settings before any input is read

    def lora(self) -> LoRAConfig | None:
        """Return the adapter's settings, or None if the weights themselves are trained."""
        return LoRAConfig(self.lora_rank, self.lora_alpha, self.lora_targets) if self.lora_rank else None


PRECISION = setting(
    "float32",
    "Number type of matrix products; bfloat16 is faster, but less exact, on processors that support it.",
    choices=("float32", "bfloat16"),
)
MICRO_BATCH = setting(
    0,
    "Rows per forward pass; fewer rows need less memory, with the same result. 0 means about 1,024 tokens.",
    minimum=0,
)


def shares(mixture: tuple[str, ...], where: str) -> dict[str, float] | None:
    """Parse ("code=0.3", "text=0.7") as numbers by name; an empty tuple gives None.

    Raises ConfigError, naming `where`, if an entry is not name=share or a name comes twice.
    """
    out = {}
    for entry in mixture:
        name, _, share = entry.rpartition("=")
        try:
            good = bool(name) and name not in out and math.isfinite(float(share))
            out[name] = float(share)
        except ValueError:
            good = False
        if not good:
            raise ConfigError(f"{where} has {entry!r}; wanted name=share, each name once, for example code=0.3")
    return out or None
