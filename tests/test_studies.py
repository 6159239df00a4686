"""Studies: adding one is adding one file; and in-context learning, its rows, its measurements, and all of it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tercet.errors import CheckpointError, ConfigError
from tercet.microworld.mappings import FAMILIES, WORDS, Prompt, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.causal import pack_documents
from tercet.studies.folder import StudyFolder
from tercet.studies.in_context_learning.experiment import VOCABULARY
from tercet.studies.in_context_learning.measure import forward_flops, hits, tuned
from tercet.studies.in_context_learning.study import (
    CONTEXT,
    IN_CONTEXT_LEARNING,
    LENGTHS,
    MOST,
    SHOTS,
    SIZES,
    TUNED_SHOTS,
    InContextLearningConfig,
)
from tercet.studies.in_context_learning.summary import summarise
from tercet.studies.study import studies
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.run import Run
from tercet.training.stage import PACKAGE, load_object
from toy_study import DICE, DiceConfig

WORLD = World(0)


def broken(seed: int) -> float:
    """Fails for the second seed."""
    return 1 / (1 - seed)


def break_apart(config: DiceConfig, folder: StudyFolder) -> list[float]:
    """A body whose second part fails."""
    return list(folder.seeds(broken, config.seed, config.seeds, config.jobs))


BROKEN = dataclasses.replace(DICE, body=f"{__name__}:break_apart")
CONFIG = InContextLearningConfig(
    steps=4, checkpoints=2, seeds=2, batch_size=2, questions=16, tuning_steps=2, tuning_mappings=1, threads=1
)


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return train_tokenizer((f" {word}" for word in WORDS), VOCABULARY)


@pytest.fixture(scope="module")
def model(words: Tokenizer) -> Transformer:
    torch.set_num_threads(1)
    return Transformer(ModelConfig(words.vocab_size, **SIZES[-1].shape()), seed=1)


def test_every_word_is_a_token(words: Tokenizer) -> None:
    assert all(len(words.encode(f" {word}")) == 1 for word in WORDS)
    assert words.encode(" ba to di") == [i for part in (" ba", " to", " di") for i in words.encode(part)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", LENGTHS)
def test_every_row_holds_whole_documents(words: Tokenizer, family: Any, tokens: int) -> None:
    each = CONTEXT // (tokens + 2)
    rows = pack_documents(words, list(WORLD.documents(family, 3 * each, tokens)), CONTEXT)
    assert len(rows) == 3
    assert (rows.segments[:, :CONTEXT] == np.arange(3 * each).repeat(tokens + 2).reshape(3, CONTEXT)).all()
    assert (rows.tokens[:, :CONTEXT].reshape(3 * each, -1)[:, [0, -1]] == words.endoftext).all()


def test_the_context_holds_what_is_asked(words: Tokenizer) -> None:
    for shots in (*SHOTS, MOST):
        assert 1 + len(words.encode(WORLD.prompts(1, shots)[0].text)) == 2 * shots + 2 < CONTEXT
    assert 2 * MOST + 2 <= 1 + max(LENGTHS) < 2 * (MOST + 1) + 2  # no position is new


def test_hits_are_right_next_tokens(words: Tokenizer, model: Transformer) -> None:
    """Each prompt by itself through the plain forward pass, of a model that says words."""
    asked = tuned(model, words, WORLD.drawn(1, 8)[1], dataclasses.replace(CONFIG, tuning_steps=30))
    expected, prompts = [], []
    for number, prompt in enumerate([*WORLD.prompts(8, 0), *WORLD.prompts(8, 3)]):
        ids = torch.tensor([[words.endoftext, *words.encode(prompt.text)]])
        with torch.no_grad():
            said = words.decode([int(asked(ids)[0, -1].argmax())])
        prompts.append(dataclasses.replace(prompt, answer=said[1:]) if number % 2 else prompt)
        expected.append(said == f" {prompts[-1].answer}")
    assert 0 < sum(expected) < len(expected)
    assert hits(asked, words, prompts) == expected


def test_tuning_learns_the_examples_and_leaves_the_model_alone(words: Tokenizer, model: Transformer) -> None:
    before = {name: p.clone() for name, p in model.named_parameters()}
    pairs, examples = WORLD.drawn(0, 6)
    student = tuned(model, words, examples, dataclasses.replace(CONFIG, tuning_steps=60, tuning_lr=5e-3))
    learnt = [Prompt((), word, output) for word, output in dict(examples).items()]
    assert all(hits(student, words, learnt))
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    rest = [Prompt((), word, output) for word, output in pairs.items() if word not in dict(examples)]
    assert sum(hits(student, words, rest)) <= 1  # nothing tells it those


@pytest.mark.parametrize("size", SIZES)
def test_flops_are_those_that_torch_counts(size: Any) -> None:
    """torch counts matrix products, and attention over all pairs; causal attention needs (T + 1) / 2T of those."""
    shape = ModelConfig(300, **size.shape())
    model, T = Transformer(shape), 40
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, T, dtype=torch.long))
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    attention = sum(n for op, n in counted.items() if "attention" in op)
    expected = sum(counted.values()) - attention
    assert attention in (0, 4 * shape.num_layers * shape.num_heads * shape.head_dim * T * T)
    expected += 4 * shape.num_layers * shape.num_heads * shape.head_dim * T * (T + 1) // 2
    assert forward_flops(shape, T, answers=T) == pytest.approx(expected, rel=0.01)  # norms count as weights in ours


def measured(shift: float) -> dict[str, Any]:
    rows = [
        {"shots": k, "in_context": k, "accuracy": k / 20 + shift, "ceiling": 1.0, "accuracy_in_context": right}
        for k, right in ((0, None), (4, 0.9), (16, 0.9))
    ]
    head = {"previous_token": [[0.1, 0.2]], "prefix_matching": [[0.0, 0.1]], "one_further": [[0.1, 0.0]]}
    late = {"previous_token": [[0.1, 0.9]], "prefix_matching": [[0.8, 0.1]], "one_further": [[0.1, 0.7]]}
    steps = [{"step": 0, "accuracy_in_context": 0.0, **head}, {"step": 5, "accuracy_in_context": 0.4, **late}]
    shots = {"heldout": rows, "train": rows}
    size = {"parameters": 9, "without_embeddings": 4, "loss": 1.0}
    return {**size, "shots": shots, "steps": steps, "tuning": [], "without_head": [[0.1, 0.3]]}


def test_the_summary_over_seeds() -> None:
    """By hand: two seeds, Student's t with one degree of freedom is 12.706."""
    sizes = summarise({"small": [measured(0.0), measured(0.0)], "large": [measured(0.1), measured(0.2)]})
    row = sizes["large"]["shots"]["heldout"][1]["above_smallest"]
    assert row["value"] == pytest.approx(0.15)
    assert row["high"] - row["value"] == pytest.approx(12.7062 * (0.1 / math.sqrt(2)) / math.sqrt(2), rel=1e-4)
    assert [e["value"] for e in sizes["large"]["prefix_matching_by_step"]] == pytest.approx([0.1, 0.8])
    assert [e["value"] for e in sizes["large"]["previous_token_by_step"]] == pytest.approx([0.2, 0.9])
    assert sizes["large"]["induction_emerged"] == [5, 5]
    assert (sizes["large"]["without_induction"]["value"], sizes["large"]["without_another"]["value"]) == (0.1, 0.3)
    assert sizes["large"]["accuracy_emerged"] == [None, None]


