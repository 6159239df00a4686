"""Adding a stage is adding one file; and the way from a command to the model stays short."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from pathlib import Path

import pytest
import torch.nn.functional as F

import tercet
from helpers import World, assert_same_run, options, write_world
from tercet.cli import main as command_line
from tercet.errors import CheckpointError, ConfigError
from tercet.training.run import Run
from tercet.training.stage import PACKAGE, makers, stage_of, stages

MAIN = "from tercet.cli.main import main; main()"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("world"))
    made.make_parents("ppo")
    return made


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, copy / "tercet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("toy_stage.py"), copy / "tercet" / "posttraining")
    return copy


def start(source: Path, *words: str) -> subprocess.Popen[str]:
    """The command line of the copy, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen([sys.executable, "-c", MAIN, *words], env=environment, text=True, **pipes)  # type: ignore[call-overload, no-any-return]


def type_in(source: Path, *words: str) -> str:
    """What a command of the copy prints. It must not fail."""
    process = start(source, *words)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    return out


def test_a_stage_of_one_file_has_a_command_with_help(source: Path) -> None:
    assert "toy-reading" in type_in(source, "--help")
    shown = type_in(source, "toy-reading", "--help")
    assert "A toy: read some text again." in shown
    assert "A setting of the toy's own." in shown
    assert "--lora-rank" in shown
    names = "import tercet; print(tercet.toy_reading.verb, tercet.ToyConfig.__name__, 'toy_reading' in dir(tercet))"
    environment = {**os.environ, "PYTHONPATH": str(source)}
    done = subprocess.run([sys.executable, "-c", names], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["toy-reading", "ToyConfig", "True"]


def test_two_stages_of_one_verb_are_refused(source: Path, tmp_path: Path) -> None:
    """Else one of them would be left out, and nothing would say so."""
    copy = Path(shutil.copytree(source, tmp_path / "source"))
    shutil.copy(Path(__file__).with_name("toy_stage.py"), copy / "tercet" / "posttraining" / "other_stage.py")
    process = start(copy, "--help")
    assert "two stages have the verb 'toy-reading'" in process.communicate(timeout=120)[0]
    assert process.returncode != 0


def test_a_stage_of_one_file_resumes_reports_and_is_examined(world: World, source: Path, tmp_path: Path) -> None:
    common = f"--model {world.path('base')} --data {world.path('text.jsonl')} --batch-size 4 --threads 1 --lora-rank 2"
    words = ["toy-reading", *common.split(), "--steps", "150", "--checkpoint-every", "1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = start(source, *words, "--out", str(killed))
    while process.poll() is None and not (killed / "checkpoints" / "step-00000003").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert Run(killed).manifest["status"] == "running"
    type_in(source, "resume", str(killed))
    type_in(source, *words, "--out", str(whole))
    assert_same_run(killed, whole)
    assert (whole / "adapter" / "adapter_model.safetensors").is_file()
    assert Run(whole).manifest["parents"]["model"]["sha256"] == Run(world.path("base")).weights_hash()
    assert list(Run(whole).manifest["inputs"]) == [world.path("text.jsonl")]
    assert "loudness" in type_in(source, "doctor", str(whole))
    assert "parameters of the toy" in type_in(source, "doctor", str(whole))
    type_in(source, "report", str(whole), "--out", str(tmp_path / "report.html"))
    page = (tmp_path / "report.html").read_text()
    for text in ("The toy stage", "toy took 150 steps.", "amused", "tercet toy-reading", "Pretraining"):
        assert text in page
    child = tmp_path / "child"  # what it makes is a language model: other stages take it
    tuned = f"sft --model {whole} --data {world.path('chats.jsonl')} --steps 2 --threads 1 --out {child}"
    type_in(source, *tuned.split())
    assert Run(child).manifest["parents"]["model"]["sha256"] == Run(whole).weights_hash()


def test_this_version_does_not_know_the_toy(world: World, tmp_path: Path) -> None:
    shutil.copytree(world.path("base"), tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    file.write_text(file.read_text().replace('"pretrain"', '"toy-reading"'))
    with pytest.raises(CheckpointError, match="verb is 'toy-reading'; wanted one of import, pretrain, sft"):
        stage_of(Run(tmp_path / "run"))
    with pytest.raises(CheckpointError, match="verb is 'toy-reading'"):
        tercet.resume(tmp_path / "run")
    with pytest.raises(ConfigError, match="is a toy-reading run; wanted a language model, as made by `tercet import`"):
        tercet.Chat(tmp_path / "run")


def test_every_stage_is_declared_whole() -> None:
    for verb, stage in stages().items():
        assert stage.example.startswith(f"tercet {verb} ")
        assert callable(stage.function)
        assert stage.makes in ("", "model", "language model", "reward model")
        assert bool(stage.checks) == bool(stage.probe), "a stage that trains has both"
    assert makers("reward model") == ["reward"]


# -- the way from the command to the model ----------------------------------------------------------------------------


def frames(world: World, verb: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Our own frames from the command's function to every call of attention."""
    real, seen = F.scaled_dot_product_attention, set()

    def attention(*args: object, **named: object) -> object:
        own = [f.name for f in traceback.extract_stack() if Path(f.filename).is_relative_to(PACKAGE)]
        seen.add(tuple(own[own.index("command") :]))
        return real(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(sys, "argv", ["tercet", verb, *options(world.config(verb)), "--out", str(out)])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    assert ended.value.code in (0, None)
    return [list(way) for way in seen]


@pytest.mark.parametrize(("verb", "most"), [("pretrain", 7), ("sft", 7), ("ppo", 9)])
def test_few_of_our_frames_lie_between_the_command_and_attention(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str, most: int
) -> None:
    """Training steps, and for ppo also sampling; measurements between steps may be deeper."""
    ways = frames(world, verb, tmp_path / "out", monkeypatch)
    training = [way for way in ways if way[2] in ("forward_backward", "update", "collect")]
    learning = [way for way in training if "forward_backward" in way or "generate" in way]
    assert len(learning) >= 1 + 2 * (verb == "ppo")
    deep = [way for way in learning if len(way) > most and "learn_values" not in way]
    assert deep == []


# -- runs of older versions -------------------------------------------------------------------------------------------


def test_runs_with_the_names_of_older_versions_are_read(world: World, tmp_path: Path) -> None:
    """A ranking was made by `tercet rank`, its questions were --tasks, and the cooldown was --decay."""
    ranked = world.run("annotate", "ranked")
    for run, verb in ((ranked.path, "rank"), (world.folder / "tuned", "sft")):
        shutil.copytree(run, tmp_path / verb)
        config = json.loads((tmp_path / verb / "config.json").read_text())
        old = {{"questions": "tasks", "cooldown": "decay"}.get(name, name): v for name, v in config.items()}
        assert "tasks" in old
        (tmp_path / verb / "config.json").write_text(json.dumps(old))
        manifest = json.loads((tmp_path / verb / "run.json").read_text())
        (tmp_path / verb / "run.json").write_text(json.dumps({**manifest, "verb": verb}))
    found = Run(tmp_path / "rank")
    assert (stage_of(found).verb, found.config["questions"]) == ("annotate", list(ranked.config["questions"]))
    assert "cooldown" in Run(tmp_path / "sft").config
    page = tercet.write_report([tmp_path / "rank", tmp_path / "sft"], tmp_path / "report.html").read_text()
    assert "tercet annotate" in page
    assert "--questions" in page
    tercet.Chat(tmp_path / "sft")
