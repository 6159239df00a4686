"""What `tercet export` writes; that transformers reads it so is shown in proofs/test_export.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend
from typer.testing import CliRunner

from helpers import World, write_world
from tercet.cli.main import app
from tercet.errors import ConfigError
from tercet.interop.huggingface import export_model
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.run import Run


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("world"))
    made.run("reward", "judge", steps=2)
    return made


def test_a_language_model_is_written_with_its_weights_unchanged(world: World) -> None:
    done = CliRunner().invoke(app, ["export", world.path("base"), "--out", world.path("hf")])
    assert done.exit_code == 0, done.output
    run, folder = Run(world.path("base")), Path(world.path("hf"))
    ours, theirs = run.weights(), load_file(folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((folder / "config.json").read_text())
    assert (config["model_type"], config["architectures"]) == ("qwen3", ["Qwen3ForCausalLM"])
    assert config["vocab_size"] == theirs["model.embed_tokens.weight"].shape[0]
    tokenizer = Tokenizer.load(run.path)
    encoded = Backend.from_file(str(folder / "tokenizer.json")).encode("Anna has 3 apples.").ids
    assert encoded == [tokenizer.endoftext, *tokenizer.encode("Anna has 3 apples.")]
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [tokenizer.im_end, tokenizer.endoftext]


def test_a_reward_model_keeps_its_gain_and_tells_its_offset(world: World) -> None:
    folder = export_model(world.path("judge"), world.path("hf-judge"))
    ours, theirs = Run(world.path("judge")).weights(), load_file(folder / "model.safetensors")
    torch.testing.assert_close(theirs["score.weight"], ours["gain"] * ours["score.weight"])
    assert ours["backbone.model.norm.weight"].equal(theirs["model.norm.weight"])
    config = json.loads((folder / "config.json").read_text())
    offset = float(ours["gain"] * ours["score.bias"] + ours["bias"])
    assert config["tercet_score_offset"] == pytest.approx(offset)
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]


def test_what_cannot_be_written_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        export_model(world.path("base"), tmp_path)
    done = CliRunner().invoke(app, ["export", world.path("base"), "--to", "gguf", "--out", str(tmp_path / "x")])
    assert "--to gguf: there is no such format; wanted hf" in str(done.exception)
