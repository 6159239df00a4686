"""The examples of docs/guides/extending.md: each is put where the page says and used as the page says."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest

from helpers import World, write_world
from tercet.cli.main import main
from tercet.data.types import Message, Question
from tercet.evaluation import task as tasks
from tercet.evaluation.scoring import scorers
from tercet.training.run import Run
from tercet.training.stage import PACKAGE
from test_stages import type_in

PAGE = Path(__file__).parents[1] / "docs" / "guides" / "extending.md"
STAGE, OWN_SCORER, SCORER, TASK = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("world"))
    made.make_parents("sft")
    return made


def run_command(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tercet", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (0, None)


def test_the_stage(world: World, tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "tercet", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "tercet" / "posttraining" / "lines_stage.py").write_text(STAGE, encoding="utf-8")
    (tmp_path / "poems.txt").write_text("Anna has 3 apples.\nPaul has 5 apples.\n" * 20, encoding="utf-8")
    out = tmp_path / "lines"
    words = f"lines --model {world.path('base')} --data {tmp_path / 'poems.txt'} --steps 9 --lr 0.01 --batch-size 2"
    assert "done in" in type_in(tmp_path, *words.split(), "--threads", "1", "--lora-rank", "4", "--out", str(out))
    first, *_, last = [row["all_lines"] for row in Run(out).metrics("all_lines")]
    assert last < first
    assert (out / "adapter").is_dir()
    type_in(tmp_path, "report", str(out), "--out", str(tmp_path / "report.html"))
    assert "trained on lines" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_the_scorer_of_a_file(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(OWN_SCORER, encoding="utf-8")
    scorer = scorers.scorer_of("python:mine.py:same_start")
    question = Question((Message("user", "?"),), ("yes", "sure"), "", "1")
    assert scorer.scores([question] * 2, [(" sure it is", True), ("no", True)]) == [1, 0]
    words = "--scorer exact_match,python:mine.py:same_start --max-new-tokens 4 --threads 1"
    run_command(monkeypatch, "eval", world.path("base"), "--questions", world.path("tasks.jsonl"), *words.split())


def test_the_named_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorers, "SCORER_ENTRIES", dict(scorers.SCORER_ENTRIES))
    exec(compile(SCORER, str(PAGE), "exec"), {})
    scorer = scorers.scorer_of("begins_with")
    assert scorer.description == "1 if the answer begins with an accepted one."
    assert scorer(Question((Message("user", "?"),), ("yes",), "", "1"), "yes, it is") == 1


def test_the_task(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tasks, "_REGISTERED", dict(tasks.registered()))
    Path("double.py").write_text(TASK, encoding="utf-8")
    words = "--import double.py --task double --shots 0,2 --threads 1"
    run_command(monkeypatch, "prompt", world.path("base"), *words.split())
    assert "Double the number.\n39 => 78\n28 => 56\n10 =>" in capsys.readouterr().out
    assert tasks.find("double").items[0].answers == ("20",)
