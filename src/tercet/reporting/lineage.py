"""Find the runs of a report: their labels, their parents, and the commands that repeat them."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tercet.training.run import Run
from tercet.training.settings import option_name
from tercet.training.stage import settings_of, stage_of, stages


@dataclass(frozen=True)
class Parent:
    """A run that another run was made from. `label` is "" where it no longer exists."""

    role: str
    path: str
    label: str
    sha256: str  # of its weights when the child began; "" where the child read files of it and no weights
    changed: bool  # whether its weights have changed since


@dataclass(frozen=True)
class Member:
    """One run of a report; `level` is the number of generations above it, at most."""

    run: Run
    label: str
    level: int
    parents: tuple[Parent, ...]
    sha256: str  # of its newest weights; "" where it has none

    @property
    def verb(self) -> str:
        """The stage's command."""
        return str(self.run.manifest["verb"])

    @property
    def done(self) -> int:
        """The last step in metrics.jsonl; 0 where there is none."""
        return max((int(row["step"]) for row in self.run.read_lines("metrics.jsonl")), default=0)


def command(run: Run) -> str:
    """Return the command line that repeats a run: the required settings and those that differ from their defaults.

    Raises CheckpointError where the run's stage is unknown, ConfigError where one of its settings is.
    """
    stage, config = stage_of(run), settings_of(run)
    words = ["tercet", stage.verb]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        flag = option_name(field)
        if value is None or value == field.default:
            continue
        if field.name == stage.positional:
            words.append(str(value))
        elif isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            for part in value if isinstance(value, tuple) else (value,):
                words += [flag, str(part)]
    return shlex.join([*words, "--out", str(run.path)])


def family(paths: Sequence[str | Path]) -> list[Member]:
    """Return the runs at `paths` and all their ancestors that still exist, by stage, parents before children.

    Raises ConfigError where one of `paths` is not a run, CheckpointError where one is of an unknown stage.
    """
    runs: dict[str, Run] = {}
    for path in paths:
        _collect(Run(path), runs)
    order = sorted(runs, key=lambda key: _place(runs[key]))  # stable: ancestors of the same stage stay in front
    labels = _labels({key: runs[key] for key in order})
    hashes = {key: run.weights_hash() if run.checkpoints() else "" for key, run in runs.items()}
    levels: dict[str, int] = {}
    for key, run in runs.items():
        levels[key] = 1 + max((levels.get(_key(p), -1) for _, p, _ in _parents(run)), default=-1)

    def parent(role: str, path: Path, sha256: str) -> Parent:
        now = hashes.get(_key(path), "")
        return Parent(role, str(path), labels.get(_key(path), ""), sha256, bool(sha256 and now and now != sha256))

    def member(key: str) -> Member:
        parents = tuple(parent(*known) for known in _parents(runs[key]))
        return Member(runs[key], labels[key], levels[key], parents, hashes[key])

    return [member(key) for key in order]


def label_of(path: str, verb: str, members: Sequence[Member]) -> str:
    """Return the label of the run at `path`; outside the report, it is the stage's label with the folder's name."""
    for member in members:
        if _key(member.run.path) == _key(path):
            return member.label
    return f"{stages()[verb].label if verb in stages() else verb} ({Path(path).name})"


def _key(path: str | Path) -> str:
    return os.path.realpath(path)


def _parents(run: Run) -> list[tuple[str, Path, str]]:
    """Return (role, path, hash) of the runs it was made from.

    Where it read files of a run, such as rankings, the role is the name of their folder and the hash is "".
    """
    out = []
    for role, parent in run.manifest["parents"].items():
        out.append((role, Path(os.path.normpath(run.path / parent["path"])), str(parent["sha256"])))
    # files in a folder inside a run were made by that run
    folders = dict.fromkeys(Path(p).parent for p in settings_of(run).files())
    out += [(f.name, f.parent, "") for f in folders if (f.parent / "run.json").is_file() and f.parent != run.path]
    return out


def _collect(run: Run, runs: dict[str, Run]) -> None:
    """Put a run's ancestors and then the run itself into `runs`."""
    if _key(run.path) in runs:
        return
    for _, path, _ in _parents(run):
        if (path / "run.json").is_file():
            _collect(Run(path), runs)
    runs[_key(run.path)] = run


def _place(run: Run) -> tuple[int, str]:
    return stage_of(run).order, _variant(run)


def _variant(run: Run) -> str:
    """Return the part of a label that names the settings that are 0 where that makes another method: ", γ = 0"."""
    return "".join(f", {text}" for name, text in stage_of(run).variants.items() if run.config.get(name) == 0)


def _labels(runs: dict[str, Run]) -> dict[str, str]:
    """Return a label for each run; equal labels get the folder's name too, or the path where that is equal as well."""
    names = {k: stage_of(r).label + _variant(r) for k, r in runs.items()}
    for extra in (lambda r: r.path.name, lambda r: str(r.path)):
        count = Counter(names.values())
        names = {k: f"{name} ({extra(runs[k])})" if count[name] > 1 else name for k, name in names.items()}
    return names
