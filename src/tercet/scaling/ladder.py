"""A ladder of pretraining runs: made one after another, side by side or on a cluster, or printed as commands; read back as points.

Each run is an ordinary run folder of `tercet pretrain`. Nothing else is kept: the folders say what is finished.
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
TORCHRUN = (
    "torchrun",
    "--standalone",
    "--nproc-per-node",
    "1",
    "--no-python",
)  # a free port each: several may share a machine


def begun(path: Path) -> bool:
    """Whether there is a run at `path`."""
    return (path / "run.json").is_file()


def run_point(config: PretrainConfig, path: str) -> float:
    """Do one point, or go on with it; returns its seconds. A finished one is left as it is.

    Raises CheckpointError where a run of other settings is there.
    """
    if not begun(Path(path)):
        return float(PRETRAIN(config, path).manifest["seconds"])
    run = Run(path)
    if from_json(PretrainConfig, run.config, f"{path}/config.json") != config:
        raise CheckpointError(f"{path}: is a run of other settings than this ladder's; choose another --out")
    if run.manifest["status"] != "finished":
        run = PRETRAIN(config, path, resume=True)
    return float(run.manifest["seconds"])


def run_ladder(config: LadderConfig, out: str | Path, *, jobs: int = 1, backend: str = "processes", address: str = "",
               progress: Progress | None = None) -> Path:  # fmt: skip
    """Make all runs of the ladder below `out`, the cheapest first. Returns `out`.

    `backend` is one of `BACKENDS`: processes of this machine, `jobs` at a time, or tasks of the Ray cluster at `address`.
    Raises ConfigError, DataError, CheckpointError as `pretrain` does; what is finished by then stays.
    """
    if jobs < 1:
        raise ConfigError(f"--jobs is {jobs}; wanted at least 1")
    if backend not in BACKENDS:
        raise ConfigError(f"--backend is {backend!r}; wanted {' or '.join(BACKENDS)}")
    if backend == "ray" and jobs > 1:
        raise ConfigError(
            "--jobs is for --backend processes: on a cluster its processors say how many runs fit at a time"
        )
    if backend != "ray" and address:
        raise ConfigError("--address is for --backend ray; give both or neither")
    say = (progress or silent()).say
    points = {str(Path(out) / name): point for name, point in config.points(_vocabulary(config)).items()}
    left = {
        path: point
        for path, point in points.items()
        if not begun(Path(path)) or Run(path).manifest["status"] != "finished"
    }
    for path in points.keys() - left.keys():
        run_point(points[path], path)  # refuses what is not this ladder's
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
            pool.shutdown(cancel_futures=True)  # those at work end their run; the others never begin
            raise


def commands(config: LadderConfig, out: str | Path) -> list[str]:
    """The ladder as `torchrun` commands for a scheduler or a shell, one for each run that is not finished, the cheapest first.

    One process each: a run is not divided among several.
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
    """Every setting that is not the default, as options."""
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
    """The finished pretraining runs of a folder, with both counts of parameters and of FLOPs; each array is [P]."""

    paths: tuple[str, ...]
    total: Reals  # parameters, all
    hidden: Reals  # parameters without embeddings
    tokens: Reals  # trained on
    flops: Reals  # of training: every matrix product, output layer and attention too
    loss: Reals  # held-out bits per byte, mean over sources
    vocab_size: int
    context_length: int

    def points(self, embeddings: bool = True) -> Points:
        """For a fit: all parameters and all FLOPs (Hoffmann et al.), or neither embeddings nor their FLOPs (Kaplan et al.: C = 6 N D)."""
        if embeddings:
            return Points(self.total, self.tokens, self.flops, self.loss)
        return Points.of(self.hidden, self.tokens, self.loss)

    def take(self, chosen: Any) -> Runs:
        """Some of the runs (indices or a mask)."""
        index = np.arange(len(self.paths))[chosen]
        columns = {name: getattr(self, name)[index] for name in COLUMNS}
        return dataclasses.replace(self, paths=tuple(self.paths[i] for i in index), **columns)

    def rows(self) -> list[dict[str, Any]]:
        """One object a run, for fit.json."""
        columns = [getattr(self, name).tolist() for name in COLUMNS]
        return [{"path": path, **dict(zip(COLUMNS, row))} for path, *row in zip(self.paths, *columns)]


def read_runs(folders: Sequence[str | Path]) -> Runs:
    """Every finished `tercet pretrain` run in the folders, or the folders themselves where they are runs.

    Raises DataError where there is none, or where two were measured on other text.
    """
    rows: list[tuple[str, float, float, float, float, float]] = []
    measured: dict[str, str] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; wanted one that `tercet scaling run` made")
        for path in [folder] if begun(folder) else sorted(p for p in folder.iterdir() if begun(p)):
            run = Run(path)
            if run.manifest["verb"] != "pretrain" or run.manifest["status"] != "finished":
                continue
            shape, last = run.model_config(), run.metrics("heldout")[-1]
            tokens = float(last["step"] * run.config["batch_size"] * shape.context_length)
            rows.append((
                str(path), float(shape.parameters()), float(shape.parameters(embeddings=False)), tokens,
                tokens * shape.flops_per_token(), float(last["heldout"]),
            ))  # fmt: skip
            what = [run.config[n] for n in ("data", "heldout", "heldout_share", "heldout_bytes")]
            measured[json.dumps([*what, run.manifest["inputs"], shape.vocab_size, shape.context_length])] = str(path)
    if not rows:
        raise DataError(
            f"{', '.join(map(str, folders))}: no finished pretraining run; make some with `tercet scaling run`"
        )
    if len(measured) > 1:
        first, second = list(measured.values())[:2]
        raise DataError(
            f"{first} and {second} differ in data, held-out text, tokenizer or context: one law cannot hold for both"
        )
    total, hidden, tokens, flops, loss = np.array([row[1:] for row in rows], np.float64).T
    return Runs(
        tuple(row[0] for row in rows), total, hidden, tokens, flops, loss, shape.vocab_size, shape.context_length
    )