def test_in_context_learning_from_end_to_end_and_again(tmp_path: Path) -> None:
    out = tmp_path / "icl"
    record = IN_CONTEXT_LEARNING(CONFIG, out)
    sizes = record["results"]["sizes"]
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(record))
    assert {p.name for p in out.glob("*.png")} == {f"{n}.png" for n in ("shots", "steps", "heads", "tuning")}
    assert (out / "summary.md").read_text().count("hold") == 7
    assert list(sizes) == [size.name for size in SIZES]
    for size in sizes.values():
        assert [row["shots"] for row in size["shots"]["heldout"]] == list(SHOTS)
        assert size["steps"] == [0, 2, 4]
    rows = sizes[SIZES[-1].name]["tuning"]
    assert [row["shots"] for row in rows] == list(TUNED_SHOTS)
    assert [row["prompting"]["answer_tokens"]["value"] for row in rows] == [2 * min(k, MOST) + 2 for k in TUNED_SHOTS]
    runs = sorted(p.parent for p in out.rglob("run.json"))
    assert len(runs) == 2 * len(SIZES)
    assert all(Run(run).manifest["status"] == "finished" for run in runs)
    made = {file: file.stat().st_mtime_ns for file in (*out.rglob("run.json"), *out.glob("parts/*.json"))}
    lost = out / "parts" / "seed-0-layers-1-width-64.json"
    lost.unlink()  # as if it had been killed there
    again = IN_CONTEXT_LEARNING(CONFIG, out)
    assert {file for file, time in made.items() if file.stat().st_mtime_ns != time} == {lost}
    assert again["results"]["sizes"][SIZES[0].name]["shots"] == sizes[SIZES[0].name]["shots"]
    with pytest.raises(ConfigError, match="was begun with --questions 16, now it is 20"):
        IN_CONTEXT_LEARNING(dataclasses.replace(CONFIG, questions=20), out)


