"""Run directories of whole stages: their contents, refusals, failed runs, and bit-identical repetition."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import tercet
from helpers import LONGER, TRAINED, At, World, assert_same_run, press_ctrl_c, records, tensors, write_world
from tercet import pretrain
from tercet.data.types import Document
from tercet.errors import CheckpointError, ConfigError, DataError, NonFiniteError, TrainingError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.causal import pack_documents
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.losses import next_token, next_token_batch
from tercet.training.optim import OptimizerConfig
from tercet.training.run import Interrupted, Run
from tercet.training.settings import from_json
from tercet.training.stage import stages
from tercet.training.trainer import training_steps

NAME = {"pretrain": "base", "sft": "tuned", "reward": "judge", "ppo": "policy", "grpo": "group", "dpo": "direct"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """The data, and one finished run of every stage."""
    made = write_world(tmp_path_factory.mktemp("world"))
    made.make_parents("ppo")
    made.run("ppo", "policy")
    made.run("grpo", "group")
    made.run("dpo", "direct")
    return made


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def listing(folder: Path) -> dict[str, Any]:
    """Everything in a folder: bytes and times of files."""
    return {
        str(p): (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns)
        for p in [folder, *sorted(folder.rglob("*"))]
    }


# -- what it says -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", TRAINED)
def test_run_json_says_what_was_asked_of_what_and_with_what(world: World, verb: str) -> None:
    run = Run(world.folder / NAME[verb])
    said = json.loads((run.path / "run.json").read_text())
    assert (said["format"], said["verb"], said["status"], said["device"], said["resumed"]) == (
        1,
        verb,
        "finished",
        "cpu",
        [],
    )
    assert said["argv"] == sys.argv
    assert (said["seed"], said["threads"]) == (3, 1)
    begun = datetime.datetime.fromisoformat(said["created"])
    assert (
        datetime.timedelta(0) <= datetime.datetime.now(datetime.timezone.utc) - begun < datetime.timedelta(minutes=30)
    )
    assert 0 < said["seconds"] < 600
    assert 20 < said["peak_memory_mb"] < 100_000
    installed = {name: metadata.version(name) for name in ("tercet", "torch", "numpy", "tokenizers", "safetensors")}
    assert said["versions"] == {"python": platform.python_version(), **installed}
    assert "error" not in said


@pytest.mark.parametrize(
    ("verb", "parents"),
    [
        ("pretrain", {}),
        ("sft", {"model": "base"}),
        ("reward", {"model": "tuned"}),
        ("ppo", {"model": "tuned", "reward": "judge"}),
        ("grpo", {"model": "tuned"}),
        ("dpo", {"model": "tuned"}),
    ],
)
def test_run_json_names_its_parents_and_the_hash_of_their_weights(
    world: World, verb: str, parents: dict[str, str]
) -> None:
    run = Run(world.folder / NAME[verb])
    found = run.manifest["parents"]
    assert found.keys() == parents.keys()
    for role, name in parents.items():
        weights = sorted((world.folder / name / "checkpoints").iterdir())[-1] / "model.safetensors"
        assert (run.path / found[role]["path"]).resolve() == (world.folder / name).resolve()
        assert found[role]["checkpoint"] == weights.parent.name
        assert found[role]["sha256"] == sha256(weights)


def test_run_json_names_the_commit_of_the_source(world: World) -> None:
    source = Path(tercet.__file__).resolve().parents[2]
    said = Run(world.folder / "base").manifest["git"]
    if not (source / ".git").exists():
        assert said == {}
        return
    ask = ["git", "-C", str(source), "rev-parse", "HEAD"]
    assert said["commit"] == subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    assert isinstance(said["diff"], str)


@pytest.mark.parametrize("verb", TRAINED)
def test_config_json_has_every_setting_and_gives_the_same_settings_back(world: World, verb: str) -> None:
    run = Run(world.folder / NAME[verb])
    config = stages()[verb].settings
    assert run.config.keys() == {f.name for f in dataclasses.fields(config)}
    longer = LONGER if verb in ("pretrain", "sft") else {}
    assert from_json(config, run.config, "config.json") == world.config(verb, **longer)


@pytest.mark.parametrize("verb", TRAINED)
def test_a_run_has_its_tokenizer_shape_records_and_the_newest_checkpoints(world: World, verb: str) -> None:
    run = Run(world.folder / NAME[verb])
    assert Tokenizer.load(run.path).fingerprint() == Tokenizer.load(world.path("tokenizer.json")).fingerprint()
    assert run.model_config() == ModelConfig(306, 64, 32, 2, 2, 1, 16, 48)
    weights = load_file(run.last_checkpoint() / "model.safetensors")
    trained = sum(a.size for n, a in weights.items() if n not in ("bias", "gain")) - (33 if verb == "reward" else 0)
    assert trained == run.model_config().parameters()
    steps = run.config["steps"]
    before = (steps - 1) // 2 * 2  # a checkpoint every 2 steps and at the end, the newest 2 kept
    assert [p.name for p in run.checkpoints()] == [f"step-{before:08d}", f"step-{steps:08d}"]
    rows = records(run.path)
    if verb != "grpo":  # the world's has no held-out text
        assert rows[0]["step"] == 0
    assert "loss" not in rows[0]
    assert [r["step"] for r in rows if "grad_norm" in r] == list(range(1, steps + 1))
    measured = [r["step"] for r in rows if "heldout" in r or "heldout_accuracy" in r]
    assert measured == ([] if verb == "grpo" else sorted({*range(0, steps + 1, 5), steps}))
    assert all(np.isfinite(v) for r in rows for v in r.values())


@pytest.mark.parametrize("keep", [1, 3])
def test_keep_is_how_many_of_the_newest_checkpoints_stay(world: World, keep: int) -> None:
    run = world.run("pretrain", f"keep-{keep}", keep=keep, checkpoint_every=1, steps=5)
    assert [p.name for p in run.checkpoints()] == [f"step-{s:08d}" for s in range(6 - keep, 6)]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", TRAINED)
def test_a_folder_in_use_is_refused_and_nothing_in_it_changes(world: World, tmp_path: Path, verb: str) -> None:
    stage = stages()[verb]
    (tmp_path / "thesis.txt").write_text("ten years of work")
    (tmp_path / "a file").write_text("")
    for out in (tmp_path, world.folder / "base", tmp_path / "a file"):
        before = listing(out)
        with pytest.raises(
            ConfigError, match=re.escape(str(out)) + r" exists and is (not empty|a file); choose another --out"
        ):
            stage(world.config(verb), out)
        assert listing(out) == before


def test_an_empty_folder_is_fine(world: World, tmp_path: Path) -> None:
    assert pretrain(world.config("pretrain", steps=1), tmp_path).manifest["status"] == "finished"


def test_a_folder_that_cannot_be_made_is_an_error_that_says_so(world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file"):
        pretrain(world.config("pretrain"), tmp_path / "file" / "run")


@pytest.fixture(scope="module")
def stopped(world: World) -> Path:
    """A run that Ctrl-C ended after step 4; to be copied, not changed."""
    with pytest.raises(Interrupted):
        world.run("pretrain", "stopped", progress=At(4, press_ctrl_c))
    return world.folder / "stopped"


DAMAGE = [
    ("checkpoints/step-00000004/model.safetensors", b"\x00" * 9),
    ("checkpoints/step-00000004/model.safetensors", None),
    ("checkpoints/step-00000004/state.json", b"{"),
    ("checkpoints/step-00000004/state.json", None),
    ("config.json", None),
    ("run.json", b"{"),
    ("run.json", b"[]"),
]


@pytest.mark.parametrize(("name", "damage"), DAMAGE)
def test_damaged_runs_are_refused_with_a_message_that_says_where(
    stopped: Path, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "out"))
    if damage is None:
        (out / name).unlink()
    else:
        (out / name).write_bytes(damage)
    with pytest.raises(CheckpointError, match=re.escape(str(out))):
        tercet.resume(out)


# -- training that cannot go on ---------------------------------------------------------------------------------------


ABSURD = [
    ("pretrain", "lr"),
    ("pretrain", "muon_lr"),
    ("sft", "lr"),
    ("reward", "lr"),
    ("ppo", "lr"),
    ("ppo", "muon_lr"),
    ("ppo", "critic_lr"),
]


@pytest.mark.parametrize("every", [0, 1], ids=["measured seldom", "measured at every step"])
@pytest.mark.parametrize(("verb", "setting"), ABSURD)
def test_an_absurd_learning_rate_ends_with_the_step_and_a_hint(
    world: World, tmp_path: Path, verb: str, setting: str, every: int
) -> None:
    config = world.config(
        verb, **{setting: 1e30}, checkpoint_every=0, eval_every=every, **({"minibatches": 1} if verb == "ppo" else {})
    )
    with pytest.raises(NonFiniteError) as caught:
        stages()[verb](config, tmp_path / "out")
    assert re.search(r"step \d+", str(caught.value))
    assert f"in {tmp_path / 'out'}; no checkpoint was written yet. Hint: lower --lr" in str(caught.value)
    run = Run(tmp_path / "out")
    assert run.manifest["status"] == "failed"
    assert run.manifest["error"].startswith("NonFiniteError: ")


def fail_once(monkeypatch: pytest.MonkeyPatch, target: str, call: int) -> None:
    """Make the `call`-th loss (1, 2, …) of an objective NaN."""
    module, _, name = target.rpartition(".")
    objective, calls = getattr(sys.modules[module], name), iter(range(1, 10_000))

    def broken(model: Any, batch: Any) -> Any:
        loss, metrics = objective(model, batch)
        return (loss * float("nan"), metrics) if next(calls) == call else (loss, metrics)

    monkeypatch.setattr(target, broken)


def test_only_a_checkpoint_whose_weights_gave_a_finite_loss_is_called_good(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of step-4 are the very ones whose loss is NaN; those of step-2 have been through a step."""
    fail_once(monkeypatch, "tercet.pretraining.causal.next_token", 5)
    with pytest.raises(
        NonFiniteError, match=r"^step 4: the loss is nan .*; the last good checkpoint is \S*/step-00000002\. Hint"
    ):
        pretrain(world.config("pretrain"), tmp_path / "out")


