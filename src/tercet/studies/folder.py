"""The folder of a study: what was begun with which settings, and the parts that are finished.

OUT/config.json     the settings
OUT/study.json      the name of the study, and of every start the time, the commit and the versions
OUT/parts/*.json    a finished part each; a study that was stopped continues with the parts that are missing
"""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from tercet.errors import CheckpointError, ConfigError
from tercet.training.progress import Progress, clock
from tercet.training.provenance import library_versions, now, source_version
from tercet.training.records import write_text
from tercet.training.settings import Settings

Json = dict[str, Any]


def write_json(file: Path, value: Any) -> None:
    """Write a JSON value as a whole, indented."""
    write_text(file, json.dumps(value, indent=1) + "\n")


def read_json(file: Path, *keys: str) -> Json:
    """Return the object in a JSON file. Raises CheckpointError where it is damaged or lacks one of `keys`."""
    try:
        value: Json = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(value, dict) or not value.keys() >= set(keys):
            raise ValueError(f"wanted an object with {', '.join(keys)}")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: damaged: {error}; delete the file, or choose another --out") from error
    return value


class StudyFolder:
    """The folder that a study writes to. `path` is the folder, `progress` tells the user what is being done."""

    def __init__(
        self, path: Path, name: str, config: Settings, changeable: tuple[str, ...], progress: Progress
    ) -> None:
        """Begin a study in a new folder, or continue the one that is there.

        Raises ConfigError where the folder holds something else or was begun with other settings, those in `changeable`
        excepted.
        """
        from tercet.training.run import new_folder

        self.path, self.progress, self._began = path, progress, time.monotonic()
        self.name, self.settings = name, json.loads(json.dumps(config.to_json()))
        self.starts: list[Json] = []
        if (path / "study.json").is_file():
            self._continue(changeable)
        else:
            new_folder(path)
        self.starts.append({"time": now(), "git": source_version(), "versions": library_versions()})
        write_json(path / "config.json", self.settings)
        write_json(path / "study.json", {"study": name, "starts": self.starts})
        (path / "parts").mkdir(exist_ok=True)

    def _continue(self, changeable: tuple[str, ...]) -> None:
        """Take over the earlier starts. Raises ConfigError where they were of another study or of other settings."""
        earlier = read_json(self.path / "study.json", "study", "starts")
        if earlier["study"] != self.name:
            raise ConfigError(f"{self.path}: holds the study {earlier['study']}, not {self.name}; choose another --out")
        before = read_json(self.path / "config.json")
        for name, value in self.settings.items():
            if name not in changeable and before.get(name) != value:
                raise ConfigError(
                    f"{self.path}: was begun with --{name.replace('_', '-')} {before.get(name)}, now it is {value}; "
                    "give the same settings to continue, or choose another --out"
                )
        self.starts = earlier["starts"]

    def say(self, text: str) -> None:
        """Print a line with the time since the start."""
        self.progress.say(f"[{clock(time.monotonic() - self._began)}] {text}")

    def part(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of one part, as JSON gives it back. `make` computes it unless it is finished already."""
        if not self._file(name).is_file():
            self._keep(name, *_timed(make))
        return read_json(self._file(name), "seconds", "result")["result"]

    def parts(self, makers: Mapping[str, Callable[[], Any]], processes: int) -> dict[str, Any]:
        """Return the results of several parts by name.

        Parts that are missing are computed `processes` at a time, each in a process of its own with one CPU thread, so
        every function must be picklable. What is finished stays when one of them fails.
        """
        missing = {name: make for name, make in makers.items() if not self._file(name).is_file()}
        if missing:
            # new interpreters: a fork of a process that has torch's threads may hang
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(min(processes, len(missing)), spawn) as pool:
                waiting = {pool.submit(_alone, make): name for name, make in missing.items()}
                try:
                    for done in as_completed(waiting):
                        self._keep(waiting[done], *done.result())
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return {name: self.part(name, make) for name, make in makers.items()}

    def seeds(self, measure: Callable[[int], Any], first: int, count: int, processes: int) -> list[Any]:
        """Return the results of `measure(seed)` for `count` seeds from `first` on; each seed is a part.

        `processes` of them are computed at a time (0: one per CPU core).
        """
        makers = {f"seed-{seed}": functools.partial(measure, seed) for seed in range(first, first + count)}
        return list(self.parts(makers, processes or os.cpu_count() or 1).values())

    def seconds(self) -> float:
        """Return the seconds that the finished parts took, all processes together."""
        return sum(float(read_json(file, "seconds")["seconds"]) for file in (self.path / "parts").glob("*.json"))

    def _file(self, name: str) -> Path:
        return self.path / "parts" / f"{name}.json"

    def _keep(self, name: str, result: Any, seconds: float) -> None:
        write_json(self._file(name), {"seconds": seconds, "result": result})
        self.say(f"{name}: {seconds:.0f} s")


def _timed(make: Callable[[], Any]) -> tuple[Any, float]:
    began = time.monotonic()
    return make(), time.monotonic() - began


def _alone(make: Callable[[], Any]) -> tuple[Any, float]:
    """One part in a process of its own."""
    from tercet.training.run import threads

    with threads(1):
        return _timed(make)