def test_steps_must_be_enough_for_the_checkpoints() -> None:
    with pytest.raises(ConfigError, match="--steps is 3; wanted at least 14"):
        InContextLearningConfig(steps=3)
    with pytest.raises(ConfigError, match="--seeds"):
        InContextLearningConfig(seeds=1)


# -- adding a study -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with one file more."""
    copy = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, copy / "tercet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(Path(__file__).with_name("toy_study.py"), copy / "tercet" / "studies")
    return copy


def type_in(source: Path, *words: str, code: int = 0) -> str:
    """What a command of the copy prints."""
    environment = {**os.environ, "PYTHONPATH": str(source), "COLUMNS": "200", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", "from tercet.cli.main import main; main()", *words]
    done = subprocess.run(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == code, done.stdout
    return done.stdout


def test_a_study_of_one_file_is_listed_and_has_a_command_with_help(source: Path) -> None:
    listed = type_in(source, "study")
    assert re.search(r"^dice +Is a die fair\?$", listed, re.MULTILINE)
    assert all(re.search(f"^{s.name} +{re.escape(s.question)}$", listed, re.MULTILINE) for s in studies().values())
    shown = type_in(source, "study", "dice", "--help")
    for text in ("Throw a die.", "Example: tercet study dice", "Throws for each seed.", "--jobs", "--out"):
        assert text in shown


def test_a_study_of_one_file_runs_resumes_records_plots_and_states_its_result(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "dice"
    words = ["study", "dice", "--seeds", "3", "--out", str(out)]
    said = type_in(source, *words, "--jobs", "2")
    assert re.search(r"^  holds +the mean is near 3\.5: \[3\.", said, re.MULTILINE)
    assert re.search(r"^  does not hold +the mean is above 6: \[3\.", said, re.MULTILINE)
    record = json.loads((out / "results.json").read_text())
    assert record["settings"] == {"seeds": 3, "seed": 0, "jobs": 2, "throws": 100}
    assert [claim["holds"] for claim in record["claims"]] == [True, False]
    assert record["starts"][0]["versions"].keys() >= {"tercet", "torch", "python"}
    summary = (out / "summary.md").read_text()
    for text in (
        "# Is a die fair?",
        "seeds 3",
        "- **holds**: the mean is near 3.5: [3.",
        "| seed | mean |",
        "(dice.png)",
    ):
        assert text in summary
    assert (out / "dice.png").stat().st_size > 1000
    parts = {file: file.stat().st_mtime_ns for file in (out / "parts").iterdir()}
    assert {file.name for file in parts} == {"seed-0.json", "seed-1.json", "seed-2.json"}
    lost = out / "parts" / "seed-1.json"
    lost.unlink()  # as if it had been stopped before that part was finished
    type_in(source, *words, "--jobs", "1")  # jobs may change
    assert {file for file, time in parts.items() if file.stat().st_mtime_ns != time} == {lost}
    again = json.loads((out / "results.json").read_text())
    assert again["results"] == record["results"]
    assert len(again["starts"]) == 2


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    out, config = tmp_path / "dice", DiceConfig(seeds=2, jobs=1)
    DICE(config, out)
    wanted = "was begun with --throws 100, now it is 7; give the same settings to continue, or choose another --out"
    with pytest.raises(ConfigError, match=wanted):
        DICE(dataclasses.replace(config, throws=7), out)
    with pytest.raises(ConfigError, match="holds the study dice, not cards; choose another --out"):
        dataclasses.replace(DICE, name="cards")(config, out)
    (out / "parts" / "seed-1.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"seed-1\.json: damaged: .*; delete the file, or choose another --out"):
        DICE(config, out)
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        DICE(config, tmp_path)


@pytest.mark.parametrize("name", studies())
def test_every_study_is_declared_whole(name: str) -> None:
    study = studies()[name]
    assert study.example.startswith(f"tercet study {name} ")
    assert study.question.endswith("?")
    for reference in (study.body, study.claims, study.tables, study.figures):
        assert callable(load_object(reference))


def test_a_failing_part_leaves_the_others(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        BROKEN(DiceConfig(seeds=3, jobs=1), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out" / "parts").iterdir()) == ["seed-0.json"]
