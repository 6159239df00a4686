"""Exact resume: a run that was killed at any moment and continued has the same bits as one that never stopped."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

import tercet
from helpers import (
    TERCET,
    TRAINED,
    At,
    World,
    assert_same_run,
    in_process,
    options,
    press_ctrl_c,
    process,
    records,
    tensors,
    write_world,
)
from tercet.errors import CheckpointError, ConfigError, DataError, TercetError
from tercet.training.run import Interrupted, Run

KILLS = 10
WHILE_WRITING = (
    ("half a file", 2),
    ("in a sync", 5),
    ("before the rename", 1),
    ("after the rename", 3),
    ("half a removal", 1),
    ("before the rename", 3),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def stopped(world: World) -> Path:
    """A pretraining run that Ctrl-C ended after step 7; to be copied, not changed."""
    with pytest.raises(Interrupted, match="after step 7 and saved; continue with `tercet resume"):
        world.run("pretrain", "stopped", progress=At(7, press_ctrl_c))
    return world.folder / "stopped"


@pytest.fixture(scope="module")
def whole(world: World) -> Path:
    """The same run, never stopped."""
    return world.run("pretrain", "whole").path


def copy(run: Path, name: str) -> Path:
    return Path(shutil.copytree(run, run.with_name(name)))


# -- runs of older versions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["pretrain", "ppo"])
def test_a_run_that_an_older_version_began_is_resumed_to_the_same_bits(world: World, verb: str) -> None:
    """It has the settings' old names, which its hash is of, and lacks those that are new."""
    expected = world.run(verb, f"{verb}-at-once").path
    with pytest.raises(Interrupted):
        world.run(verb, f"{verb}-old", progress=At(7, press_ctrl_c))
    old = world.folder / f"{verb}-old"
    config = json.loads((old / "config.json").read_text())
    config["decay"] = config.pop("cooldown")
    config.pop("scorer", None)
    manifest = json.loads((old / "run.json").read_text())
    manifest["config_sha256"] = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
    (old / "config.json").write_text(json.dumps(config))
    (old / "run.json").write_text(json.dumps(manifest))
    changed = copy(old, f"{verb}-old-changed")
    tercet.resume(old)
    assert_same_run(old, expected)
    (changed / "config.json").write_text(json.dumps({**config, "lr": 0.5}))
    with pytest.raises(CheckpointError, match=r"config\.json has changed"):
        tercet.resume(changed)


# -- kill -9 ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", TRAINED)
def test_runs_killed_at_random_moments_end_with_the_same_bits(world: World, tmp_path: Path, verb: str) -> None:
    world.make_parents(verb)
    config, expected = world.config(verb), tmp_path / "never-killed"
    seconds = in_process(verb, config, expected)
    rng, kills, rounds, resumed = random.Random(f"kills of {verb}"), 0, 0, 0
    while kills < KILLS:
        out, rounds = tmp_path / f"killed-{rounds}", rounds + 1
        for _ in range(3):  # what goes on after a kill is killed too
            with process(verb, config, out) as child:
                child.join(rng.uniform(0.0, seconds))
                child.kill()
                child.join()
                assert child.exitcode in (0, -signal.SIGKILL)
            if Run(out).manifest["status"] == "finished":
                break  # too late to kill anything
            kills += 1
        else:
            in_process(verb, config, out)
        assert_same_run(out, expected)
        resumed += len(Run(out).manifest["resumed"])
    assert resumed > 0, "some runs went on from a checkpoint"


@pytest.mark.parametrize("verb", TRAINED)
def test_a_run_killed_while_it_writes_checkpoints_ends_with_the_same_bits(
    world: World, tmp_path: Path, verb: str
) -> None:
    world.make_parents(verb)
    config, out, expected = world.config(verb), tmp_path / "killed", tmp_path / "never-killed"
    for place in WHILE_WRITING:
        with process(verb, config, out, stall=place) as child:
            child.kill()
        if Run(out).checkpoints():
            assert tensors(out), "the newest checkpoint is whole"
    in_process(verb, config, out)
    in_process(verb, config, expected)
    assert_same_run(out, expected)
    assert sorted(p.name for p in (out / "checkpoints").iterdir()) == ["step-00000012", "step-00000013"]


def test_a_run_killed_between_its_last_checkpoint_and_the_removal_of_old_ones_still_keeps_only_the_newest(
    world: World, tmp_path: Path
) -> None:
    config, out = world.config("pretrain", steps=4, checkpoint_every=1, keep=1), tmp_path / "out"
    with process("pretrain", config, out, stall=("after the rename", 4)) as child:
        child.kill()
    in_process("pretrain", config, out)
    assert [p.name for p in Run(out).checkpoints()] == ["step-00000004"]


def test_a_run_killed_before_it_has_begun_can_be_started_again_at_the_same_place(world: World, tmp_path: Path) -> None:
    config, out = world.config("pretrain"), tmp_path / "out"
    with process(
        "pretrain", config, out, stall=("before a replace", 2)
    ) as child:  # config.json is there, run.json is not
        child.kill()
    in_process("pretrain", config, out)
    assert Run(out).manifest["status"] == "finished"


