"""Stages: what a stage is, the registry that finds them, and what happens before and after each of them.

A stage is declared in a file named stage.py or *_stage.py anywhere in the package, beside its settings:

    STAGE = Stage("sft", SFTConfig, "tercet.posttraining.sft.tune:sft", order=30, label="SFT", …)

The registry finds the file. The command line, `resume`, the lineage, the report, `tercet doctor` and the names in Python
read the declaration, so a new stage is one new file. Such files do not import torch: `tercet --help` reads them all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from importlib import import_module
from keyword import iskeyword
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.errors import CheckpointError
from tercet.training.settings import ANY_MODEL, TOKENIZER, Settings, from_json

if TYPE_CHECKING:
    from tercet.training.progress import Progress
    from tercet.training.run import Run

PACKAGE = Path(__file__).resolve().parents[1]


def load_object(reference: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)


@dataclass(frozen=True)
class Stage:
    """Everything that the rest of the program knows of a stage. Texts with a colon name an object as "module:name".

    Call it to run it: `STAGE(config, out)` makes a run in the new folder `out` and returns it.
    """

    verb: str  # the command; in Python with _ for -
    settings: type[Settings]  # its docstring is the command's help
    body: str  # function (config, run) → None: prepares the data, trains, writes into the run
    order: int  # its place in the order of the lecture
    label: str  # what a run of it is called: "SFT"
    example: str  # a command line
    makes: str = ""  # LANGUAGE_MODEL or REWARD_MODEL, or "" for a stage that writes only files
    deed: str = ""  # what it did to the model, for the report's first sentence: "tuned on conversations"
    variants: Mapping[str, str] = field(default_factory=dict)  # setting → what the label says where it is 0
    positional: str = ""  # the setting that is typed without its option
    section: str = ""  # function (members) → the section of the report
    checks: str = ""  # the doctor's checks of its records
    probe: str = ""  # function (run, model, tokenizer) → the doctor's fresh measurements

    @property
    def name(self) -> str:
        """Its name in Python: `best_of_n`, and `import_model` since `import` is a word of Python itself."""
        return self.verb.replace("-", "_") + ("_model" if iskeyword(self.verb) else "")

    def __call__(
        self, config: Settings, out: str | Path, *, resume: bool = False, progress: Progress | None = None
    ) -> Run:
        """Run the stage into the folder `out`; with `resume` continue the run that is there.

        Raises ConfigError, DataError, ContextError on bad settings and input, CheckpointError where a resumed run or a
        parent has changed, NonFiniteError where training diverges.
        """
        with self.start(config, out, resume=resume, progress=progress) as run:
            self.function(config, run)
        return run

    @property
    def function(self) -> Callable[[Any, Run], None]:
        """The stage's own function, imported now."""
        found: Callable[[Any, Run], None] = load_object(self.body)
        return found

    @contextlib.contextmanager
    def start(
        self, config: Settings, out: str | Path, *, resume: bool = False, progress: Progress | None = None
    ) -> Iterator[Run]:
        """Open the parents, make or resume the run, pin its inputs, take over tokenizer and shape of the parent model."""
        from tercet.tokenizer.bpe import Tokenizer
        from tercet.training.load import open_run
        from tercet.training.run import Run, threads

        parents = {role: open_run(path, wanted) for role, (path, wanted) in config.parents().items()}
        with (
            Run.start(self.verb, config, out, parents=parents, resume=resume, progress=progress) as run,
            threads(getattr(config, "threads", 0)),
        ):
            run.pin_inputs(input_hashes(config))
            if self.makes and "model" in parents:
                Tokenizer.load(parents["model"].path).save(run.path / "tokenizer.json")
                run.save_model_config(parents["model"].model_config())
            yield run


def input_hashes(config: Settings) -> dict[str, str]:
    """The hashes of all that a stage reads, by its path: files by their bytes, tokenizers by what they do."""
    from tercet.data.readers import fingerprints
    from tercet.tokenizer.bpe import Tokenizer

    named = [getattr(config, f.name) for f in fields(config) if f.metadata["reads"] == TOKENIZER]
    return {**fingerprints(config.files()), **{path: Tokenizer.load(path).fingerprint() for path in named}}


@cache
def stages() -> dict[str, Stage]:
    """Every stage by its verb, in the order of the lecture."""
    found: list[Stage] = []
    for file in sorted(PACKAGE.rglob("*stage.py")):
        if file != Path(__file__).resolve():
            module = import_module(".".join(("tercet", *file.relative_to(PACKAGE).with_suffix("").parts)))
            found += [value for value in vars(module).values() if isinstance(value, Stage)]
    return {stage.verb: stage for stage in sorted(found, key=lambda stage: (stage.order, stage.verb))}


def stage_of(run: Run) -> Stage:
    """The stage that made a run. Raises CheckpointError where this version has no such stage."""
    if (verb := str(run.manifest["verb"])) not in stages():
        raise CheckpointError(
            f"{run.path / 'run.json'}: verb is {verb!r}; wanted one of {', '.join(stages())}: was it made by a newer version?"
        )
    return stages()[verb]


def makers(wanted: str) -> list[str]:
    """The verbs of the stages that make models of a kind."""
    return [verb for verb, stage in stages().items() if stage.makes == wanted or (wanted == ANY_MODEL and stage.makes)]


def settings_of(run: Run) -> Settings:
    """The settings of a run. Raises ConfigError where config.json has one that is unknown or impossible."""
    return from_json(stage_of(run).settings, run.config, f"{run.path}/config.json")


def resume(path: str | Path, progress: Progress | None = None) -> Run:
    """Continue a run that was interrupted or killed; the result has the same bits as if it never had been.

    Raises CheckpointError where the run is finished or was made by an unknown stage, ConfigError where `path` is no run.
    """
    from tercet.training.run import Run

    run = Run(path)
    stage = stage_of(run)
    if run.manifest["status"] == "finished":
        raise CheckpointError(f"{path}: is finished; there is nothing to resume")
    return stage(settings_of(run), path, resume=True, progress=progress)


def public_names() -> dict[str, Any]:
    """What the registry adds to `import tercet`: every stage under its name in Python, and its settings class."""
    found: dict[str, Any] = {}
    for stage in stages().values():
        found |= {stage.name: stage, stage.settings.__name__: stage.settings}
    return found
