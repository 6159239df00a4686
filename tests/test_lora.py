"""LoRA: starts as no change, trains only the adapters, merges into the same model, and is kept in PEFT's format."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tercet
from helpers import At, World, assert_same_run, press_ctrl_c, tensors, write_world
from tercet import merge as merge_run
from tercet.cli.main import main
from tercet.errors import CheckpointError, ConfigError
from tercet.model.config import LORA_TARGETS, LoRAConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.lora import adapters, apply_lora, load_adapter, merge, save_adapter
from tercet.model.ops.cross_entropy import linear_cross_entropy
from tercet.model.transformer import Transformer
from tercet.posttraining.merge_stage import MergeConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.load import adapt, load_language_model, load_reward_model, write_adapter
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch
from tercet.training.run import Interrupted, Run
from tercet.training.stage import language_model_run, reward_model_run

Make = Callable[..., Transformer]
RANK4 = LoRAConfig(4, alpha=6.0)
LAYERS = {"q_proj": "self_attn", "k_proj": "self_attn", "v_proj": "self_attn", "o_proj": "self_attn"} | dict.fromkeys(
    ("gate_proj", "up_proj", "down_proj"), "mlp"
)


def batch(seed: int = 0) -> Batch:
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 300, (3, 21), generator=g)
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.rand(3, 20, generator=g), None)


def fill(model: torch.nn.Module, seed: int = 7) -> None:
    """Adapters as after training: B is far from 0."""
    g = torch.Generator().manual_seed(seed)
    for layer in adapters(model).values():
        with torch.no_grad():
            layer.lora_B.weight.copy_(0.2 * torch.randn(layer.lora_B.weight.shape, generator=g))


# -- what the adapters are --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "down_proj")])
def test_the_model_starts_unchanged_and_only_the_named_layers_are_wrapped(
    make_model: Make, targets: tuple[str, ...]
) -> None:
    model, tokens = make_model(1), batch().tokens
    before = model(tokens)
    apply_lora(model, LoRAConfig(4, targets=targets), seed=0)
    assert torch.equal(model(tokens), before)
    assert set(adapters(model)) == {f"model.layers.{i}.{LAYERS[name]}.{name}" for i in (0, 1) for name in targets}
    for layer in adapters(model).values():
        assert not layer.lora_B.weight.any()
        a = layer.lora_A.weight.detach()
        assert a.shape == (4, layer.weight.shape[1])
        assert float(a.abs().max()) <= layer.weight.shape[1] ** -0.5 < 1.2 * float(a.abs().max())
        assert abs(float(a.mean())) < 0.3 * float(a.std())


def test_the_start_depends_on_the_seed_alone(make_model: Make) -> None:
    models = [make_model(1) for _ in range(3)]
    for noise, (model, seed) in enumerate(zip(models, (5, 5, 6))):
        torch.manual_seed(noise)
        apply_lora(model, RANK4, seed)
    first, again, other = (torch.cat([x.lora_A.weight.flatten() for x in adapters(m).values()]) for m in models)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    parts = [x.lora_A.weight for x in adapters(models[0]).values() if x.lora_A.weight.shape == (4, 32)]
    assert len({p.flatten()[0].item() for p in parts}) == len(parts), "every layer has numbers of its own"


def test_outputs_are_those_of_the_formula(make_model: Make) -> None:
    """They equal those of a plain model with weights W + alpha / rank · B A, by Python loops (Hu et al. 2021, 4.1)."""
    model, plain = make_model(1, torch.float64), make_model(1, torch.float64)
    apply_lora(model, RANK4, seed=3)
    fill(model)
    for name, layer in adapters(model).items():
        a, b = layer.lora_A.weight.detach().numpy(), layer.lora_B.weight.detach().numpy()
        update = np.zeros((b.shape[0], a.shape[1]))
        for r in range(4):
            update += np.outer(b[:, r], a[r])
        with torch.no_grad():
            plain.get_submodule(name).weight += torch.from_numpy(6.0 / 4 * update)
    tokens = batch().tokens
    torch.testing.assert_close(model(tokens), plain(tokens), atol=1e-10, rtol=0)
    assert (plain(tokens) - make_model(1, torch.float64)(tokens)).abs().max() > 0.1


def test_only_the_adapters_get_gradients_and_those_of_the_formula(make_model: Make) -> None:
    """dA = alpha / rank · Bᵀ dW and dB = alpha / rank · dW Aᵀ, with dW the gradient of the plain model's weight."""
    model, plain = make_model(1, torch.float64), make_model(1, torch.float64)
    apply_lora(model, RANK4, seed=3)
    fill(model)
    with torch.no_grad():
        for name, layer in adapters(model).items():
            plain.get_submodule(name).weight += 1.5 * layer.lora_B.weight @ layer.lora_A.weight
    for one in (model, plain):
        next_token(one, batch())[0].backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == {name for name, p in model.named_parameters() if p.requires_grad}
    assert got == {f"{n}.lora_{x}.weight" for n in adapters(model) for x in "AB"}
    for name, layer in adapters(model).items():
        d_weight = plain.get_submodule(name).weight.grad
        a, b = layer.lora_A.weight, layer.lora_B.weight
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad, 1.5 * b.detach().T @ d_weight, atol=1e-10, rtol=0)
        torch.testing.assert_close(b.grad, 1.5 * d_weight @ a.detach().T, atol=1e-10, rtol=0)
        assert a.grad.abs().max() > 1e-3


