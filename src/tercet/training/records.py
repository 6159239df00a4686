"""The records that a run writes during training: metrics.jsonl, log.txt, samples.jsonl."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tercet.training.progress import Progress
from tercet.training.provenance import now


def write_text(path: Path, text: str) -> None:
    """Write a file atomically (temporary file, sync, rename): a crash leaves either the old file or the new one."""
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


class RunRecords:
    """The part of a run that reads and writes the records in its folder `path`; every line has a step.

    When a run is resumed, the records of steps that will be repeated are deleted.
    """

    path: Path
    progress: Progress

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to metrics.jsonl. A slash in a name groups curves, as in "heldout/code"."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **{k: float(f"{v:.6g}") for k, v in metrics.items()}}) + "\n")

    def log_line(self, text: str) -> None:
        """Append a line with the time to log.txt and show it."""
        with (self.path / "log.txt").open("a", encoding="utf-8") as file:
            file.write(f"{now()} {text}\n")
        self.progress.say(text)

    def log_samples(self, step: int, samples: Sequence[Mapping[str, Any]]) -> None:
        """Append texts that the model generated at this step to samples.jsonl."""
        with (self.path / "samples.jsonl").open("a", encoding="utf-8") as file:
            for sample in samples:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False) + "\n")

    def read_lines(self, name: str) -> list[dict[str, Any]]:
        """Read the objects of metrics.jsonl or samples.jsonl; a line that a crash cut off is ignored."""
        file = self.path / name
        out = []
        # read as bytes: a line may be cut off inside a character, and text may contain Unicode line separators
        for line in file.read_bytes().split(b"\n") if file.is_file() else []:
            with contextlib.suppress(ValueError):
                out.append(json.loads(line))
        return out

    def metrics(self, *names: str) -> list[dict[str, Any]]:
        """Read the lines of metrics.jsonl that contain all of `names`."""
        return [row for row in self.read_lines("metrics.jsonl") if all(n in row for n in names)]

    def forget_after(self, step: int) -> None:
        """Delete the records of later steps, which will be repeated."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).is_file():
                kept = [row for row in self.read_lines(name) if row["step"] <= step]
                write_text(self.path / name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
