"""A ladder as tasks of a Ray that is started here: the same bits as without it, resumed, refused, and told of like there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from helpers import write_rows
from tercet.data.microworld import documents
from tercet.errors import ConfigError, DataError
from tercet.pretraining import cluster, ladder
from tercet.pretraining.config import PretrainConfig
from tercet.pretraining.scaling_config import LadderConfig
from tercet.tokenizer.bpe import train_tokenizer
from tercet.training.run import Run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with text and tokenizer, in which all tests work; names are relative to it."""
    folder, before = tmp_path_factory.mktemp("ray"), Path.cwd()
    os.chdir(folder)
    texts = [d.text for d in documents.documents(0, 60)]
    write_rows(folder / "text.jsonl", ({"text": t} for t in texts))
    train_tokenizer(texts, 300).save(folder / "tokenizer.json")
    ladder.run_ladder(config(), "alone")
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def address(home: Path) -> Iterator[str]:
    """A cluster of one node with two processors that works in another folder than the ladder's; its own processes end with it."""
    os.chdir("/")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    os.chdir(home)
    yield nodes.address
    nodes.shutdown()


def config(**changes: Any) -> LadderConfig:
    values: dict[str, Any] = {
        "data": ("text.jsonl",), "tokenizer": "tokenizer.json", "widths": (16, 32), "tokens": (1024, 2048), "context_length": 32,
        "heldout_bytes": 2000,
    }  # fmt: skip
    return LadderConfig(**{**values, **changes})


def hashes(folder: str) -> dict[str, str]:
    return {name: Run(Path(folder) / name).weights_hash() for name in config().rungs(300)}


def test_a_ladder_on_ray_is_the_same_and_goes_on_where_it_was(home: Path, address: str) -> None:
    ladder.run_ladder(config(), "tasks", backend="ray", address=address)
    assert hashes("tasks") == hashes("alone")
    first, second, third, _ = (Path("tasks") / name for name in config().rungs(300))
    assert {p.name for p in Path("tasks").iterdir()} == set(config().rungs(300))  # the mark is gone
    before = (first / "metrics.jsonl").stat().st_mtime_ns
    shutil.rmtree(second / "checkpoints")  # as if it had been killed before its first checkpoint
    Run(second).update(status="running")
    shutil.rmtree(third)
    ladder.run_ladder(config(), "tasks", backend="ray", address=address)
    assert hashes("tasks") == hashes("alone")
    assert (first / "metrics.jsonl").stat().st_mtime_ns == before
    assert Run(second).manifest["status"] == "finished"


def test_without_an_address_ray_is_started_here(home: Path) -> None:
    ladder.run_ladder(config(), "local", backend="ray")
    assert hashes("local") == hashes("alone")
    assert not ray.is_initialized()


@pytest.mark.parametrize("backend", ["processes", "ray"])
def test_what_fails_is_told_alike(home: Path, backend: str) -> None:
    with pytest.raises(DataError, match=r"nothing\.txt"):
        ladder.run_ladder(config(data=("nothing.txt",)), "failing", backend=backend, jobs=1 if backend == "ray" else 2)
    assert not ray.is_initialized()


ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the node knows tercet, not this file


def elsewhere(given: PretrainConfig, path: str) -> float:
    """What a node does that has none of the folders here."""
    return cluster.at_home(ladder.climb, given, path, "/no/such/folder", "mark")


def lost(given: PretrainConfig, path: str) -> float:
    """A task whose process is killed."""
    os._exit(1)


def test_a_node_without_the_folder_and_a_lost_task_are_told(home: Path, address: str) -> None:
    rungs = dict(list(config().rungs(300).items())[:1])
    with pytest.raises(ConfigError, match="does not see the folder"):
        cluster.on_ray(elsewhere, rungs, "x", address, print)
    with pytest.raises(Exception, match="its Ray task was lost"):
        cluster.on_ray(lost, rungs, "x", address, print)


def fail_beside(given: PretrainConfig, path: str) -> float:
    """Train, or fail once the other run has trained a little."""
    if not path.endswith("bad"):
        return ladder.climb(given, path)
    while not (ladder.begun(Path("beside/long")) and Run("beside/long").metrics("loss")):
        time.sleep(0.1)
    raise DataError("no good")


def test_where_one_fails_the_others_save_and_stop(home: Path, address: str) -> None:
    (long,) = config(widths=(16,), tokens=(2_000_000,)).rungs(300).values()
    with pytest.raises(DataError, match="no good"):
        cluster.on_ray(fail_beside, {"beside/long": long, "beside/bad": long}, "beside", address, print)
    run = Run("beside/long")
    assert run.manifest["status"] == "interrupted"
    assert int(run.last_checkpoint().name.removeprefix("step-")) == run.metrics("loss")[-1]["step"] < long.steps


def test_clusters_that_are_not_there_or_too_small_are_refused(
    home: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(ConfigError, match=f"no Ray cluster at {wrong}: .*wanted host:port"):
            ladder.run_ladder(config(), "never", backend="ray", address=wrong)
    with pytest.raises(ConfigError, match="--threads is 3, but no node has more than 2 processors"):
        ladder.run_ladder(dataclasses.replace(config(), threads=3), "never", backend="ray", address=address)
    assert not Path("never").exists()