def test_rankings_that_were_killed_are_the_same_when_done_again(world: World, tmp_path: Path) -> None:
    world.make_parents("annotate")
    config, out, expected = world.config("annotate"), tmp_path / "killed", tmp_path / "never-killed"
    with process("annotate", config, out, stall=("before a replace", 3)) as child:
        child.kill()
    in_process("annotate", config, out)
    in_process("annotate", config, expected)
    for name in ("train.jsonl", "heldout.jsonl", "README.txt"):
        assert (out / "rankings" / name).read_bytes() == (expected / "rankings" / name).read_bytes()
    assert Run(out).manifest["rankings"] == Run(expected).manifest["rankings"]


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_ctrl_c_saves_the_step_and_resume_ends_with_the_same_bits(stopped: Path, whole: Path) -> None:
    run = Run(stopped)
    assert (run.manifest["status"], run.last_checkpoint().name, records(stopped)[-1]["step"]) == (
        "interrupted",
        "step-00000007",
        7,
    )
    out = copy(stopped, "continued")
    assert tercet.resume(out).path == out
    assert_same_run(out, whole)
    assert [entry["step"] for entry in Run(out).manifest["resumed"]] == [7]


def test_a_second_ctrl_c_stops_at_once_and_loses_only_what_was_not_saved(world: World, whole: Path) -> None:
    def twice() -> None:
        press_ctrl_c()
        press_ctrl_c()

    with pytest.raises(KeyboardInterrupt):
        world.run("pretrain", "stopped-twice", progress=At(8, twice))
    run = Run(world.folder / "stopped-twice")
    assert (run.manifest["status"], run.last_checkpoint().name) == ("interrupted", "step-00000006")
    tercet.resume(run.path)
    assert_same_run(run.path, whole)


# -- damaged records --------------------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_is_survived(stopped: Path, whole: Path) -> None:
    out = copy(stopped, "cut")
    with (out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss": 2.')
    assert Run(out).metrics()[-1]["step"] == 7
    tercet.resume(out)
    assert_same_run(out, whole)


def test_a_sample_that_was_cut_off_inside_a_character_is_survived(stopped: Path, whole: Path) -> None:
    out = copy(stopped, "cut-inside")
    with (out / "samples.jsonl").open("ab") as file:
        file.write('{"step": 8, "text": "é'.encode()[:-1])
    tercet.resume(out)
    assert_same_run(out, whole)


@pytest.mark.parametrize("odd", ["\u2028", "\u2029", "\x85"], ids=ascii)
def test_samples_with_every_kind_of_line_end_are_kept(stopped: Path, odd: str) -> None:
    out = copy(stopped, f"line-ends-{ord(odd)}")
    sample = {"step": 7, "prompt": "odd", "text": f"two{odd}lines"}
    Run(out).log_samples(7, [{k: v for k, v in sample.items() if k != "step"}])
    assert Run(out).read_lines("samples.jsonl")[-1] == sample
    tercet.resume(out)
    assert sample in Run(out).read_lines("samples.jsonl")


# -- what may not be resumed ------------------------------------------------------------------------------------------


def test_a_finished_run_cannot_be_resumed(whole: Path) -> None:
    before = sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*"))
    with pytest.raises(CheckpointError, match="is finished; there is nothing to resume"):
        tercet.resume(whole)
    assert sorted((p, p.stat().st_mtime_ns) for p in whole.rglob("*")) == before


def test_what_is_no_run_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        tercet.resume(tmp_path)


def test_a_run_whose_config_was_changed_cannot_be_resumed(stopped: Path) -> None:
    out = copy(stopped, "changed-config")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"lr": 0.5}))
    with pytest.raises(CheckpointError, match=r"config\.json has changed"):
        tercet.resume(out)


def test_a_stage_does_not_go_on_with_other_settings(world: World, stopped: Path) -> None:
    from tercet import pretrain

    with pytest.raises(CheckpointError, match=r"config\.json has changed"):
        pretrain(world.config("pretrain", lr=0.5), copy(stopped, "other-settings"), resume=True)


def test_a_run_whose_tokenizer_was_changed_cannot_be_resumed(tmp_path: Path) -> None:
    from tercet.tokenizer.bpe import train_tokenizer

    world = write_world(tmp_path)
    with pytest.raises(Interrupted):
        world.run("pretrain", "out", progress=At(4, press_ctrl_c))
    train_tokenizer(["other words, other merges; " * 20], 300).save(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="tokenizer"):
        tercet.resume(tmp_path / "out")


