"""Runs as tasks of a Ray cluster (the extra `ray`). A task does what a process of `--jobs` does, on some node.

Nothing travels but settings and seconds: the nodes see the same folders as this machine, and tercet is installed on each.
"""

from __future__ import annotations

import logging
import os
import platform
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tercet.errors import ConfigError, TrainingError
from tercet.pretraining.stage import PretrainConfig
from tercet.training.run import Interrupted, in_use

Work = Callable[[PretrainConfig, str], float]
WAIT = 10.0  # seconds for a cluster's host to answer
LOST = 120.0  # seconds that a node which Ray gave up may still work: it notices after 60, and shared folders keep its locks for 90


def connect(address: str = "") -> Any:
    """The module `ray`, connected to the cluster at `address`, else to that of RAY_ADDRESS, else to one started here.

    Raises ConfigError where Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # one that is started here sends nothing
    try:
        import ray
    except ImportError as error:
        raise ConfigError(f"--backend ray: {error}; install it with `pip install 'tercet[ray]'`") from error
    where = address or os.environ.get("RAY_ADDRESS", "")
    try:
        if where not in ("", "auto", "local"):
            _knock(where)
        ray.init(address=where or "local", log_to_driver=False, logging_level=logging.ERROR)
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--address: no Ray cluster at {where or 'this machine'}: {error}; wanted host:port of one that `ray start --head` "
            "began, or neither --address nor RAY_ADDRESS"
        ) from error
    return ray


def _knock(where: str) -> None:
    """Raises OSError or ValueError where nothing answers: Ray itself would try for minutes."""
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("no host:port")
    socket.create_connection((host, int(port)), timeout=WAIT).close()


def at_home(work: Work, config: PretrainConfig, path: str, home: str, mark: str) -> float:
    """What a node does: `work(config, path)` in the folder `home`. `mark` is a file that was just written beside the runs.

    Waits while another process is at the run, for `LOST` seconds at most: it may be this task on a node that Ray cannot reach.
    Raises ConfigError where this machine has no such folder or another one of that name.
    """
    try:
        os.chdir(home)  # names of data, tokenizer and run are as they were given
        shared = Path(mark).is_file()
    except OSError:
        shared = False
    if not shared:
        raise ConfigError(
            f"{path}: the node {platform.node()} does not see the folder {Path(home) / Path(mark).parent}, or has another one of "
            "that name; every node must mount the working folder and --out at the same place"
        )
    until = time.monotonic() + LOST
    while in_use(Path(path)) and time.monotonic() < until:
        time.sleep(0.5)
    return work(config, path)


def on_ray(work: Work, left: Mapping[str, PretrainConfig], out: str | Path, address: str, report: Callable[[str, float], None]) -> None:  # fmt: skip
    """Do `work` for every run that is left, each with as many processors as it has threads; `report` each that is done.

    Where a task fails, or at Ctrl-C, the others save and stop. Raises what the task raised, Interrupted after Ctrl-C, ConfigError where there is no cluster or no
    node is large enough, TrainingError where a task was lost more often than Ray begins it again.
    """
    ray = connect(address)
    mark = Path(out) / f".shared-{uuid.uuid4().hex}"
    try:
        threads = max(config.threads for config in left.values())
        largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if threads > largest:
            raise ConfigError(
                f"--threads is {threads}, but no node has more than {largest:g} processors; ask for fewer"
            )
        Path(out).mkdir(parents=True, exist_ok=True)
        mark.touch()
        task = ray.remote(at_home)
        waiting = {
            task.options(num_cpus=config.threads, name=path).remote(work, config, path, os.getcwd(), str(mark)): path
            for path, config in left.items()
        }
        try:
            while waiting:
                (done,), _ = ray.wait(list(waiting))
                path = waiting.pop(done)
                report(path, _seconds(ray, done, path))
        except BaseException as error:
            for other in waiting:
                ray.cancel(other)  # as Ctrl-C does: saved after the step, to go on from
            if waiting:
                ray.wait(list(waiting), num_returns=len(waiting))
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"{out}: interrupted, and what trained is saved; the same command goes on") from error
            raise
    finally:
        mark.unlink(missing_ok=True)
        ray.shutdown()


def _seconds(ray: Any, done: Any, path: str) -> float:
    try:
        return float(ray.get(done))
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None)
        if isinstance(cause, Exception) and not isinstance(cause, ray.exceptions.RayError):
            raise cause from error  # what the run raised, as a process would
        why = str(cause or error).splitlines()[0]
        raise TrainingError(f"{path}: its Ray task was lost: {why}; the same command goes on with it") from error
