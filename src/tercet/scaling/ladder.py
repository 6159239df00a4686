"""A ladder of pretraining runs: train them here or on a cluster, print their commands, read their results.

Each run is an ordinary run folder of `tercet pretrain`. Nothing else is stored: the folders show which runs are
finished.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tercet.errors import CheckpointError, ConfigError, DataError
from tercet.pretraining.stage import PRETRAIN, PretrainConfig
from tercet.scaling.config import LadderConfig
from tercet.scaling.laws import Points, Reals
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.progress import Progress, silent
from tercet.training.run import Run
from tercet.training.settings import from_json

BACKENDS = ("processes", "ray")
# torchrun uses a free port, so that several runs may share a machine
TORCHRUN = ("torchrun", "--standalone", "--nproc-per-node", "1", "--no-python")


def begun(path: Path) -> bool:
    """Return whether there is a run at `path`."""
    return (path / "run.json").is_file()


def run_point(config: PretrainConfig, path: str) -> float:
    """Train one point of the ladder, or continue it if it is not finished; return its seconds.

    Raises CheckpointError if the folder contains a run with other settings.
    """
    if not begun(Path(path)):
        return float(PRETRAIN(config, path).manifest["seconds"])
    run = Run(path)
    if from_json(PretrainConfig, run.config, f"{path}/config.json") != config:
        raise CheckpointError(f"{path}: the run has other settings than this ladder; choose another --out")
    if run.manifest["status"] != "finished":
        run = PRETRAIN(config, path, resume=True)
    return float(run.manifest["seconds"])


def run_ladder(config: LadderConfig, out: str | Path, *, jobs: int = 1, backend: str = "processes", address: str = "",
               progress: Progress | None = None) -> Path:  # fmt: skip
    """Train all runs of the ladder below `out`, the cheapest first. Returns `out`.

    `backend` is one of `BACKENDS`: processes on this machine, `jobs` at a time, or tasks on the Ray cluster at
    `address`. Raises ConfigError, DataError and CheckpointError like `pretrain`; runs that are finished by then remain.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; wanted at least 1")
    if backend not in BACKENDS:
        raise ConfigError(f"--backend is {backend!r}; wanted {' or '.join(BACKENDS)}")
    if backend == "ray" and jobs > 1:
        raise ConfigError(
            f"--jobs is {jobs}, but --backend ray decides by the cluster's processors how many runs fit at a time; "
            "leave out --jobs"
        )
    if backend != "ray" and address:
        raise ConfigError(f"--address is {address}, but only --backend ray uses it; give both or neither")
    say = (progress or silent()).say
    points = {str(Path(out) / name): point for name, point in config.points(_vocabulary(config)).items()}
    left = {
        path: point
        for path, point in points.items()
        if not begun(Path(path)) or Run(path).manifest["status"] != "finished"
    }
    for path in points.keys() - left.keys():
        run_point(points[path], path)  # refuses a run that does not belong to this ladder
    say(f"{len(points)} runs, of which {len(points) - len(left)} are finished")
    count = itertools.count(1)

    def report(path: str, seconds: float) -> None:
        say(f"[{next(count)}/{len(left)}] {path}: {seconds:.0f} s")

    if not left:
        return Path(out)
    if backend == "ray":
        from tercet.scaling.ray import on_ray

        on_ray(run_point, left, out, address, report)
    elif jobs == 1:
        for path, point in left.items():
            report(path, run_point(point, path))
    else:
        _side_by_side(left, jobs, report)
    return Path(out)


def _side_by_side(left: Mapping[str, PretrainConfig], jobs: int, report: Callable[[str, float], None]) -> None:
    # new interpreters: torch's threads do not survive a fork
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        waiting = {pool.submit(run_point, point, path): path for path, point in left.items()}
        try:
            for done in as_completed(waiting):
                report(waiting[done], done.result())
        except BaseException:
            pool.shutdown(cancel_futures=True)  # running processes finish their run; the others never begin
            raise


