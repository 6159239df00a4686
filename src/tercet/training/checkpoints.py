"""Checkpoints of a run: checkpoints/step-00000100/{model,optimizer,…}.safetensors and state.json.

A checkpoint is written to a temporary folder, synced and renamed, so that a folder named step-N is always complete.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from tercet.errors import CheckpointError
from tercet.training.provenance import file_hash


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file. Raises CheckpointError if it is damaged."""
    try:
        return load_file(path)
    except Exception as error:  # safetensors has its own exception type, besides OSError and ValueError
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunCheckpoints:
    """The part of a run that reads and writes the checkpoints in its folder `path`."""

    path: Path
    manifest: dict[str, Any]

    def checkpoints(self) -> list[Path]:
        """List the complete checkpoints, oldest first."""
        return sorted(p for p in (self.path / "checkpoints").glob("step-*") if p.is_dir())

    def last_checkpoint(self) -> Path:
        """Return the folder of the newest checkpoint. Raises CheckpointError if there is none."""
        if not (saved := self.checkpoints()):
            raise CheckpointError(
                f"{self.path}: no checkpoint yet (status {self.manifest['status']}); "
                f"continue the run with `tercet resume {self.path}`"
            )
        return saved[-1]

    def weights_hash(self) -> str:
        """Return the SHA-256 of the newest checkpoint's weights."""
        return file_hash(self.last_checkpoint() / "model.safetensors")

    def weights(self, name: str = "model") -> dict[str, Tensor]:
        """Read the tensors of the newest checkpoint's `name`.safetensors."""
        return load_tensors(self.last_checkpoint() / f"{name}.safetensors")

    def save_checkpoint(
        self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int
    ) -> Path:
        """Write checkpoints/step-N, delete all but the newest `keep` checkpoints, and return the new folder."""
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
        self.prune(keep)
        return target

    def prune(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints."""
        for old in self.checkpoints()[:-keep]:
            shutil.rmtree(old)

    def read_checkpoint(self) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]] | None:
        """Read the newest checkpoint's tensors and state, or return None; half-written checkpoints are deleted.

        Raises CheckpointError, naming the folder, if the newest one is damaged.
        """
        for leftover in (self.path / "checkpoints").glob(".tmp-*"):
            shutil.rmtree(leftover)
        if not self.checkpoints():
            return None
        folder = self.last_checkpoint()
        mend = "remove it to continue from the one before"
        try:
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            missing = [n for n in state["files"] if not (folder / f"{n}.safetensors").is_file()]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: damaged checkpoint: state.json: {error}; {mend}") from error
        if missing:
            raise CheckpointError(f"{folder}: damaged checkpoint: {', '.join(missing)} missing; {mend}")
        return {f.stem: load_tensors(f) for f in sorted(folder.glob("*.safetensors"))}, state
