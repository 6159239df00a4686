"""--scorer as a user types it: what is scored, recorded, shown and compared is what was asked for, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import write_rows, write_world
from tercet.evaluation.scoring.score_files import current
from tercet.inference import language_model
from test_cli import MADE, type_in

LONG = (
    "Sugar dissolves faster in hot water because its molecules move more quickly there and hit the crystal more often"
)
FEW = "--threads 1 --max-new-tokens 8"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base model, a tuned one, and a user's own questions, whose right answers are long."""
    folder = write_world(tmp_path_factory.mktemp("scorers")).folder
    write_rows(folder / "own.jsonl", ({"prompt": f"Why, for the {n}th time?", "answers": [LONG]} for n in range(6)))
    write_rows(folder / "bare.jsonl", ({"prompt": f"Why {n}?"} for n in range(4)))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("tokenizer", "pretrain", "sft"):
            done = type_in(MADE[name])
            assert done.code == 0, done.err
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in that folder."""
    monkeypatch.chdir(home)
    return home


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_a_long_right_answer_is_right_and_nobody_speaks_of_a_rubric(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "answer_text", lambda tokenizer, ids: (f"{LONG}.", True))
    done = type_in(f"eval runs/sft --questions own.jsonl {FEW} --reference runs/base --out own.json")
    assert (done.code, done.err) == (0, "")
    row = json.loads(Path("own.json").read_text())["models"]["runs/sft"]
    assert list(row["scores"]) == list(row["each"]) == list(row["against"]) == ["exact_match"]
    assert row["scores"]["exact_match"]["greedy"]["value"] == row["scores"]["exact_match"]["sampled"]["value"] == 1.0
    assert row["each"]["exact_match"] == [1.0] * 6
    assert all(e["right"] and e["scores"] == {"exact_match": 1.0} for e in row["examples"])
    page = type_in("report runs/sft --scores own.json --out own.html")
    assert (page.code, page.err) == (0, "")
    for text in (done.out, Path("own.json").read_text(), Path("own.html").read_text()):
        assert "exact" in text
        for word in ("rubric", "well formed", "well_formed", "gold rubric"):
            assert word not in text.lower(), word


def test_several_scorers_stand_side_by_side(here: Path) -> None:
    (here / "mine.py").write_text("def short(prompt, answer, answers):\n    return 1 / (1 + len(answer))\n")
    names = ["exact_match", "f1", "numeric:0.5", r"regex:\d", "python:mine.py:short", "rubric", "rubric:direct"]
    options = " ".join(f"--scorer '{name}'" for name in names)
    done = type_in(
        f"eval runs/base runs/sft --questions tasks.jsonl --limit 8 {FEW} --reference runs/sft {options} "
        "--out side.json"
    )
    assert (done.code, done.err) == (0, "")
    found = json.loads(Path("side.json").read_text())
    assert found["config"]["scorer"] == names
    for row in found["models"].values():
        assert list(row["scores"]) == names
        for name, score in row["scores"].items():
            assert score["greedy"]["value"] == pytest.approx(sum(row["each"][name]) / 8)
            assert 0 <= score["sampled"]["value"] <= 1
        assert current(row) == row
    same = found["models"]["runs/sft"]["against"]["f1"]
    assert (same["win_rate"]["value"], same["difference"]["value"]) == (0.5, 0.0)
    for name in (
        "exact match (greedy)",
        "numeric:0.5 (sampled)",
        "win rate by f1",
        "difference of rubric",
    ):
        assert name in done.out.replace("\n", ""), name
    compared = type_in("compare runs/base runs/sft --scores side.json --out compared.json")
    assert (compared.code, compared.err) == (0, "")
    assert list(json.loads(Path("compared.json").read_text())["measures"]) == names
    assert all(name in compared.out for name in ("numeric:0.5", "rubric:direct"))
    assert type_in("report runs/sft --scores side.json --out side.html").code == 0
    page = Path("side.html").read_text()
    assert all(text in page for text in ("numeric:0.5", "win rate by rubric:direct", "as in SQuAD"))


def test_scores_from_before_are_compared_with_todays(here: Path) -> None:
    """Exact match is the same measure; the rubric's was of other answers, and is not taken for today's."""
    assert (
        type_in(
            f"eval runs/sft --questions tasks.jsonl --limit 8 {FEW} --scorer exact_match --scorer rubric --out new.json"
        ).code
        == 0
    )
    found = json.loads(Path("new.json").read_text())
    row = found["models"].pop("runs/sft")
    exact, rubric = row["scores"]["exact_match"], row["scores"]["rubric"]
    old = {key: row[key] for key in ("verb", "parameters", "finished", "ids")} | {
        "exact_match": exact["greedy"], "abilities": exact["abilities"], "held_out": {}, "rubric": rubric["sampled"],
        "rubric_parts": {"right": exact["sampled"]}, "well_formed": exact["sampled"],
        "each": {"exact_match": [0.0] * 8, "rubric": row["each"]["rubric"]},
    }  # fmt: skip
    found["models"]["runs/old"] = old
    Path("old.json").write_text(json.dumps(found))
    assert type_in("compare old.json new.json --out oldnew.json").code == 0
    measures = json.loads(Path("oldnew.json").read_text())["measures"]
    assert list(measures) == ["exact_match"]
    assert measures["exact_match"]["b"] == exact["greedy"]["value"]
    assert type_in("compare old.json old.json --out oldold.json").code == 0
    assert list(json.loads(Path("oldold.json").read_text())["measures"]) == ["exact_match", "rubric (sampled)"]


def test_training_logs_the_score_that_was_asked_for(here: Path) -> None:
    line = "grpo --model runs/sft --reward exact_match --steps 2 --batch-size 2 --group-size 2 --threads 1"
    line += " --max-new-tokens 6"
    done = type_in(f"{line} --prompts own.jsonl --out runs/plain")
    assert (done.code, done.err) == (0, "")
    metrics = [row for row in rows("runs/plain/metrics.jsonl") if "reward" in row]
    assert [row["score/exact_match"] for row in metrics] == [0.0, 0.0]
    assert not {key for row in metrics for key in row if "rubric" in key or key == "gold"}
    for file in ("config.json", "run.json", "log.txt", "metrics.jsonl"):
        if (here / "runs/plain" / file).exists():
            assert "rubric" not in (here / "runs/plain" / file).read_text()
    assert type_in("report runs/plain --out plain.html").code == 0
    page = Path("plain.html").read_text()
    assert "score of the answers by the scorer exact match" in page
    assert "rubric" not in page.lower()
    done = type_in(f"{line} --prompts own.jsonl --scorer f1 --scorer 'rubric' --out runs/asked")
    assert (done.code, done.err) == (0, "")
    assert {"score/f1", "score/rubric"} <= rows("runs/asked/metrics.jsonl")[-1].keys() | rows(
        "runs/asked/metrics.jsonl"
    )[-2].keys()


def test_prompts_without_answers_are_scored_by_what_needs_none(here: Path) -> None:
    (here / "mine.py").write_text("def short(prompt, answer, answers):\n    return 1 / (1 + len(answer))\n")
    line = "best-of-n --model runs/sft --reward python:mine.py:short --prompts bare.jsonl --answers 2"
    line += " --threads 1 --max-new-tokens 6"
    assert type_in(f"{line} --out runs/bare").code == 0
    assert "scores" not in json.loads(Path("runs/bare/run.json").read_text())["best_of_n"][0]
    assert type_in(f"{line} --scorer python:mine.py:short --out runs/bare-short").code == 0
    point = json.loads(Path("runs/bare-short/run.json").read_text())["best_of_n"][-1]
    assert point["scores"]["python:mine.py:short"]["n"] == 4
    refused = type_in(f"{line} --scorer f1 --out runs/bare-f1")
    assert (refused.code, "--scorer f1: it needs accepted answers" in refused.err) == (2, True)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval runs/sft --questions own.jsonl --scorer exactmatch",
         "there is no scorer 'exactmatch'; did you mean 'exact_match'"),
        ("eval runs/sft --questions own.jsonl --scorer f1 --scorer f1", "the scorer f1 is named twice"),
        ("eval runs/sft --text heldout.jsonl --scorer f1",
         "--scorer f1: it scores answers to --questions; name --questions"),
        ("eval runs/sft --questions own.jsonl --scorer code", "own.jsonl:1: the scorer code needs \"test\""),
        ("eval runs/sft --questions own.jsonl --scorer judge:runs/none",
         "--scorer judge:runs/none: runs/none: not a run directory"),
        ("eval runs/sft --questions own.jsonl --scorer python:none.py:f", "there is no file none.py"),
        ("winrate runs/base runs/sft --questions own.jsonl --judge numeric:x",
         "--judge numeric:x: the tolerance is 'x'"),
        ("grpo --model runs/sft --prompts own.jsonl --out runs/x --reward 2*exactmatch", "did you mean 'exact_match'"),
        ("grpo --model runs/sft --prompts own.jsonl --out runs/x --reward numeric:x",
         "--reward numeric:x: the tolerance is 'x'"),
        ("grpo --model runs/sft --prompts own.jsonl --out runs/x --reward judge:runs/sft",
         "is neither a known reward nor a folder"),
        ("grpo --model runs/sft --prompts own.jsonl --out runs/x --reward f1 --scorer f2", "there is no scorer 'f2'"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(here: Path, line: str, message: str) -> None:
    done = type_in(f"{line} --threads 1")
    assert (done.code, done.out, done.err.count("\n")) == (2, "", 1), (done.out, done.err)
    assert message in done.err
    assert not Path("runs/x").exists()


def test_the_help_names_every_scorer_in_a_sentence() -> None:
    said = " ".join(type_in("eval --help").out.split())
    assert (
        "Scorers of answers, from 0 to 1: exact_match, verbatim, contains, regex:PATTERN, numeric[:TOLERANCE]," in said
    )
    assert "[default: exact_match]" in said


def test_code_in_rows_of_ones_own(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(
        here / "code.jsonl",
        [{"prompt": "Write two().", "answers": ["def two(): return 2"], "test": "assert two() == 2"}] * 2,
    )
    monkeypatch.setattr(
        language_model, "answer_text", lambda tokenizer, ids: ("```python\ndef two():\n    return 1 + 1\n```", True)
    )
    done = type_in(f"eval runs/sft --questions code.jsonl --scorer code {FEW} --out code.json")
    assert (done.code, done.err) == (0, "")
    assert json.loads(Path("code.json").read_text())["models"]["runs/sft"]["each"] == {"code": [1.0, 1.0]}
