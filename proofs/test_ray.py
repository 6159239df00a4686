"""A ladder as tasks of a Ray that is started here: the same bits, resumption, refusals and messages as without it.

Its cluster has several nodes, each with processes of its own, on one machine.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from helpers import options, write_rows
from tercet.errors import ConfigError, DataError
from tercet.microworld import documents
from tercet.pretraining.stage import PretrainConfig
from tercet.scaling import ladder
from tercet.scaling import ray as cluster
from tercet.scaling.config import LadderConfig
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
def nodes(home: Path) -> Iterator[Cluster]:
    """A head without processors and two nodes with one each, working in another folder than the ladder's."""
    os.chdir("/")
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        nodes.add_node(num_cpus=1)
    os.chdir(home)
    yield nodes
    nodes.shutdown()


@pytest.fixture
def address(nodes: Cluster) -> str:
    address: str = nodes.address
    return address


def config(**changes: Any) -> LadderConfig:
    values: dict[str, Any] = {
        "data": ("text.jsonl",), "tokenizer": "tokenizer.json", "widths": (16, 32), "tokens": (1024, 2048),
        "context_length": 32,
        "heldout_bytes": 2000,
    }  # fmt: skip
    return LadderConfig(**{**values, **changes})


def wait_for(condition: Callable[[], bool]) -> None:
    """For five minutes: a start of Ray's processes can take long on a busy machine."""
    until = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def trains(path: Path | str) -> bool:
    return ladder.begun(Path(path)) and bool(Run(path).metrics("loss"))


def hashes(folder: str) -> dict[str, str]:
    return {name: Run(Path(folder) / name).weights_hash() for name in config().points(300)}


def test_a_ladder_on_ray_is_the_same_and_goes_on_where_it_was(home: Path, address: str) -> None:
    ladder.run_ladder(config(), "tasks", backend="ray", address=address)
    assert hashes("tasks") == hashes("alone")
    first, second, third, _ = (Path("tasks") / name for name in config().points(300))
    assert {p.name for p in Path("tasks").iterdir()} == set(config().points(300))  # the mark is gone
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
    return cluster.at_home(ladder.run_point, given, path, "/no/such/folder", "mark")


def lost(given: PretrainConfig, path: str) -> float:
    """A task whose process is killed."""
    os._exit(1)


def test_a_node_without_the_folder_and_a_lost_task_are_told(home: Path, address: str) -> None:
    points = dict(list(config().points(300).items())[:1])
    with pytest.raises(ConfigError, match="does not see the folder"):
        cluster.on_ray(elsewhere, points, "x", address, print)
    with pytest.raises(Exception, match="its Ray task was lost"):
        cluster.on_ray(lost, points, "x", address, print)


def fail_beside(given: PretrainConfig, path: str) -> float:
    """Train, or fail once the other run has trained a little."""
    if not path.endswith("bad"):
        return ladder.run_point(given, path)
    wait_for(lambda: trains("beside/long"))  # each has a node
    raise DataError("no good")


def test_where_one_fails_the_others_save_and_stop(home: Path, address: str) -> None:
    (long,) = config(widths=(16,), tokens=(2_000_000,)).points(300).values()
    with pytest.raises(DataError, match="no good"):
        cluster.on_ray(fail_beside, {"beside/long": long, "beside/bad": long}, "beside", address, print)
    run = Run("beside/long")
    assert run.manifest["status"] == "interrupted"
    assert int(run.last_checkpoint().name.removeprefix("step-")) == run.metrics("loss")[-1]["step"] < long.steps


def noted(given: PretrainConfig, path: str) -> float:
    """Train, and note where."""
    with Path("lost/nodes").open("a") as file:
        file.write(f"{ray.get_runtime_context().get_node_id()}\n")
    return ladder.run_point(given, path)


def test_a_run_whose_node_is_lost_goes_on_at_another(home: Path, nodes: Cluster) -> None:
    (given,) = config(widths=(16,), tokens=(200_000,)).points(300).values()
    given = dataclasses.replace(given, checkpoint_every=20)
    ladder.run_point(given, "kept")
    Path("lost").mkdir()

    def lose() -> None:
        wait_for(lambda: trains("lost/run") and bool(Run("lost/run").checkpoints()))
        at = Path("lost/nodes").read_text().strip()
        (node,) = (node for node in nodes.worker_nodes if node.node_id == at)
        nodes.remove_node(node, allow_graceful=False)

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(lose)
        cluster.on_ray(noted, {"lost/run": given}, "lost", nodes.address, print)
        lost.result()
    nodes.add_node(num_cpus=1)
    first, second = Path("lost/nodes").read_text().split()
    assert first != second
    run = Run("lost/run")
    assert run.manifest["resumed"][0]["step"] >= 20
    assert run.weights_hash() == Run("kept").weights_hash()


def test_ctrl_c_ends_the_command_and_not_the_cluster(home: Path, address: str) -> None:
    """More runs than nodes. The same command then ends the ladder."""
    three = config(widths=(16,), tokens=(200_000,), seeds=(0, 1, 2))
    runs = [Path("stopped") / name for name in three.points(300)]
    words = ["scaling", "run", *options(three), "--out", "stopped", "--backend", "ray", "--address", address]
    command = [sys.executable, "-c", "from tercet.cli.main import main; main()", *words]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True) as pressed:
        wait_for(lambda: sum(map(trains, runs)) == 2)
        os.killpg(pressed.pid, signal.SIGINT)  # as a terminal does
        error = pressed.communicate(timeout=120)[1]
    assert (pressed.returncode, "stopped: interrupted, and what trained is saved" in error) == (130, True), error
    assert {p.name for p in Path("stopped").iterdir()} <= {p.name for p in runs}
    stopped = [run for run in map(Run, filter(ladder.begun, runs)) if run.manifest["status"] != "finished"]
    assert stopped
    for run in stopped:
        assert run.manifest["status"] == "interrupted"
        assert run.last_checkpoint().name == f"step-{run.metrics('loss')[-1]['step']:08d}"
    subprocess.run(command, check=True)
    ladder.run_ladder(three, "through", jobs=2)
    for path in runs:
        assert Run(path).weights_hash() == Run(Path("through") / path.name).weights_hash()


def test_clusters_that_are_not_there_or_too_small_are_refused(
    home: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for wrong in ("127.0.0.1:1", "nonsense"):
        with pytest.raises(ConfigError, match=f"no Ray cluster at {wrong}: .*wanted host:port"):
            ladder.run_ladder(config(), "never", backend="ray", address=wrong)
    with pytest.raises(ConfigError, match="--threads is 2, but no node has more than 1 processors"):
        ladder.run_ladder(dataclasses.replace(config(), threads=2), "never", backend="ray", address=address)
    assert not Path("never").exists()
