"""Stages: the declaration of a stage, the registry that finds all stages, and the steps that every stage shares.

A stage is declared in a file named stage.py or *_stage.py anywhere in the package, beside its settings:

    STAGE = Stage("sft", SFTConfig, "tercet.posttraining.sft.tune:sft", order=30, label="SFT", …)

The registry finds the file. The command line, `resume`, the lineage, the report, `tercet doctor` and the names in
Python all read the declaration, so a new stage is one new file. These files do not import torch, because
`tercet --help` reads them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tercet.errors import CheckpointError, ConfigError
from tercet.training.settings import (
    ANY_MODEL,
    LANGUAGE_MODEL,
    REWARD_MODEL,
    TOKENIZER,
    Settings,
    from_json,
    option_name,
)

if TYPE_CHECKING:
    from tercet.training.progress import Progress
    from tercet.training.run import Run

C = TypeVar("C")
PACKAGE = Path(__file__).resolve().parents[1]


def load_object(reference: str) -> Any:
    """Import the object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Stage:
    """The declaration of a stage, which is all that the rest of the program knows of it.

    Call it to run the stage: `STAGE(config, out)` makes a run in the new folder `out` and returns it. The
    fields `body`, `section`, `checks` and `probe` name objects as "module:name".
    """

    verb: str  # the command; in Python with _ for -
    settings: type[Settings]  # its docstring is the command's help
    body: str  # function (config, run) → None: prepares the data, trains, writes into the run
    order: int  # rank among the stages, in the order in which they are used
    label: str  # the name of such a run in reports: "SFT"
    example: str  # a command line
    makes: str = ""  # LANGUAGE_MODEL or REWARD_MODEL, or "" for a stage that writes only files
    deed: str = ""  # the stage's effect, for the report's first sentence: "tuned on conversations"
    variants: Mapping[str, str] = field(default_factory=dict)  # setting → text added to the label if it is 0
    positional: str = ""  # the setting that is typed without its option
    section: str = ""  # function (members) → the section of the report
    checks: str = ""  # the doctor's checks of its records
    probe: str = ""  # function (run, model, tokenizer) → the doctor's fresh measurements

    @property
    def name(self) -> str:
        """The stage's name in Python: `best_of_n`; `import_model`, because `import` is a keyword."""
        return self.verb.replace("-", "_") + ("_model" if iskeyword(self.verb) else "")

    def __call__(
        self, config: Settings, out: str | Path, *, resume: bool = False, progress: Progress | None = None
    ) -> Run:
        """Run the stage in the folder `out`, or with `resume` continue the run in it, and return the run.

        Raises ConfigError, DataError or ContextError for wrong settings and input, CheckpointError if a resumed run or
        a parent has changed, NonFiniteError if training diverges.
        """
        with self.start(config, out, resume=resume, progress=progress) as run:
            self.function(config, run)
        return run

    @property
    def function(self) -> Callable[[Any, Run], None]:
        """The stage's own function; its module is imported now."""
        body: Callable[[Any, Run], None] = load_object(self.body)
        return body

    @contextlib.contextmanager
    def start(
        self, config: Settings, out: str | Path, *, resume: bool = False, progress: Progress | None = None
    ) -> Iterator[Run]:
        """Open the parents, make or resume the run, pin its inputs, copy tokenizer and shape of the parent model."""
        from tercet.tokenizer.bpe import Tokenizer
        from tercet.training.run import Run, threads

        parents = {role: open_run(path, wanted) for role, (path, wanted) in config.parents().items()}
        hashes = input_hashes(config)  # before the folder is made, so that a wrong path leaves none
        with (
            Run.start(self.verb, config, out, parents=parents, resume=resume, progress=progress) as run,
            threads(getattr(config, "threads", 0)),
        ):
            run.pin_inputs(hashes)
            if self.makes and "model" in parents:
                Tokenizer.load(parents["model"].path).save(run.path / "tokenizer.json")
                run.save_model_config(parents["model"].model_config())
            yield run