def test_a_frozen_output_layer_costs_no_gradient_and_changes_none(make_model: Make) -> None:
    """The embeddings are the output layer too: frozen, they get no gradient, and the hidden states the same one."""
    hidden = torch.randn(7, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    targets, weights, found = torch.arange(7), torch.linspace(0.1, 1, 7), []
    for frozen in (False, True):
        matrix = make_model(1).output_weight.requires_grad_(not frozen)
        linear_cross_entropy(hidden, matrix, targets, weights).backward()
        assert (matrix.grad is None) == frozen
        found.append(hidden.grad)
        hidden.grad = None
    assert found[0] is not None
    assert torch.equal(*found)


@pytest.mark.parametrize("muon_lr", [0.0, 0.01])
def test_a_step_changes_the_adapters_alone(make_model: Make, muon_lr: float) -> None:
    """By AdamW, whatever Muon's rate: its first step moves every element of B by lr, and A not at all (B is 0)."""
    model = make_model(1)
    apply_lora(model, RANK4, seed=0)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    learner = Learner(model, OptimizerConfig(lr=0.01, muon_lr=muon_lr))
    assert sum(t.numel() for t in learner.optimizer.state.values()) == 2 * sum(
        p.numel() for n, p in model.named_parameters() if ".lora_" in n
    )
    learner.forward_backward([batch()], next_token)
    learner.optim_step(1.0)
    for name, tensor in model.state_dict().items():
        moved = (tensor - before[name]).abs()
        assert float(moved.median()) == pytest.approx(0.01 if "lora_B" in name else 0.0, rel=1e-2), name
        assert "lora_B" in name or not moved.any()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_merging_gives_the_same_plain_model(make_model: Make, dtype: torch.dtype, tolerance: float) -> None:
    model, tokens = make_model(1, dtype), batch().tokens
    names = set(model.state_dict())
    apply_lora(model, RANK4, seed=3)
    fill(model)
    wrapped = model(tokens).detach()
    merge(model)
    torch.testing.assert_close(model(tokens), wrapped, atol=tolerance, rtol=0)
    assert set(model.state_dict()) == names
    assert not adapters(model)
    assert all(p.requires_grad for p in model.parameters())
    make_model(2, dtype).load_state_dict(model.state_dict())


def test_merging_a_model_of_ordinary_weights_keeps_its_logits_to_a_millionth(shape: Any) -> None:
    model, tokens = Transformer(shape, seed=1), batch().tokens
    apply_lora(model, LoRAConfig(8), seed=3)
    g = torch.Generator().manual_seed(1)
    for layer in adapters(model).values():
        with torch.no_grad():
            layer.lora_B.weight.copy_(0.02 * torch.randn(layer.lora_B.weight.shape, generator=g))
    plain, wrapped = Transformer(shape, seed=1)(tokens), model(tokens)
    merge(model)
    assert (wrapped - plain).abs().max() > 1e-3
    torch.testing.assert_close(model(tokens), wrapped, atol=1e-6, rtol=0)


def test_a_scalar_model_keeps_its_head_trained(make_model: Make) -> None:
    model, tokens = ValueHeadModel(make_model(1), seed=2), batch().tokens
    model.score.bias.requires_grad_(False)  # as the reward stage has it
    before = model(tokens)
    apply_lora(model, RANK4, seed=0)
    assert torch.equal(model(tokens), before)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n for n in trained if ".lora_" not in n} == {"score.weight"}
    assert len(trained) == 1 + 2 * 2 * 7
    fill(model)
    wrapped = model(tokens).detach()
    merge(model)
    torch.testing.assert_close(model(tokens), wrapped, atol=1e-5, rtol=0)