def test_ppo_counts_a_failing_step_as_its_metrics_and_checkpoints_do(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_once(monkeypatch, "tercet.posttraining.rl.ppo.value_objective", 8)  # two minibatches a step: of step 3
    with pytest.raises(
        NonFiniteError, match=r"^step 3: the loss is nan .*; the last good checkpoint is \S*/step-00000002\. Hint"
    ):
        stages()["ppo"](world.config("ppo"), tmp_path / "out")
    assert records(tmp_path / "out")[-1]["step"] == 3


@pytest.mark.parametrize("verb", ["pretrain", "sft", "reward"])
def test_a_loss_that_is_nan_names_the_last_good_checkpoint_from_which_the_run_goes_on(
    world: World, tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = {
        "pretrain": "pretraining.causal.next_token",
        "sft": "posttraining.sft.tune.next_token",
        "reward": "posttraining.reward_model.train.ranking_loss",
    }[verb]
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_once(patch, f"tercet.{target}", 6)
        with pytest.raises(NonFiniteError) as caught:
            stages()[verb](world.config(verb), out)
    good = out / "checkpoints" / "step-00000004"
    assert str(caught.value).startswith(
        f"step 5: the loss is nan in {out}; the last good checkpoint is {good}. Hint: lower --lr"
    )
    run = Run(out)
    assert (run.manifest["status"], run.manifest["error"]) == ("failed", "NonFiniteError: step 5: the loss is nan")
    assert all(np.isfinite(a).all() for a in load_file(good / "model.safetensors").values())
    tercet.resume(out)
    assert_same_run(out, stages()[verb](world.config(verb), tmp_path / "never-failed").path)


def test_a_batch_with_nothing_to_train_on_ends_the_run_before_it_changes_a_weight(world: World, tmp_path: Path) -> None:
    config = world.config("pretrain", steps=4, checkpoint_every=1)
    tokenizer = Tokenizer.load(world.path("tokenizer.json"))
    rows = pack_documents(tokenizer, [Document("Anna has 3 apples. " * 40, "s", "1")], 64)
    empty = dataclasses.replace(rows, weights=np.zeros_like(rows.weights))
    model = Transformer(ModelConfig(tokenizer.vocab_size, 64, 32, 2, 2, 1, 16, 48))
    learner = Learner(model, OptimizerConfig.of(config))

    def train() -> None:
        with Run.start("pretrain", config, tmp_path / "out") as run:
            for step in training_steps(run, config, learner, lambda done: None):
                batches = [next_token_batch((empty if step.number == 2 else rows).take(range(4)))]
                step.update(learner, learner.forward_backward(batches, next_token), batches)

    with pytest.raises(TrainingError, match=r"^step 2: the batch has nothing to train on"):
        train()
    run = Run(tmp_path / "out")
    assert run.manifest["status"] == "failed"
    assert run.manifest["error"].startswith("TrainingError: step 2: ")
    saved = load_file(run.last_checkpoint() / "model.safetensors")
    assert all(np.array_equal(saved[name], value.numpy()) for name, value in model.state_dict().items())


# -- what must not change the result ----------------------------------------------------------------------------------


# The reward model's gain and bias are not trained but computed from many scores; the ranking loss does not depend on
# score.bias, so its gradient is nothing but rounding.
LOOSE = {"gain": 2e-4, "bias": 2e-3, "score.bias": 2e-3}


@pytest.mark.parametrize("verb", TRAINED)
def test_splitting_the_batch_changes_neither_the_weights_nor_the_heldout_measures(world: World, verb: str) -> None:
    whole, split = (world.run(verb, f"{verb}-by-{n}", micro_batch=n, steps=4) for n in (0, 4 if verb == "grpo" else 1))
    one, other = (load_file(r.last_checkpoint() / "model.safetensors") for r in (whole, split))
    start = (
        load_file(Run(world.path(str(whole.config["model"]))).last_checkpoint() / "model.safetensors")
        if verb in ("sft", "ppo", "grpo")
        else {}
    )
    for name, value in one.items():
        allowed = LOOSE.get(name, 1e-5)
        np.testing.assert_allclose(other[name], value, rtol=0, atol=allowed, err_msg=name)
        assert name not in start or not np.array_equal(start[name], value), "it has trained"
    for a, b in zip(records(whole.path), records(split.path), strict=True):
        if verb == "dpo" and a["step"] == 1:  # policy and reference are one: which side of a tie is rounding's choice
            assert a.pop("accuracy") + b.pop("accuracy") == pytest.approx(1, abs=0.5)
        assert a == pytest.approx(b, rel=2e-4, abs=1e-4)


@pytest.mark.parametrize("verb", TRAINED)
def test_measuring_and_saving_more_often_changes_no_bit_of_the_result(world: World, verb: str) -> None:
    often = world.run(verb, f"{verb}-often", steps=4, eval_every=1, checkpoint_every=1)
    seldom = world.run(verb, f"{verb}-seldom", steps=4, eval_every=0, checkpoint_every=0)
    assert tensors(often.path) == tensors(seldom.path)


@pytest.mark.parametrize("verb", TRAINED)
def test_another_seed_gives_another_result(world: World, verb: str) -> None:
    one, other = (world.run(verb, f"{verb}-seed-{seed}", steps=2, seed=seed) for seed in (1, 2))
    assert tensors(one.path) != tensors(other.path)


# -- bad rows ---------------------------------------------------------------------------------------------------------


SKIPPED = [
    ("pretrain", "text.jsonl"), ("pretrain", "heldout.jsonl"), ("sft", "chats.jsonl"), ("sft", "tasks.jsonl"),
    ("annotate", "tasks.jsonl"), ("reward", "rankings.jsonl"), ("reward", "chats.jsonl"),
    ("ppo", "tasks.jsonl"), ("ppo", "text.jsonl"), ("ppo", "heldout.jsonl"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "file"), SKIPPED)
def test_bad_rows_stop_a_stage_or_are_counted_in_run_json_and_named_in_the_log(
    world: World, tmp_path: Path, verb: str, file: str
) -> None:
    world.make_parents("ppo")
    bad = tmp_path / file
    bad.write_text(Path(world.path(file)).read_text() + '{"neither": "fish"}\n')
    line = len(bad.read_text().splitlines())
    settings = {"heldout": (world.path("heldout.jsonl"),)} if verb == "pretrain" else {}
    config = world.config(verb, **settings, **({"steps": 1} if verb in TRAINED else {}))
    changed = {
        f.name: (str(bad),) for f in dataclasses.fields(config) if getattr(config, f.name) == (world.path(file),)
    }
    assert len(changed) == 1
    with pytest.raises(DataError, match=re.escape(f"{bad}:{line}: ")):
        stages()[verb](dataclasses.replace(config, **changed), tmp_path / "stopped")
    run = stages()[verb](dataclasses.replace(config, skip_bad_rows=True, **changed), tmp_path / "skipped")
    assert run.manifest.get("skipped_rows") == 1
    assert f"skipped 1 bad rows; the first: {bad}:{line}: " in (run.path / "log.txt").read_text()
