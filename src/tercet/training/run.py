"""The run directory: what was asked, from what, with what result; enough to resume, to repeat and to explain.

RUN/run.json        verb, argv, parents with hashes, git state, versions, seed, status
    config.json     the fully resolved settings; the run is repeated from it
    model.json      the model's shape                 tokenizer.json
    metrics.jsonl   one object a line, with "step"    log.txt       samples.jsonl
    checkpoints/step-00000100/{model,optimizer,…}.safetensors, state.json
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import platform
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tercet.errors import CheckpointError, ConfigError, ContextError, DataError, NonFiniteError, TercetError
from tercet.model.config import ModelConfig
from tercet.training.progress import Progress, silent
from tercet.training.settings import Settings, from_json

FORMAT = 1
_UNBORN = {"config.json", ".config.json.tmp", ".run.json.tmp"}
_MANIFEST = {
    "verb",
    "parents",
    "status",
    "seconds",
    "resumed",
    "versions",
}  # without these a run.json is damaged


class Interrupted(TercetError):
    """Ctrl-C was pressed; everything up to the step named is saved."""

    exit_code = 130


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole: written aside, synced, renamed. A crash leaves the old one or the new one."""
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def new_folder(path: Path, otherwise: str = "") -> None:
    """Make an empty folder. Raises ConfigError where something is there already or it cannot be made."""
    try:
        # what a run that was killed before its run.json was there has left does not count
        if path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - _UNBORN):
            raise ConfigError(f"{path} exists and is not empty; choose another --out{otherwise}")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {path}: the folder cannot be made: {error.strerror}") from error


