"""The run directory: settings, inputs, records and checkpoints; enough to resume, repeat and explain a run.

RUN/run.json        verb, argv, parents with hashes, git state, versions, seed, status
    config.json     the complete settings, from which the run can be repeated
    model.json      the model's shape                     tokenizer.json
    metrics.jsonl   one object per line, with "step"      log.txt       samples.jsonl    (records.py)
    checkpoints/step-00000100/{model,optimizer,…}.safetensors, state.json                (checkpoints.py)
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from tercet.errors import CheckpointError, ConfigError, ContextError, DataError, NonFiniteError, TercetError
from tercet.model.config import ModelConfig
from tercet.training.checkpoints import RunCheckpoints
from tercet.training.progress import Progress, silent
from tercet.training.provenance import library_versions, now, source_version
from tercet.training.records import RunRecords, write_text
from tercet.training.settings import OLD_NAMES, Settings, from_json

FORMAT = 1
OLD_VERBS = {"rank": "annotate"}  # verbs in older runs' run.json
_LEFTOVERS = {"config.json", ".config.json.tmp", ".run.json.tmp"}  # files of a run that was killed at its very start
_MANIFEST = {"verb", "parents", "status", "seconds", "resumed", "versions"}  # a run.json without these is damaged


class Interrupted(TercetError):
    """Ctrl-C was pressed; the run is saved up to the step that the message names."""

    exit_code = 130


def new_folder(path: Path, otherwise: str = "") -> None:
    """Make an empty folder. Raises ConfigError if it exists with other contents or cannot be made."""
    try:
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - _LEFTOVERS):
            if path.is_file():
                raise ConfigError(f"{path} exists and is a file; choose another --out, for a new folder")
            resumable = _unfinished(path)
            raise ConfigError(f"{path} exists and is not empty; choose another --out{otherwise if resumable else ''}")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: the folder cannot be made: {error.strerror}") from error


def _unfinished(path: Path) -> bool:
    """Return whether the folder holds a run that can be continued."""
    try:
        return bool(json.loads((path / "run.json").read_text(encoding="utf-8"))["status"] != "finished")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def in_use(path: Path) -> bool:
    """Return whether a process is working on the run at `path`."""
    try:
        with (path / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _config_hash(settings: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


class Run(RunRecords, RunCheckpoints):
    """One run directory. Stages write it; everything else reads it.

    A run has the device and the dtype of its model. `step` is the number of optimizer steps done, None outside of
    training.
    """

    device = torch.device("cpu")
    dtype = torch.float32

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "run.json"
        if not file.is_file():
            raise ConfigError(
                f"{self.path}: not a run directory (no run.json); make a run with a stage, "
                "such as `tercet pretrain` or `tercet sft`"
            )
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self.config: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: damaged run directory: {error}") from error
        complete = isinstance(self.manifest, dict) and self.manifest.keys() >= _MANIFEST
        if not complete or not isinstance(self.config, dict):
            raise CheckpointError(f"{self.path}: damaged run directory: run.json or config.json is incomplete")
        self._stored_hash = _config_hash(self.config)  # of the names in the file
        # older versions had other names for some settings and one verb
        self.config = {OLD_NAMES.get(name, name): value for name, value in self.config.items()}
        for key in self.manifest.keys() & {"verb", "merges"}:
            self.manifest[key] = OLD_VERBS.get(self.manifest[key], self.manifest[key])
        self.progress: Progress = silent()
        self.parents: dict[str, Run] = {}
        self.step: int | None = None
        self._stopping = threading.Event()
        self._before_training: Any = None  # the handler of Ctrl-C outside the training loop
        self._began = time.time()
        self._new = False  # made by this process, not resumed

    # -- life ---------------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        verb: str,
        config: Settings,
        path: str | Path,
        *,
        parents: Mapping[str, Run] | None = None,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> Run:
        """Make a new run directory at `path`, or with `resume` open the existing one.

        Raises ConfigError if the folder is in use or several processes were started for the run, CheckpointError if a
        resumed run has other settings or parents than when it began.
        """
        path = Path(path)
        if (started := os.environ.get("WORLD_SIZE", "1")) != "1":  # set by torchrun
            raise ConfigError(
                f"{path}: {started} processes for one run; wanted 1, since a run cannot be divided among processes: "
                "use torchrun --nproc-per-node 1"
            )
        described = {}
        for role, p in (parents or {}).items():
            relative, checkpoint = os.path.relpath(p.path, path), p.last_checkpoint().name
            described[role] = {"path": relative, "checkpoint": checkpoint, "sha256": p.weights_hash()}
        if resume:
            run = cls(path)
            run.manifest.pop("skipped_rows", None)  # they will be counted again
            now_set = json.loads(json.dumps(config.to_json()))
            # a run of an older version lacks the settings that are new, which then have their defaults
            new = {f.name: f.default for f in fields(config) if f.name not in run.config}
            same = run.manifest.get("config_sha256") == run._stored_hash
            if {**json.loads(json.dumps(new, default=str)), **run.config} != now_set or not same:
                raise CheckpointError(f"{path}: config.json has changed since the run began; start a new run instead")
            for role, parent in described.items():
                if run.manifest["parents"][role]["sha256"] != parent["sha256"]:
                    raise CheckpointError(
                        f"{path}: its parent {parent['path']} has other weights than when the run began; "
                        "restore them, or start a new run"
                    )
        else:
            new_folder(path, f", or continue it with `tercet resume {path}`")
            # not one per line: run.json's keys as a table
            manifest = {
                "format": FORMAT, "verb": verb, "argv": sys.argv, "parents": described, "status": "running",
                "config_sha256": _config_hash(config.to_json()), "git": source_version(),
                "versions": library_versions(),
                "seed": config.to_json().get("seed"), "device": str(cls.device),
                "dtype": str(cls.dtype).removeprefix("torch."),
                "threads": config.to_json().get("threads"), "created": now(), "resumed": [], "seconds": 0.0,
            }  # fmt: skip
            write_text(path / "config.json", json.dumps(config.to_json(), indent=1) + "\n")
            write_text(path / "run.json", json.dumps(manifest, indent=1) + "\n")
            run = cls(path)
            run._new = True
        run.parents = dict(parents or {})
        run.progress = progress or silent()
        return run

    def __enter__(self) -> Run:
        self._began = time.time()
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"{self.path}: another process is working on this run; wait for it, or choose another --out"
            ) from error
        if not self._new:
            self.manifest.pop("error", None)
            self.update(status="running")
        return self

    def begin_training(self, steps: int) -> None:
        """Start to show progress, and make Ctrl-C wait for the current step so that it can be saved."""
        if threading.current_thread() is threading.main_thread():
            self._before_training = signal.signal(signal.SIGINT, self._on_interrupt)
        self.progress.begin(self.manifest["verb"], steps)

    def end_training(self) -> None:
        """End the progress and restore the handler of Ctrl-C; a second call does nothing."""
        self.progress.end()
        if self._before_training is not None:
            signal.signal(signal.SIGINT, self._before_training)
            self._before_training = None

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self._stopping.is_set():  # the second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self._stopping.set()
        self.log_line("interrupted: saving after this step (press Ctrl-C again to stop at once)")

    def stop_if_interrupted(self, save: Callable[[], object]) -> None:
        """Save and raise Interrupted if Ctrl-C was pressed; called after each step."""
        if self._stopping.is_set():
            save()
            raise Interrupted(
                f"interrupted after step {self.step} and saved; continue with `tercet resume {self.path}`"
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end_training()
        if isinstance(error, NonFiniteError) and self.step is not None:
            error = NonFiniteError(f"step {self.step}: {error}")
        status = "finished" if kind is None else "interrupted" if kind in (Interrupted, KeyboardInterrupt) else "failed"
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
        failure = {"error": f"{type(error).__name__}: {error}"} if status == "failed" else {}
        self.update(status=status, seconds=round(self.elapsed(), 2), peak_memory_mb=round(mebibytes), **failure)
        self._lock.close()
        if self._new and isinstance(error, (ConfigError, DataError, ContextError)) and not self.metrics():
            for file in self.path.iterdir():  # nothing was trained: the corrected command may use the same folder
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        if isinstance(error, NonFiniteError):
            # a checkpoint of this very step contains the weights that gave NaN
            saved = [p for p in self.checkpoints() if self.step is None or p.name < f"step-{self.step:08d}"]
            last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
            raise NonFiniteError(
                f"{error} in {self.path}; {last}. Hint: lower --lr or --clip-norm in a new run"
            ) from error

    def elapsed(self) -> float:
        """Return the seconds of work so far, with those of earlier processes that were not killed."""
        return float(self.manifest["seconds"]) + time.time() - self._began

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        self.manifest.update(fields)
        write_text(self.path / "run.json", json.dumps(self.manifest, indent=1) + "\n")

    def log_skipped(self, count: int, messages: Sequence[str]) -> None:
        """Log how many bad rows were skipped, if any."""
        if count:
            self.log_line(f"skipped {count} bad rows; the first: {messages[0]}")
            self.update(skipped_rows=self.manifest.get("skipped_rows", 0) + count)

    def pin_inputs(self, hashes: Mapping[str, str]) -> None:
        """Record the inputs' hashes in run.json. Raises CheckpointError if a resumed run had other inputs."""
        before = self.manifest.get("inputs")
        if before is None:
            self.update(inputs=dict(hashes))
        elif before != dict(hashes):
            changed = sorted(name for name in {*before, *hashes} if before.get(name) != hashes.get(name))
            raise CheckpointError(
                f"{self.path}: its input changed since the run began: {', '.join(changed)}; "
                "restore it, or start a new run"
            )

    # -- the model ----------------------------------------------------------------------------------------------

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Read the newest checkpoint to continue from, or return None; records of later steps are deleted."""
        checkpoint = self.read_checkpoint()
        done = -1 if checkpoint is None else int(checkpoint[1]["step"])
        self.forget_after(done)
        if checkpoint is not None:
            self.prune(int(self.config["keep"]))
            self.update(resumed=[*self.manifest["resumed"], {"step": done, "time": now()}])
        return checkpoint

    def save_model_config(self, config: ModelConfig) -> None:
        """Write model.json."""
        write_text(self.path / "model.json", json.dumps(asdict(config), indent=1) + "\n")

    def model_config(self) -> ModelConfig:
        """Read model.json. Raises CheckpointError if it is missing or damaged."""
        file = self.path / "model.json"
        if not file.is_file():
            raise CheckpointError(
                f"{self.path}: no model.json, so the run has no model; choose a run that has begun training"
            )
        try:
            return from_json(ModelConfig, dict(json.loads(file.read_text(encoding="utf-8"))), str(file))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: damaged: {error}") from error


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with `count` CPU threads (0: the current number); results are bit-identical only with the same number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
