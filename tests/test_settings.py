"""Settings: what is wrong is said at once, and what was written is read back unchanged."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import typing
from typing import Any

import pytest

from tercet.errors import ConfigError
from tercet.evaluation.config import EvalConfig, PromptConfig, WinRateConfig
from tercet.microworld.stage import AnnotateConfig
from tercet.model.config import ModelConfig
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import GRPOConfig, PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.training.settings import Settings, TrainSettings, from_json, option_name, shares

REQUIRED: dict[type[Settings], dict[str, Any]] = {
    PretrainConfig: {"data": ("a.txt", "b/*.jsonl"), "tokenizer": "tok"},
    SFTConfig: {"model": "runs/base", "data": ("c.jsonl",)},
    AnnotateConfig: {"model": "runs/sft", "questions": ("t.jsonl",)},
    RewardConfig: {"model": "runs/sft", "data": ("r.jsonl",)},
    PPOConfig: {"model": "runs/sft", "reward": ("runs/rm",), "prompts": ("p.jsonl",), "pretrain_data": ("a.txt",)},
    EvalConfig: {"models": ("runs/a", "runs/b")},
    WinRateConfig: {"models": ("runs/a", "runs/b"), "questions": ("t.jsonl",)},
    PromptConfig: {"model": "runs/base", "questions": ("t.jsonl",), "examples": ("e.jsonl",)},
}
CASES = list(REQUIRED.items())


def changed(config: Settings) -> dict[str, Any]:
    """The config's values, every one that can be changed by itself at another value than its default."""
    values = config.to_json()
    for field in dataclasses.fields(config):
        old = values[field.name]
        if field.metadata["choices"]:
            values[field.name] = next(c for c in field.metadata["choices"] if c != old)
        elif isinstance(old, bool):
            values[field.name] = not old
        elif isinstance(old, int):
            values[field.name] = old * 4 or 7
        elif isinstance(old, float):
            values[field.name] = old / 2 + 0.0625
        elif field.name in ("mixture", "pretrain_mixture"):
            values[field.name] = ("code=0.25", "a=b=0.75")
        elif field.name == "vary":
            values[field.name] = ("labels", "order")
        elif field.name == "lora_targets":
            values[field.name] = old[::-2]
        elif field.name == "scorer":
            values[field.name] = (*old, "numeric:0.5", r"regex:é\d")
        elif isinstance(old, tuple):
            values[field.name] = (*old, 3) if field.name == "shots" else (*old, "x y", "é")
        elif field.name == "template":
            values[field.name] = "{input} -> {output}"
        else:
            values[field.name] = old + "/new"
    return values


@pytest.mark.parametrize(("kind", "required"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_settings_survive_json(kind: type[Settings], required: dict[str, Any]) -> None:
    for config in (kind(**required), kind(**changed(kind(**required)))):
        text = json.dumps(config.to_json())
        again = from_json(kind, json.loads(text), "config.json")
        assert again == config
        assert type(again) is kind
        assert json.dumps(again.to_json()) == text
        assert set(config.to_json()) == {f.name for f in dataclasses.fields(kind)}
    assert all(old != new for old, new in zip(kind(**required).to_json().values(), config.to_json().values()))


@pytest.mark.parametrize(("kind", "required"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_every_setting_is_explained_and_frozen(kind: type[Settings], required: dict[str, Any]) -> None:
    config = kind(**required)
    for field in dataclasses.fields(kind):
        assert len(field.metadata["help"]) > 3, field.name
        if isinstance(getattr(config, field.name), (int, float)) and not isinstance(getattr(config, field.name), bool):
            assert field.metadata["minimum"] is not None or field.name == "missing_eos_score", field.name
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(("kind", "required"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_what_is_required_is_missed(kind: type[Settings], required: dict[str, Any]) -> None:
    for name in (f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING):
        with pytest.raises(ConfigError, match=rf"my\.json: .*{name}"):
            from_json(kind, {k: v for k, v in required.items() if k != name}, "my.json")


@pytest.mark.parametrize(("kind", "required"), CASES, ids=lambda x: getattr(x, "__name__", ""))
def test_every_bound_and_choice_is_checked(kind: type[Settings], required: dict[str, Any]) -> None:
    for field in dataclasses.fields(kind):
        minimum, choices = field.metadata["minimum"], field.metadata["choices"]
        if minimum is not None:
            low = minimum - 1
            value = int(low) if typing.get_type_hints(kind)[field.name] is int else float(low)
            with pytest.raises(ConfigError, match=rf"{option_name(field)} is {value!r}; it must be at least"):
                kind(**{**required, field.name: value})
        if choices is not None:
            with pytest.raises(ConfigError, match=rf"{option_name(field)} is 'x'; wanted one of {choices[0]}"):
                kind(**{**required, field.name: "x"})


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (PretrainConfig, "precision"), (SFTConfig, "long_conversations"), (PPOConfig, "critic"), (DPOConfig, "loss"),
        (GRPOConfig, "method"), (GRPOConfig, "kl"),
    ],
)  # fmt: skip
def test_a_word_that_is_none_of_the_list_is_refused(kind: type[Settings], name: str) -> None:
    """The lists are named here, so that a setting cannot lose its own unnoticed."""
    required = REQUIRED.get(kind, {"model": "m", "data": ("d",)} if kind is DPOConfig else REQUIRED[PPOConfig])
    with pytest.raises(ConfigError, match=rf"--{name.replace('_', '-')} is 'x'; wanted one of"):
        kind(**{**required, name: "x"})


def test_an_unknown_setting_is_named_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError,
        match=r"run/config\.json: unknown setting 'batch_sise'; did you mean 'batch_size'\?; known are steps",
    ):
        from_json(TrainSettings, {"batch_sise": 3}, "run/config.json")
    with pytest.raises(ConfigError, match=r"unknown setting 'qqqqqq'; known are"):
        from_json(TrainSettings, {"qqqqqq": 3}, "x")
    with pytest.raises(ConfigError, match=r"did you mean 'truncate'\?"):
        SFTConfig(**REQUIRED[SFTConfig], long_conversations="truncated")


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"steps": 10.0}, r"steps is 10\.0; wanted int"),
        ({"steps": "10"}, "steps is '10'; wanted int"),
        ({"steps": True}, "steps is True; wanted int"),
        ({"steps": None}, "steps is None; wanted int"),
        ({"lr": "1e-3"}, "lr is '1e-3'; wanted float"),
        ({"lr": True}, "lr is True; wanted float"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"skip_bad_rows": 1}, "skip-bad-rows is 1; wanted bool"),
        ({"model": 3}, "model is 3; wanted str"),
        ({"data": (1, 2)}, r"data is \(1, 2\); wanted tuple"),
        ({"data": ["c.jsonl"]}, "data is .*; wanted tuple"),
        ({"cooldown": 1.5}, r"cooldown is 1\.5; it must be at most 1"),
    ],
)
def test_types_are_checked(settings: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ConfigError, match="^--" + wanted):
        SFTConfig(**{**REQUIRED[SFTConfig], **settings})