def in_use(path: Path) -> bool:
    """Whether a process works on the run at `path`."""
    try:
        with (path / ".lock").open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _git() -> dict[str, str]:
    """Commit of the source that runs, and its uncommitted change; empty where it is an installed package."""
    here = Path(__file__).resolve().parent
    if not any((p / ".git").exists() for p in here.parents[:4]):
        return {}

    def ask(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, errors="replace", timeout=10
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return {"commit": ask("rev-parse", "HEAD"), "diff": ask("diff", "HEAD", "--", "src")[:200_000]}
    return {}


def _config_hash(config: Settings) -> str:
    return hashlib.sha256(json.dumps(config.to_json(), sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    names = ("tercet", "torch", "numpy", "tokenizers", "safetensors")
    return {"python": platform.python_version(), **{n: metadata.version(n) for n in names}}


class Run:
    """One run directory. Stages write it; everything else reads it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        file = self.path / "run.json"
        if not file.is_file():
            raise ConfigError(
                f"{self.path}: not a run directory (no run.json); a run is made by `tercet pretrain`, `sft`, `dpo`, `reward`, `ppo` or `grpo`"
            )
        try:
            self.manifest: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            self.config: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: damaged run directory: {error}") from error
        if (
            not isinstance(self.manifest, dict)
            or not self.manifest.keys() >= _MANIFEST
            or not isinstance(self.config, dict)
        ):
            raise CheckpointError(f"{self.path}: damaged run directory: run.json or config.json lacks what a run has")
        self.progress: Progress = silent()
        self._interrupted = threading.Event()
        self._began = time.time()
        self._new = False  # made by this process, not resumed

    # -- life ---------------------------------------------------------------------------------------------------

    @classmethod
    def start(cls, verb: str, config: Settings, path: str | Path, *, parents: Mapping[str, Run] | None = None,
              resume: bool = False, progress: Progress | None = None) -> Run:  # fmt: skip
        """A new run directory at `path`, or with `resume` the one that is there.

        Raises ConfigError where the folder is in use or several processes were started for the run, CheckpointError where a resumed
        run has other settings or parents than when it began.
        """
        path = Path(path)
        if (started := os.environ.get("WORLD_SIZE", "1")) != "1":  # torchrun's: each would do all of the run
            raise ConfigError(
                f"{path}: {started} processes for one run; wanted 1: stages do not divide a run yet (torchrun --nproc-per-node 1)"
            )
        described = {
            role: {
                "path": os.path.relpath(p.path, path),
                "checkpoint": p.last_checkpoint().name,
                "sha256": p.weights_hash(),
            }
            for role, p in (parents or {}).items()
        }
        if resume:
            run = cls(path)
            run.manifest.pop("skipped_rows", None)  # they are counted again
            if run.config != json.loads(json.dumps(config.to_json())) or run.manifest.get(
                "config_sha256"
            ) != _config_hash(config):
                raise CheckpointError(f"{path}: config.json has changed since the run began; start a new run instead")
            for role, now in described.items():
                if run.manifest["parents"][role]["sha256"] != now["sha256"]:
                    raise CheckpointError(f"{path}: its parent {now['path']} has other weights than when the run began")
            run.manifest.pop("error", None)
            run.update(status="running")
        else:
            new_folder(path, f", or continue it with `tercet resume {path}`")
            manifest = {
                "format": FORMAT, "verb": verb, "argv": sys.argv, "parents": described, "status": "running", "config_sha256": _config_hash(config),
                "git": _git(), "versions": _versions(), "seed": config.to_json().get("seed"), "device": "cpu",
                "threads": config.to_json().get("threads"), "created": _now(), "resumed": [], "seconds": 0.0,
            }  # fmt: skip
            write_text(path / "config.json", json.dumps(config.to_json(), indent=1) + "\n")
            write_text(path / "run.json", json.dumps(manifest, indent=1) + "\n")
            run = cls(path)
            run._new = True
        run.progress = progress or silent()
        return run

    def __enter__(self) -> Run:
        self._began = time.time()
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(f"{self.path}: another process is working on this run") from error
        return self

    @contextlib.contextmanager
    def training(self, steps: int) -> Iterator[None]:
        """Around a training loop: shows progress, and makes Ctrl-C wait for the step to end so that it can be saved."""
        main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, self._on_interrupt) if main else None
        self.progress.begin(self.manifest["verb"], steps)
        try:
            yield
        finally:
            self.progress.end()
            if main:
                signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def at_step(self, step: int) -> Iterator[None]:
        """Says of a NonFiniteError at which step it came up: with the weights after `step` updates."""
        try:
            yield
        except NonFiniteError as error:
            raise NonFiniteError(f"step {step}: {error}", step) from error

    def _on_interrupt(self, number: int, frame: Any) -> None:
        if self._interrupted.is_set():  # the second Ctrl-C does not wait for the step to end
            raise KeyboardInterrupt
        self._interrupted.set()
        self.log_line("interrupt: saving after this step (Ctrl-C again to stop at once)")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status = "finished" if kind is None else "interrupted" if kind in (Interrupted, KeyboardInterrupt) else "failed"
        self.update(
            status=status,
            seconds=round(self.elapsed(), 2),
            peak_memory_mb=round(
                resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 2**20)
            ),
            **({"error": f"{kind.__name__}: {error}"} if kind is not None and status == "failed" else {}),
        )
        self._lock.close()
        if self._new and isinstance(error, (ConfigError, DataError, ContextError)) and not self.metrics():
            for left in self.path.iterdir():  # nothing was done: the corrected command may use the same folder
                shutil.rmtree(left) if left.is_dir() else left.unlink()
        if isinstance(error, NonFiniteError):
            # a checkpoint of the very step has the weights that gave NaN
            saved = [p for p in self.checkpoints() if error.step is None or p.name < f"step-{error.step:08d}"]
            last = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written yet"
            raise NonFiniteError(
                f"{error} in {self.path}; {last}. Hint: lower the learning rate, or clip_norm, in a new run"
            ) from error

    def elapsed(self) -> float:
        """Seconds of work so far, those of earlier processes included as far as they ended in order."""
        return float(self.manifest["seconds"]) + time.time() - self._began

    def update(self, **fields: Any) -> None:
        """Change fields of run.json."""
        self.manifest.update(fields)
        write_text(self.path / "run.json", json.dumps(self.manifest, indent=1) + "\n")

    def pin_inputs(self, hashes: Mapping[str, str]) -> None:
        """Record the inputs' hashes in run.json; of a resumed run, raise CheckpointError where they differ from those."""
        before = self.manifest.get("inputs")
        if before is None:
            self.update(inputs=dict(hashes))
        elif before != dict(hashes):
            changed = sorted(name for name in {*before, *hashes} if before.get(name) != hashes.get(name))
            raise CheckpointError(
                f"{self.path}: its input changed since the run began: {', '.join(changed)}; bring it back, or start a new run"
            )

    def stop_if_interrupted(self, step: int, save: Any) -> None:
        """After a step: where Ctrl-C was pressed, save and raise Interrupted."""
        if self._interrupted.is_set():
            save()
            raise Interrupted(f"interrupted after step {step} and saved; go on with `tercet resume {self.path}`")

    # -- records ------------------------------------------------------------------------------------------------

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl. Keys with a slash group curves ("heldout/code")."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in metrics.items()}}) + "\n")

    def log_line(self, text: str) -> None:
        """Append a dated line to log.txt and show it."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{_now()} {text}\n")
        self.progress.say(text)

    def log_skipped(self, count: int, messages: Sequence[str]) -> None:
        """Say how many wrong rows were skipped, if any."""
        if count:
            self.log_line(f"skipped {count} bad rows; the first: {messages[0]}")
            self.update(skipped_rows=self.manifest.get("skipped_rows", 0) + count)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append what the model wrote at this step to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """The objects of metrics.jsonl or samples.jsonl; a line cut off by a crash is left out."""
        file = self.path / name
        out = []
        # by bytes: a line may be cut off inside a character, and text may hold Unicode's own line ends
        for line in file.read_bytes().split(b"\n") if file.is_file() else []:
            with contextlib.suppress(ValueError):
                out.append(json.loads(line))
        return out

    def metrics(self, *names: str) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl that have all of `names`."""
        return [row for row in self.read_lines("metrics.jsonl") if all(n in row for n in names)]

    def _forget_after(self, step: int) -> None:
        """Drop records of steps that will be done again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).is_file():
                kept = [row for row in self.read_lines(name) if row["step"] <= step]
                write_text(self.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))

    # -- checkpoints --------------------------------------------------------------------------------------------

    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if p.is_dir())

    def last_checkpoint(self) -> Path:
        """The newest checkpoint. Raises CheckpointError where there is none."""
        if not (saved := self.checkpoints()):
            raise CheckpointError(
                f"{self.path}: no checkpoint yet (status {self.manifest['status']}); continue it with `tercet resume {self.path}`"
            )
        return saved[-1]

    def weights_hash(self) -> str:
        """SHA-256 of the newest checkpoint's weights."""
        return file_hash(self.last_checkpoint() / "model.safetensors")

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
    ) -> Path:
        """Write checkpoints/step-N: aside, synced, renamed. Older ones beyond `keep` are removed after that."""
        folder = self.path / "checkpoints"
        aside, target = folder / f".tmp-step-{step:08d}", folder / f"step-{step:08d}"
        if target.exists():  # the same step of the same run has the same bits
            return target
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        for name, group in tensors.items():
            save_file({k: v.detach().contiguous() for k, v in group.items()}, aside / f"{name}.safetensors")
        (aside / "state.json").write_text(
            json.dumps({"step": step, "files": sorted(tensors), **state}, indent=1) + "\n", encoding="utf-8"
        )
        for file in aside.iterdir():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
        _sync_folder(aside)
        os.rename(aside, target)
        _sync_folder(folder)
        self._prune(keep)
        return target

    def _prune(self, keep: int) -> None:
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def load_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """The newest checkpoint's tensors and state, or None; records of later steps and half-written files go."""
        for leftover in (self.path / "checkpoints").glob(".tmp-*"):
            shutil.rmtree(leftover)
        if not self.checkpoints():
            self._forget_after(-1)
            return None
        self._prune(int(self.config["keep"]))
        folder = self.last_checkpoint()
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            missing = [n for n in state["files"] if not (folder / f"{n}.safetensors").is_file()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{folder}: damaged checkpoint: state.json: {error}; remove it to go on from the one before"
            ) from error
        if missing:
            raise CheckpointError(
                f"{folder}: damaged checkpoint: {', '.join(missing)} missing; remove it to go on from the one before"
            )
        self._forget_after(int(state["step"]))
        self.update(resumed=[*self.manifest["resumed"], {"step": state["step"], "time": _now()}])
        return {f.stem: load_tensors(f) for f in sorted(folder.glob("*.safetensors"))}, state

    # -- the model ----------------------------------------------------------------------------------------------

    def save_model_config(self, config: ModelConfig) -> None:
        """Write model.json."""
        write_text(self.path / "model.json", json.dumps(asdict(config), indent=1) + "\n")

    def model_config(self) -> ModelConfig:
        """Read model.json."""
        file = self.path / "model.json"
        if not file.is_file():
            raise CheckpointError(f"{self.path}: no model.json; this run has not begun training")
        try:
            return from_json(ModelConfig, dict(json.loads(file.read_text(encoding="utf-8"))), str(file))
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{file}: damaged: {error}") from error

    def weights(self, name: str = "model") -> dict[str, Tensor]:
        """Tensors of the newest checkpoint's `name`.safetensors."""
        return load_tensors(self.last_checkpoint() / f"{name}.safetensors")


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file. Raises CheckpointError where it is damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own, an OSError or a ValueError
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Run with `count` CPU threads: the bits of a run depend on the number."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