def test_a_model_is_wrapped_once(make_model: Make) -> None:
    model = make_model(1)
    apply_lora(model, RANK4, seed=0)
    with pytest.raises(ConfigError, match="already has LoRA adapters"):
        apply_lora(model, RANK4, seed=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, r"--lora-rank\) is 0; it must be at least 1"),
        ({"rank": 4, "alpha": 0.0}, r"--lora-alpha\) is 0; it must be above 0"),
        ({"rank": 4, "targets": ("q_proj", "w_proj")}, r"--lora-targets\) are q_proj, w_proj; wanted some of q_"),
        ({"rank": 4, "targets": ()}, r"--lora-targets\) are empty"),
        ({"rank": 4, "targets": ("q_proj", "q_proj")}, "each once"),
    ],
)  # fmt: skip
def test_impossible_adapters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LoRAConfig(**settings)
    if settings["rank"]:
        renamed = {f"lora_{key}": value for key, value in settings.items()}
        with pytest.raises(ConfigError, match=message):
            SFTConfig(model="m", data=("d",), **renamed)


def test_without_a_rank_nothing_is_wrapped(make_model: Make, tmp_path: Path) -> None:
    model = make_model(1)
    kinds = [type(m) for m in model.modules()]
    assert adapt(model, SFTConfig(model="m", data=("d",))) is model
    assert [type(m) for m in model.modules()] == kinds
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="no LoRA adapters to save"):
        save_adapter(model, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_a_stage_draws_its_adapters_by_its_seed(make_model: Make) -> None:
    drawn = []
    for seed in (5, 5, 6):
        model = adapt(make_model(1), SFTConfig(model="m", data=("d",), seed=seed, lora_rank=4, lora_alpha=8.0))
        layers = adapters(model).values()
        assert {(x.config.rank, x.config.alpha, x.config.targets) for x in layers} == {(4, 8.0, LORA_TARGETS)}
        drawn.append(torch.cat([x.lora_A.weight.detach().flatten() for x in layers]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


# -- PEFT's format ----------------------------------------------------------------------------------------------------


def saved(make_model: Make, folder: Path, scalar: bool = False) -> Transformer | ValueHeadModel:
    """A model with adapters that were written to `folder`."""
    model: Any = make_model(1)
    if scalar:
        model = ValueHeadModel(model, seed=2)
        with torch.no_grad():
            model.gain.fill_(2.5)
            model.bias.fill_(-0.7)
            model.score.bias.fill_(0.3)
    apply_lora(model, LoRAConfig(4, 6.0, ("q_proj", "up_proj")), seed=3)
    fill(model)
    save_adapter(model, folder)
    return model


def test_an_adapter_folder_is_as_peft_writes_it(make_model: Make, tmp_path: Path) -> None:
    model = saved(make_model, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 6.0, "bias": "none", "lora_dropout": 0.0,
        "target_modules": ["q_proj", "up_proj"], "modules_to_save": None, "inference_mode": True,
    }  # fmt: skip
    assert {key: config[key] for key in wanted} == wanted
    found = load_file(tmp_path / "adapter_model.safetensors")
    names = [f"model.layers.{i}.{at}" for i in (0, 1) for at in ("self_attn.q_proj", "mlp.up_proj")]
    assert set(found) == {f"base_model.model.{name}.lora_{x}.weight" for name in names for x in "AB"}
    for name, layer in adapters(model).items():
        assert torch.equal(found[f"base_model.model.{name}.lora_A.weight"], layer.lora_A.weight)
        assert torch.equal(found[f"base_model.model.{name}.lora_B.weight"], layer.lora_B.weight)


@pytest.mark.parametrize("scalar", [False, True])
def test_an_adapter_that_was_saved_is_loaded_onto_the_base(make_model: Make, tmp_path: Path, scalar: bool) -> None:
    model, tokens = saved(make_model, tmp_path, scalar), batch().tokens
    again: Any = ValueHeadModel(make_model(1), seed=9) if scalar else make_model(1)
    if scalar:
        torch.nn.init.constant_(again.score.bias, 0.9)
    load_adapter(again, tmp_path)
    torch.testing.assert_close(again(tokens), model(tokens), atol=1e-5 if scalar else 0, rtol=0)
    assert {n for n, p in again.named_parameters() if ".lora_" in n} == {
        n for n, p in model.named_parameters() if ".lora_" in n
    }


def change_json(folder: Path, **fields: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"peft_type": "IA3"}, ConfigError, "wanted plain LoRA, found peft_type IA3"),
        ({"use_dora": True}, ConfigError, "found use_dora"),
        ({"use_rslora": True, "rank_pattern": {"q_proj": 8}}, ConfigError, "found use_rslora, rank_pattern"),
        ({"bias": "all"}, ConfigError, "bias all"),
        ({"r": None}, CheckpointError, "wanted numbers for r and lora_alpha"),
        ({"r": 5}, CheckpointError, "an adapter of another model: .*lora_A"),
    ],
)
def test_a_folder_that_asks_for_something_else_is_refused(
    make_model: Make, tmp_path: Path, fields: dict[str, Any], kind: type[Exception], message: str
) -> None:
    saved(make_model, tmp_path)
    change_json(tmp_path, **fields)
    with pytest.raises(kind, match=message):
        load_adapter(make_model(1), tmp_path)