def test_whole_numbers_are_fine_where_a_float_is_wanted() -> None:
    assert SFTConfig(**REQUIRED[SFTConfig], lr=1, cooldown=0).lr == 1


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (
            PPOConfig,
            {"pretrain_data": ()},
            "--gamma is 1.0, but there is no pretraining text; name it with --pretrain-data, or set --gamma 0",
        ),
        (
            PPOConfig,
            {"batch_size": 10, "minibatches": 4},
            r"--batch-size \(10\) must be a multiple of --minibatches \(4\)",
        ),
        (PPOConfig, {"pretrain_mixture": ("code",)}, "--pretrain-mixture has 'code'"),
        (PretrainConfig, {"mixture": ("code=lots",)}, "--mixture has 'code=lots'; wanted name=share"),
        (PromptConfig, {"template": "{output} is what {input} says"}, "template"),
        (PromptConfig, {"template": "Q: {output}"}, "template"),
        (PromptConfig, {"shots": ()}, "shots"),
        (PromptConfig, {"shots": (1, -1)}, "shots"),
        (PromptConfig, {"examples": ()}, "no examples"),
    ],
)
def test_settings_that_contradict_each_other(kind: type[Settings], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**{**REQUIRED[kind], **settings})
    assert PPOConfig(model="m", reward=("r",), prompts=("p",), gamma=0.0).pretrain_data == ()
    assert PromptConfig(model="m", questions=("t",), shots=(0,)).examples == ()


def test_one_name_may_stand_without_its_list() -> None:
    assert SFTConfig(model="m", data="c.jsonl").data == ("c.jsonl",)  # type: ignore[arg-type]
    assert from_json(SFTConfig, {"model": "m", "data": "c.jsonl"}, "x").data == ("c.jsonl",)


def test_shares() -> None:
    assert shares((), "x") is None
    assert shares(("code=0.3", "text=0.7", "a=b=2"), "x") == {"code": 0.3, "text": 0.7, "a=b": 2.0}
    for wrong in ("=0.3", "code=", "code", "", "code=0,3"):
        with pytest.raises(ConfigError, match="x has"):
            shares((wrong,), "x")


def test_a_model_shape_survives_json(shape: ModelConfig) -> None:
    values = json.loads(json.dumps(dataclasses.asdict(shape)))
    assert from_json(ModelConfig, values, "model.json") == shape
    with pytest.raises(ConfigError, match=r"model\.json: unknown setting 'num_layer'; did you mean 'num_layers'\?"):
        from_json(ModelConfig, {**values, "num_layer": 2}, "model.json")
    with pytest.raises(ConfigError, match=r"model\.json: .*vocab-size"):
        from_json(ModelConfig, {}, "model.json")


def test_settings_do_not_load_torch() -> None:
    """So that `tercet --help` answers at once."""
    modules = {kind.__module__ for kind in REQUIRED} | {"tercet", "tercet.model.config"}
    code = f"import sys, {', '.join(sorted(modules))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_settings_of_older_versions_are_read_by_their_new_names() -> None:
    """`tercet sft --config` of a run that was made before the names changed."""
    old = {"model": "runs/base", "data": ["c.jsonl"], "tasks": ["q.jsonl"], "decay": 0.5}
    config = from_json(SFTConfig, old, "config.json")
    assert (config.questions, config.cooldown) == (("q.jsonl",), 0.5)
    with pytest.raises(ConfigError, match="unknown setting 'tasks'"):
        from_json(PretrainConfig, {"data": ["a"], "tokenizer": "t", "tasks": []}, "config.json")
