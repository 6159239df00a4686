"""Which runs belong to a report, what each is called, what it came from, and the command that repeats it."""

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
    """A run that another one was made from. `label` is "" where it is no longer there."""

    role: str
    path: str
    label: str
    sha256: str  # of its weights when the child began; "" where rankings and no weights were taken over
    changed: bool  # whether its weights are others now


@dataclass(frozen=True)
class Member:
    """One run of a report; `level` is the longest way from a run without parents."""

    run: Run
    label: str
    level: int
    parents: tuple[Parent, ...]
    sha256: str  # of its own newest weights, "" where it has none

    @property
    def verb(self) -> str:
        """The stage's command."""
        return str(self.run.manifest["verb"])

    @property
    def done(self) -> int:
        """Steps that metrics.jsonl knows of."""
        return max((int(row["step"]) for row in self.run.read_lines("metrics.jsonl")), default=0)


def command(run: Run) -> str:
    """The command line that repeats a run: the required settings and those that differ from their defaults.

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
    """The runs at `paths` and all their ancestors that are still there, by stage, parents before children.

    Raises ConfigError where one of `paths` is no run, CheckpointError where one is of an unknown stage.
    """
    found: dict[str, Run] = {}
    for path in paths:
        _collect(Run(path), found)
    order = sorted(found, key=lambda key: _place(found[key]))  # stable: ancestors of the same stage stay in front
    labels = _labels({key: found[key] for key in order})
    hashes = {key: run.weights_hash() if run.checkpoints() else "" for key, run in found.items()}
    levels: dict[str, int] = {}
    for key, run in found.items():
        levels[key] = 1 + max((levels.get(_key(p), -1) for _, p, _ in _parents(run)), default=-1)
    members = []
    for key in order:
        parents = tuple(
            Parent(
                role, str(p), labels.get(_key(p), ""), sha, bool(sha and hashes.get(_key(p)) and hashes[_key(p)] != sha)
            )
            for role, p, sha in _parents(found[key])
        )
        members.append(Member(found[key], labels[key], levels[key], parents, hashes[key]))
    return members


def label_of(path: str, verb: str, members: Sequence[Member]) -> str:
    """What the run at `path` is called; a run that is not in the report gets its stage's name and its folder's."""
    for member in members:
        if _key(member.run.path) == _key(path):
            return member.label
    return f"{stages()[verb].label if verb in stages() else verb} ({Path(path).name})"


def _key(path: str | Path) -> str:
    return os.path.realpath(path)


def _parents(run: Run) -> list[tuple[str, Path, str]]:
    """(role, path, hash) of the runs it was made from; those whose files it read are named by the folder of the files."""
    out = []
    for role, parent in run.manifest["parents"].items():
        out.append((role, Path(os.path.normpath(run.path / parent["path"])), str(parent["sha256"])))
    # a file in a folder of a run was made by that run
    folders = dict.fromkeys(Path(p).parent for p in settings_of(run).files())
    out += [(f.name, f.parent, "") for f in folders if (f.parent / "run.json").is_file() and f.parent != run.path]
    return out


def _collect(run: Run, found: dict[str, Run]) -> None:
    """Put a run's ancestors and then itself into `found`."""
    if _key(run.path) in found:
        return
    for _, path, _ in _parents(run):
        if (path / "run.json").is_file():
            _collect(Run(path), found)
    found[_key(run.path)] = run


def _place(run: Run) -> tuple[int, str]:
    return stage_of(run).order, _variant(run)


def _variant(run: Run) -> str:
    """What tells a run from others of its stage: the settings that are 0 where that makes another method."""
    return "".join(f", {text}" for name, text in stage_of(run).variants.items() if run.config.get(name) == 0)


def _labels(runs: dict[str, Run]) -> dict[str, str]:
    """A short name for each run; runs of the same name get their folder's name too, or their path where that is the same."""
    names = {k: stage_of(r).label + _variant(r) for k, r in runs.items()}
    for extra in (lambda r: r.path.name, lambda r: str(r.path)):
        count = Counter(names.values())
        names = {k: f"{name} ({extra(runs[k])})" if count[name] > 1 else name for k, name in names.items()}
    return names