def test_a_damaged_folder_and_one_for_another_model_are_refused(make_model: Make, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no adapter in PEFT's format"):
        load_adapter(make_model(1), tmp_path)
    saved(make_model, tmp_path)
    with pytest.raises(CheckpointError, match="of another model"):
        load_adapter(make_model(1, hidden_size=48), tmp_path)
    with pytest.raises(CheckpointError, match="of another model"):
        load_adapter(ValueHeadModel(make_model(1)), tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    found = load_file(file)
    save_file({name: t for name, t in found.items() if "layers.1" not in name}, file)
    with pytest.raises(CheckpointError, match=r"of another model: base_model\.model\.model\.layers\.1"):
        load_adapter(make_model(1), tmp_path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="no adapter in PEFT's format"):
        load_adapter(make_model(1), tmp_path)


# -- as settings of a stage -------------------------------------------------------------------------------------------

LORA = {"lora_rank": 4, "lora_alpha": 8.0, "lora_targets": ("q_proj", "v_proj", "down_proj"), "lr": 1e-2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def tuned(world: World) -> Run:
    """A finished SFT run with adapters."""
    return world.run("sft", "lora", **LORA)


def test_a_run_with_adapters_keeps_its_parents_weights_and_writes_them_apart(world: World, tuned: Run) -> None:
    base, own = Run(world.path("base")).weights(), tuned.weights()
    assert {name for name in own if ".lora_" not in name} == set(base)
    assert all(torch.equal(own[name], base[name]) for name in base)
    assert sum(".lora_B" in name and bool(own[name].any()) for name in own) == 2 * 3
    apart = load_file(tuned.path / "adapter" / "adapter_model.safetensors")
    assert apart.keys() == {f"base_model.model.{name}" for name in own if ".lora_" in name}
    assert all(torch.equal(t, own[name.removeprefix("base_model.model.")]) for name, t in apart.items())
    losses = [row["loss"] for row in tuned.metrics("loss")]
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    assert not (Run(world.path("base")).path / "adapter").exists()


def logits(model: Transformer) -> Tensor:
    with torch.no_grad():
        return model(torch.arange(40).reshape(2, 20))


def test_what_is_loaded_from_such_a_run_is_a_plain_model(world: World, tuned: Run) -> None:
    plain, base = load_language_model(tuned), load_language_model(Run(world.path("base")))
    assert not adapters(plain)
    assert plain.state_dict().keys() == base.state_dict().keys()
    load_adapter(base, tuned.path / "adapter")
    torch.testing.assert_close(logits(plain), logits(base), atol=1e-5, rtol=0)
    assert (logits(plain) - logits(load_language_model(Run(world.path("base"))))).abs().max() > 1e-2


def test_a_run_with_adapters_that_was_stopped_ends_with_the_same_bits(world: World, tuned: Run) -> None:
    with pytest.raises(Interrupted):
        world.run("sft", "stopped", progress=At(7, press_ctrl_c), **LORA)
    out = world.folder / "stopped"
    assert not (out / "adapter").exists()
    tercet.resume(out)
    assert_same_run(out, tuned.path)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (out / "adapter" / name).read_bytes() == (tuned.path / "adapter" / name).read_bytes()


def test_a_child_starts_from_the_merged_model(world: World, tuned: Run) -> None:
    child = world.run("sft", "child", model=str(tuned.path), steps=1, lr=0.0, muon_lr=0.0, questions=())
    merged = load_language_model(tuned).state_dict()
    assert all(torch.equal(t, merged[name]) for name, t in child.weights().items())
    assert child.weights().keys() == merged.keys()


def test_a_reward_model_with_adapters_is_loaded_plain(world: World, make_model: Make) -> None:
    """By hand, as the reward stage does it: adapters on the trunk, a head, bias and gain in the checkpoint."""
    world.make_parents("reward")
    config = world.config("reward", **LORA)
    with Run.start("reward", config, world.folder / "judged", parents={}) as run:
        model = adapt(ValueHeadModel(load_language_model(Run(world.path("tuned"))), seed=1), config)
        fill(model)
        model.gain.fill_(3.0)
        Tokenizer.load(world.path("tuned")).save(run.path / "tokenizer.json")
        run.save_model_config(model.config)
        run.save_checkpoint(1, {"model": model.state_dict()}, {}, 1)
        write_adapter(model, run)
    tokens = torch.arange(40).reshape(2, 20)
    plain = load_reward_model(reward_model_run(str(run.path)))
    assert not adapters(plain)
    torch.testing.assert_close(plain(tokens), model(tokens), atol=1e-4, rtol=0)
    assert json.loads((run.path / "adapter" / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
    merged = merge_run(MergeConfig(model=str(run.path)), world.folder / "judged-merged")
    assert torch.equal(load_reward_model(reward_model_run(str(merged.path)))(tokens), plain(tokens))
    with pytest.raises(ConfigError, match="is a reward model; wanted a language model"):
        language_model_run(str(merged.path))


def test_a_run_whose_checkpoint_lacks_its_adapters_is_refused(world: World, tuned: Run) -> None:
    run = Run(tuned.path)
    run.config = run.config | {"lora_rank": 5}
    with pytest.raises(CheckpointError, match=r"do not fit the model that model\.json describes"):
        load_language_model(run)


# -- tercet merge -----------------------------------------------------------------------------------------------------


def type_in(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["tercet", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_merge_makes_a_plain_run_with_its_lineage(
    world: World, tuned: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = world.folder / "merged"
    assert type_in(monkeypatch, "merge", str(tuned.path), "--out", str(out)) == 0
    assert str(out) in capsys.readouterr().out
    run = language_model_run(str(out))
    assert (run.manifest["verb"], run.manifest["merges"], run.manifest["status"]) == ("merge", "sft", "finished")
    assert run.manifest["parents"]["model"]["sha256"] == tuned.weights_hash()
    assert run.last_checkpoint().name == tuned.last_checkpoint().name
    assert not any(".lora_" in name for name in tensors(out))
    assert torch.equal(logits(load_language_model(run)), logits(load_language_model(tuned)))
    child = world.run("sft", "child-of-merged", model=str(out), steps=1, questions=())
    assert child.manifest["parents"]["model"]["sha256"] == run.weights_hash()
    assert type_in(monkeypatch, "show", str(child.path)) == 0
    assert type_in(monkeypatch, "show", str(out)) == 0
    assert f"repeat with: tercet merge {tuned.path} --out {out}" in capsys.readouterr().out
    assert type_in(monkeypatch, "report", str(child.path), "--out", str(world.folder / "merged.html")) == 0


def test_a_run_without_adapters_is_not_merged(world: World, tuned: Run, tmp_path: Path) -> None:
    plain = dataclasses.replace(MergeConfig(model=""), model=world.path("base"))
    with pytest.raises(ConfigError, match="has no adapters to merge"):
        merge_run(plain, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []  # a corrected command may use the folder
    with pytest.raises(ConfigError, match="exists and is not empty"):
        merge_run(MergeConfig(model=str(tuned.path)), world.folder / "lora")