def commands(config: LadderConfig, out: str | Path) -> list[str]:
    """Return a `torchrun` command for each run that is not finished, the cheapest first, for a scheduler or a shell.

    Each command starts one process, because a run cannot be divided among processes.
    """
    lines = []
    for name, point in config.points(_vocabulary(config)).items():
        path = Path(out) / name
        if not begun(path):
            lines.append(shlex.join([*TORCHRUN, "tercet", "pretrain", *_options(point), "--out", str(path)]))
        elif Run(path).manifest["status"] != "finished":
            lines.append(shlex.join([*TORCHRUN, "tercet", "resume", str(path)]))
    return lines


def _options(config: PretrainConfig) -> list[str]:
    """Return every setting that is not the default as options."""
    out: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            values = value if isinstance(value, tuple) else (value,)
            out += [word for v in values for word in (f"--{field.name.replace('_', '-')}", str(v))]
    return out


def _vocabulary(config: LadderConfig) -> int:
    return Tokenizer.load(config.tokenizer).vocab_size


# -- reading a ladder -----------------------------------------------------------------------------------------------


COLUMNS = ("total", "hidden", "tokens", "flops", "loss")


@dataclass(frozen=True)
class Runs:
    """The finished pretraining runs of a folder, with both counts of parameters and FLOPs; each array is [P]."""

    paths: tuple[str, ...]
    total: Reals  # all parameters
    hidden: Reals  # parameters without embeddings
    tokens: Reals  # training tokens
    flops: Reals  # training FLOPs of every matrix product, with output layer and attention
    loss: Reals  # held-out bits per byte, mean over sources
    vocab_size: int
    context_length: int

    def points(self, embeddings: bool = True) -> Points:
        """Return the points for a fit: with all parameters and FLOPs (Hoffmann et al.), or without embeddings (Kaplan).

        Without embeddings, C = 6 N D.
        """
        if embeddings:
            return Points(self.total, self.tokens, self.flops, self.loss)
        return Points.of(self.hidden, self.tokens, self.loss)

    def take(self, index: Any) -> Runs:
        """Return some of the runs, by indices or a mask."""
        numbers = np.arange(len(self.paths))[index]
        columns = {name: getattr(self, name)[numbers] for name in COLUMNS}
        return dataclasses.replace(self, paths=tuple(self.paths[i] for i in numbers), **columns)

    def rows(self) -> list[dict[str, Any]]:
        """Return one object per run, for fit.json."""
        columns = [getattr(self, name).tolist() for name in COLUMNS]
        return [{"path": path, **dict(zip(COLUMNS, row))} for path, *row in zip(self.paths, *columns)]


def read_runs(folders: Sequence[str | Path]) -> Runs:
    """Read every finished `tercet pretrain` run in the folders; a folder may itself be a run.

    Raises DataError if there is none, or if two runs differ in data, held-out text, tokenizer or context length.
    """
    rows: list[tuple[str, float, float, float, float, float]] = []
    measured: dict[str, str] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; give one that `tercet scaling run` made")
        for path in [folder] if begun(folder) else sorted(p for p in folder.iterdir() if begun(p)):
            run = Run(path)
            if run.manifest["verb"] != "pretrain" or run.manifest["status"] != "finished":
                continue
            shape, last = run.model_config(), run.metrics("heldout")[-1]
            tokens = float(last["step"] * run.config["batch_size"] * shape.context_length)
            total, hidden = float(shape.parameters()), float(shape.parameters(embeddings=False))
            flops, loss = tokens * shape.flops_per_token(), float(last["heldout"])
            rows.append((str(path), total, hidden, tokens, flops, loss))
            text = [run.config[n] for n in ("data", "heldout", "heldout_share", "heldout_bytes")]
            measured[json.dumps([*text, run.manifest["inputs"], shape.vocab_size, shape.context_length])] = str(path)
    if not rows:
        raise DataError(
            f"{', '.join(map(str, folders))}: no finished pretraining run; make some with `tercet scaling run`"
        )
    if len(measured) > 1:
        first, second = list(measured.values())[:2]
        raise DataError(
            f"{first} and {second} differ in data, held-out text, tokenizer or context: one law cannot hold for both, "
            "so fit them separately"
        )
    paths, columns = tuple(row[0] for row in rows), np.array([row[1:] for row in rows], np.float64).T
    arrays = dict(zip(COLUMNS, columns))
    return Runs(paths, **arrays, vocab_size=shape.vocab_size, context_length=shape.context_length)