def input_hashes(config: Settings) -> dict[str, str]:
    """Return the hashes of all inputs of a stage by path: of the bytes of files, of the behaviour of tokenizers.

    Raises DataError for a file that cannot be read, ConfigError if an option names something else than a tokenizer.
    """
    from tercet.data.readers import file_hashes
    from tercet.tokenizer.bpe import Tokenizer

    hashes = file_hashes(config.files())
    for setting in fields(config):
        if setting.metadata["reads"] == TOKENIZER:
            path = getattr(config, setting.name)
            try:
                hashes[path] = Tokenizer.load(path).fingerprint()
            except CheckpointError as error:
                raise ConfigError(f"{option_name(setting)} {error}") from error
    return hashes


def declared(kind: type[C], files: Iterable[Path]) -> list[C]:
    """Import files of the package and return the objects of this kind that they declare."""
    modules = [".".join(("tercet", *file.relative_to(PACKAGE).with_suffix("").parts)) for file in sorted(files)]
    return [value for module in modules for value in vars(import_module(module)).values() if isinstance(value, kind)]


@cache
def stages() -> dict[str, Stage]:
    """Return every stage by verb, in the order in which they are used. Raises ConfigError if two have the same verb."""
    files = {*PACKAGE.rglob("*stage.py")} - {Path(__file__).resolve()}
    found: dict[str, Stage] = {}
    for stage in sorted(declared(Stage, files), key=lambda stage: (stage.order, stage.verb)):
        if (other := found.setdefault(stage.verb, stage)) is not stage:
            raise ConfigError(
                f"two stages have the verb {stage.verb!r}: {other.body} and {stage.body}; give one of them another verb"
            )
    return found


def stage_of(run: Run) -> Stage:
    """Return the stage that made a run. Raises CheckpointError if this version has no such stage."""
    if (verb := str(run.manifest["verb"])) not in stages():
        raise CheckpointError(
            f"{run.path / 'run.json'}: verb is {verb!r}; wanted one of {', '.join(stages())}; "
            "if a newer version of tercet made the run, use that version"
        )
    return stages()[verb]


def makers(wanted: str) -> list[str]:
    """Return the verbs of the stages that make models of the `wanted` kind."""
    return [verb for verb, stage in stages().items() if stage.makes == wanted or (wanted == ANY_MODEL and stage.makes)]


def trained_by(run: Run) -> str:
    """Return the verb of the stage that trained the weights; for a merged run, that of the run it was merged from."""
    return str(run.manifest.get("merges", run.manifest["verb"]))


def holds(run: Run) -> str:
    """Return the kind of model that a run contains: LANGUAGE_MODEL, REWARD_MODEL or ""."""
    stage = stages().get(trained_by(run))
    return stage.makes if stage is not None else ""


def open_run(path: str, wanted: str) -> Run:
    """Open a run that contains the `wanted` kind of model. Raises ConfigError if it contains another one or none."""
    from tercet.training.run import Run

    run = Run(path)
    if trained_by(run) not in makers(wanted):
        known = ", ".join(f"`tercet {verb}`" for verb in makers(wanted))
        contents = holds(run) or f"{run.manifest['verb']} run"
        raise ConfigError(f"{run.path} is a {contents}; wanted a {wanted}, as made by {known}")
    return run


def language_model_run(path: str) -> Run:
    """Open a run that contains a language model. Raises ConfigError if it contains none."""
    return open_run(path, LANGUAGE_MODEL)


def reward_model_run(path: str) -> Run:
    """Open a run that contains a reward model. Raises ConfigError if it contains none."""
    return open_run(path, REWARD_MODEL)


def settings_of(run: Run) -> Settings:
    """Return the settings of a run. Raises ConfigError if config.json has an unknown or impossible one."""
    return from_json(stage_of(run).settings, run.config, f"{run.path}/config.json")


def resume(path: str | Path, progress: Progress | None = None) -> Run:
    """Continue a run that was interrupted or killed; the result is bit-identical to that of an uninterrupted run.

    Raises CheckpointError if the run is finished or was made by an unknown stage, ConfigError if `path` is not a run.
    """
    from tercet.training.run import Run

    run = Run(path)
    stage = stage_of(run)
    if run.manifest["status"] == "finished":
        raise CheckpointError(f"{path}: is finished; there is nothing to resume")
    return stage(settings_of(run), path, resume=True, progress=progress)


def public_names() -> dict[str, Any]:
    """Return what stages add to `import tercet`: every stage by its name in Python, and its settings class."""
    names: dict[str, Any] = {}
    for stage in stages().values():
        names |= {stage.name: stage, stage.settings.__name__: stage.settings}
    return names
