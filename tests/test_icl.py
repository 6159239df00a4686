"""The recipe of in-context learning: rows that hold whole documents, what is measured, tuning, and the command itself."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tercet.errors import ConfigError
from tercet.microworld.mappings import FAMILIES, WORDS, Prompt, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.causal import pack_documents
from tercet.studies.in_context_learning.config import (
    CONTEXT,
    LENGTHS,
    MOST,
    SHOTS,
    SIZES,
    TUNED_SHOTS,
    InContextLearningConfig,
)
from tercet.studies.in_context_learning.measure import forward_flops, hits, tuned
from tercet.studies.in_context_learning.study import VOCABULARY, run_in_context_learning
from tercet.studies.in_context_learning.summary import summarise
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.progress import silent
from tercet.training.run import Run

WORLD = World(0)
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
        {"shots": k, "shown": k, "accuracy": k / 20 + shift, "ceiling": 1.0, "accuracy_shown": 0.9 if k else None}
        for k in (0, 4, 16)
    ]
    head = {"previous_token": [[0.1, 0.2]], "prefix_matching": [[0.0, 0.1]], "one_further": [[0.1, 0.0]]}
    late = {"previous_token": [[0.1, 0.9]], "prefix_matching": [[0.8, 0.1]], "one_further": [[0.1, 0.7]]}
    steps = [{"step": 0, "accuracy_shown": 0.0, **head}, {"step": 5, "accuracy_shown": 0.4, **late}]
    return {
        "parameters": 9, "without_embeddings": 4, "loss": 1.0, "shots": {"heldout": rows, "train": rows}, "steps": steps, "tuning": [],
        "without_head": [[0.1, 0.3]],
    }  # fmt: skip


def test_the_summary_over_seeds() -> None:
    """By hand: two seeds, Student's t with one degree of freedom is 12.706."""
    found = summarise({"small": [measured(0.0), measured(0.0)], "large": [measured(0.1), measured(0.2)]})
    row = found["large"]["shots"]["heldout"][1]["above_smallest"]
    assert row["value"] == pytest.approx(0.15)
    assert row["high"] - row["value"] == pytest.approx(12.7062 * (0.1 / math.sqrt(2)) / math.sqrt(2), rel=1e-4)
    assert [e["value"] for e in found["large"]["prefix_matching_by_step"]] == pytest.approx([0.1, 0.8])
    assert [e["value"] for e in found["large"]["previous_token_by_step"]] == pytest.approx([0.2, 0.9])
    assert found["large"]["induction_emerged"] == [5, 5]
    assert (found["large"]["without_induction"]["value"], found["large"]["without_another"]["value"]) == (0.1, 0.3)
    assert found["large"]["accuracy_emerged"] == [None, None]


def test_the_recipe_from_end_to_end_and_again(tmp_path: Path) -> None:
    out = tmp_path / "icl"
    summary = run_in_context_learning(CONFIG, out, silent())
    assert json.loads((out / "icl.json").read_text()) == json.loads(json.dumps(summary))
    assert {p.name for p in out.glob("*.png")} == {f"icl-{n}.png" for n in ("shots", "steps", "heads", "tuning")}
    assert list(summary["sizes"]) == [size.name for size in SIZES]
    for size in summary["sizes"].values():
        assert [row["shots"] for row in size["shots"]["heldout"]] == list(SHOTS)
        assert size["steps"] == [0, 2, 4]
    rows = summary["sizes"][SIZES[-1].name]["tuning"]
    assert [row["shots"] for row in rows] == list(TUNED_SHOTS)
    assert [row["asking"]["answer_tokens"]["value"] for row in rows] == [2 * min(k, MOST) + 2 for k in TUNED_SHOTS]
    runs = sorted(p.parent for p in out.rglob("run.json"))
    assert len(runs) == 2 * len(SIZES)
    assert all(Run(run).manifest["status"] == "finished" for run in runs)
    made = {file: file.stat().st_mtime_ns for run in runs for file in (run / "run.json", run / "measured.json")}
    (runs[0] / "measured.json").unlink()  # as if it had been killed there
    again = run_in_context_learning(CONFIG, out, silent())
    times = {file: file.stat().st_mtime_ns for file in made}
    assert {f for f in made if times[f] != made[f]} == {runs[0] / "measured.json"}
    assert again["sizes"][SIZES[0].name]["shots"] == summary["sizes"][SIZES[0].name]["shots"]
    with pytest.raises(ConfigError, match="begun with other settings"):
        run_in_context_learning(dataclasses.replace(CONFIG, questions=20), out, silent())


def test_other_folders_and_wrong_settings_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        run_in_context_learning(CONFIG, tmp_path, silent())
    with pytest.raises(ConfigError, match="at least one for each of 14 checkpoints"):
        InContextLearningConfig(steps=3)
    with pytest.raises(ConfigError, match="seeds"):
        InContextLearningConfig(seeds=1)
