"""Runs as tasks on a Ray cluster (the extra `ray`). A task does the work of a `--jobs` process on one of the nodes.

Only settings and seconds are sent: every node sees the same folders as this machine and has tercet installed.
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
WAIT = 10.0  # seconds to wait for a cluster's host
# Seconds for which a node that Ray has lost may still work: it notices after 60, and shared folders keep locks for 90.
LOST = 120.0


def connect(address: str = "") -> Any:
    """Return the module `ray`, connected to the cluster at `address` or RAY_ADDRESS, or to one started here.

    Raises ConfigError if Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here sends no usage statistics
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
            f"--address: no Ray cluster at {where or 'this machine'}: {error}; give the host:port of a cluster that "
            "`ray start --head` started, or neither --address nor RAY_ADDRESS"
        ) from error
    return ray


def _knock(where: str) -> None:
    """Check that a host answers, since Ray itself would try for minutes. Raises OSError or ValueError if not."""
    host, _, port = where.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("no host:port")
    socket.create_connection((host, int(port)), timeout=WAIT).close()


def at_home(work: Work, config: PretrainConfig, path: str, home: str, mark: str) -> float:
    """Run `work(config, path)` in the folder `home` on a node. `mark` is a file that was just written beside the runs.

    While another process works on the run, which may be this task on a node that Ray lost, it waits for at most `LOST`
    seconds. Raises ConfigError if the node has no such folder, or another folder with that name.
    """
    try:
        os.chdir(home)  # paths of data, tokenizer and run are relative to it
        shared = Path(mark).is_file()
    except OSError:
        shared = False
    if not shared:
        raise ConfigError(
            f"{path}: the node {platform.node()} does not see the folder {Path(home) / Path(mark).parent}, or has "
            "another one of that name; mount the working folder and --out at the same path on every node"
        )
    until = time.monotonic() + LOST
    while in_use(Path(path)) and time.monotonic() < until:
        time.sleep(0.5)
    return work(config, path)


def on_ray(
    work: Work, left: Mapping[str, PretrainConfig], out: str | Path, address: str, report: Callable[[str, float], None]
) -> None:
    """Do `work` for every run in `left`, each with as many processors as it has threads; `report` each finished run.

    If a task fails, or at Ctrl-C, the other tasks save and stop. Raises the exception of the task, Interrupted after
    Ctrl-C, ConfigError if there is no cluster or no node is large enough, TrainingError if a task was lost more often
    than Ray restarts it.
    """
    ray = connect(address)
    mark = Path(out) / f".shared-{uuid.uuid4().hex}"
    try:
        threads = max(config.threads for config in left.values())
        largest = max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"])
        if threads > largest:
            raise ConfigError(f"--threads is {threads}, but no node has more than {largest:g} processors; use fewer")
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
                ray.cancel(other)  # like Ctrl-C: the task saves after the current step
            if waiting:
                ray.wait(list(waiting), num_returns=len(waiting))
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(
                    f"{out}: interrupted; running tasks are saved, and the same command continues"
                ) from error
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
            raise cause from error  # the exception of the run itself, as from a local process
        why = str(cause or error).splitlines()[0]
        raise TrainingError(f"{path}: its Ray task was lost: {why}; the same command continues it") from error