def test_a_run_whose_parent_was_changed_or_is_gone_cannot_be_resumed(world: World, tmp_path: Path) -> None:
    world.make_parents("sft")
    parent = Path(shutil.copytree(world.path("base"), tmp_path / "base"))
    with pytest.raises(Interrupted):
        world.run("sft", str(tmp_path / "out"), model=str(parent), progress=At(4, press_ctrl_c))
    weights = Run(parent).last_checkpoint() / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1  # one bit of the last weight
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match="other weights than when the run began"):
        tercet.resume(tmp_path / "out")
    shutil.rmtree(parent)
    with pytest.raises(ConfigError, match="not a run directory"):
        tercet.resume(tmp_path / "out")


def test_a_run_that_cannot_be_resumed_now_is_not_deleted(world: World, tmp_path: Path) -> None:
    world = write_world(tmp_path)
    with pytest.raises(Interrupted):
        world.run("pretrain", "trained", progress=At(4, press_ctrl_c))
    (tmp_path / "trained" / "metrics.jsonl").unlink()
    world.make_parents("annotate")
    with process("annotate", world.config("annotate"), tmp_path / "ranked", stall=("before a replace", 3)) as child:
        child.kill()
    (tmp_path / "text.jsonl").rename(tmp_path / "elsewhere.jsonl")
    (tmp_path / "tasks.jsonl").rename(tmp_path / "elsewhere-too.jsonl")
    for name in ("trained", "ranked"):
        with pytest.raises(DataError, match="there is no such file"):
            tercet.resume(tmp_path / name)
        assert (tmp_path / name / "config.json").is_file()
    assert Run(tmp_path / "trained").last_checkpoint().name == "step-00000004"


def test_two_processes_cannot_work_on_one_run(world: World, tmp_path: Path) -> None:
    config, out = world.config("pretrain"), tmp_path / "out"
    with process("pretrain", config, out, stall=("before the rename", 2)):
        before = (out / "run.json").read_bytes()
        with pytest.raises(TercetError, match="another process"):
            tercet.resume(out)
        assert (out / "run.json").read_bytes() == before
        assert Run(out).last_checkpoint().name == "step-00000002"
    in_process("pretrain", config, out)


# -- what run.json says of a resumed run ------------------------------------------------------------------------------


def test_bad_rows_are_counted_once_however_often_a_run_is_resumed(tmp_path: Path) -> None:
    world = write_world(tmp_path)
    with (tmp_path / "text.jsonl").open("a") as file:
        file.write("no json\n")
    with pytest.raises(Interrupted):
        world.run("pretrain", "out", skip_bad_rows=True, progress=At(4, press_ctrl_c))
    assert Run(tmp_path / "out").manifest["skipped_rows"] == 1
    assert tercet.resume(tmp_path / "out").manifest["skipped_rows"] == 1


def test_a_run_that_failed_and_was_resumed_says_how_it_is_now(world: World) -> None:
    def fail() -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        world.run("pretrain", "failed", progress=At(2, fail))
    out = world.folder / "failed"
    assert (Run(out).manifest["status"], Run(out).manifest["error"]) == ("failed", "OSError: no space left on device")
    seen: list[str] = []
    tercet.resume(out, progress=At(2, lambda: seen.append(Run(out).manifest["status"])))
    assert seen == ["running"]
    assert Run(out).manifest["status"] == "finished"
    assert "error" not in Run(out).manifest


# -- the command line -------------------------------------------------------------------------------------------------


def start(*words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [TERCET, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(*words: str) -> None:
    process = start(*words)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, ""), out + err


def signalled(run: Path, number: signal.Signals, *words: str) -> tuple[int, str]:
    """Exit code and stderr of a command that gets a signal as soon as the run has a few steps behind it."""
    process = start(*words)
    deadline = time.monotonic() + 60
    while not (run / "metrics.jsonl").exists() or len((run / "metrics.jsonl").read_text().splitlines()) < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_the_command_line_resumes_after_kill_and_ctrl_c_and_repeats_a_run_from_its_config(
    world: World, tmp_path: Path
) -> None:
    words = options(world.config("pretrain", steps=40))
    killed, interrupted, again = (tmp_path / n for n in ("killed", "interrupted", "again"))
    code, _ = signalled(killed, signal.SIGKILL, "pretrain", *words, "--out", str(killed))
    assert (code, Run(killed).manifest["status"]) == (-signal.SIGKILL, "running")
    finish("resume", str(killed))

    code, err = signalled(interrupted, signal.SIGINT, "pretrain", *words, "--out", str(interrupted))
    assert (code, Run(interrupted).manifest["status"]) == (130, "interrupted")
    assert err.startswith("error: interrupted after step")
    assert f"continue with `tercet resume {interrupted}`" in err
    assert "Traceback" not in err
    assert int(Run(interrupted).last_checkpoint().name[5:]) == records(interrupted)[-1]["step"] < 40
    finish("resume", str(interrupted))

    finish("pretrain", "--config", str(killed / "config.json"), "--out", str(again))
    assert_same_run(killed, again)
    assert_same_run(interrupted, again)
    assert (again / "config.json").read_bytes() == (killed / "config.json").read_bytes()
