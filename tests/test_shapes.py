"""Shapes other than Qwen3's against plain loops: LayerNorm, biases, learned positions, GELU, an untied output layer."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from helpers import World, write_world
from tercet.diagnostics.attention import attention_patterns
from tercet.errors import ConfigError, ContextError
from tercet.interop.huggingface import export_model, model_config
from tercet.model.attention import Dense, KVCache
from tercet.model.config import LoRAConfig, ModelConfig
from tercet.model.lora import adapters, apply_lora, merge
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.run import Run

Make = Callable[..., Transformer]
Array = NDArray[np.float64]
GPT2 = {
    "norm": "layernorm", "positions": "learned", "mlp": "gelu", "attention_bias": "qkvo", "mlp_bias": True,
    "qk_norm": False, "num_kv_heads": 2,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "gpt2": GPT2,
    "qwen2": {"attention_bias": "qkv", "qk_norm": False},
    "untied": {"tie_embeddings": False, "qk_norm": False},
    "layernorm": {"norm": "layernorm"},
    "all-biases": {"attention_bias": "qkvo", "mlp_bias": True},
    "learned": {"positions": "learned", "head_dim": 15},
    "gelu": {"mlp": "gelu"},
    "gpt2-untied": {**GPT2, "tie_embeddings": False},
}


def tokens_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(1))


# -- the reference ----------------------------------------------------------------------------------------------------


def naive_logits(model: Transformer, tokens: list[int]) -> Array:
    """One token at a time, in float64."""
    c = model.config
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}

    def affine(name: str, x: Array) -> Array:
        return weights[f"{name}.weight"] @ x + weights.get(f"{name}.bias", 0.0)

    def norm(name: str, x: Array, layernorm: bool) -> Array:
        if layernorm:
            variance = float(((x - x.mean()) ** 2).mean())
            return (x - x.mean()) / math.sqrt(variance + c.norm_eps) * weights[f"{name}.weight"] + weights[
                f"{name}.bias"
            ]
        return x / math.sqrt(float((x**2).mean()) + c.norm_eps) * weights[f"{name}.weight"]

    def turned(x: Array, position: int) -> Array:
        if c.positions == "learned":
            return x
        half, out = c.head_dim // 2, x.copy()
        for k in range(half):
            angle = position * c.rope_theta ** (-2 * k / c.head_dim)
            out[k] = x[k] * math.cos(angle) - x[k + half] * math.sin(angle)
            out[k + half] = x[k + half] * math.cos(angle) + x[k] * math.sin(angle)
        return out

    def mlp(name: str, x: Array) -> Array:
        up = affine(f"{name}.up_proj", x)
        if c.mlp == "swiglu":
            gate = affine(f"{name}.gate_proj", x)
            return affine(f"{name}.down_proj", gate / (1 + np.exp(-gate)) * up)
        inner = math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)
        return affine(f"{name}.down_proj", 0.5 * up * (1 + np.tanh(inner)))

    stream = [weights["model.embed_tokens.weight"][t].copy() for t in tokens]
    if c.positions == "learned":
        stream = [x + weights["model.embed_positions.weight"][t] for t, x in enumerate(stream)]
    for number in range(c.num_layers):
        at, layernorm = f"model.layers.{number}", c.norm == "layernorm"
        q, k, v = [], [], []
        for position, x in enumerate(stream):
            x = norm(f"{at}.input_layernorm", x, layernorm)
            rows = [affine(f"{at}.self_attn.{p}_proj", x).reshape(-1, c.head_dim) for p in "qkv"]
            for found, heads, name in ((q, rows[0], "q"), (k, rows[1], "k")):
                normal = [norm(f"{at}.self_attn.{name}_norm", h, False) if c.qk_norm else h for h in heads]
                found.append([turned(h, position) for h in normal])
            v.append(rows[2])
        for t in range(len(tokens)):
            heads = []
            for head in range(c.num_heads):
                shared = head * c.num_kv_heads // c.num_heads
                scores = np.array([q[t][head] @ k[s][shared] / math.sqrt(c.head_dim) for s in range(t + 1)])
                share = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
                heads.append(sum(share[s] * v[s][shared] for s in range(t + 1)))
            stream[t] = stream[t] + affine(f"{at}.self_attn.o_proj", np.concatenate(heads))
        stream = [x + mlp(f"{at}.mlp", norm(f"{at}.post_attention_layernorm", x, layernorm)) for x in stream]
    head = weights["model.embed_tokens.weight" if c.tie_embeddings else "lm_head.weight"]
    return np.stack([head @ norm("model.norm", x, c.norm == "layernorm") for x in stream])


@pytest.mark.parametrize("name", SHAPES)
def test_logits_equal_a_naive_forward_pass(make_model: Make, name: str) -> None:
    model = make_model(1, torch.float64, **SHAPES[name])
    (tokens,) = tokens_of(1, 12).tolist()
    wanted = naive_logits(model, tokens)
    assert wanted.std() > 0.5
    np.testing.assert_allclose(model(torch.tensor([tokens]))[0].detach().numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(model.float()(torch.tensor([tokens]))[0].detach().numpy(), wanted, atol=2e-4)


@pytest.mark.parametrize("name", SHAPES)
def test_the_formulas_count_every_parameter_and_product(make_model: Make, name: str) -> None:
    model = make_model(0, **SHAPES[name])
    sizes = {n: p.numel() for n, p in model.named_parameters()}
    c, total = model.config, sum(sizes.values())
    outside = sum(n for name, n in sizes.items() if "embed" in name or "lm_head" in name)
    assert c.parameters() == total
    assert c.parameters(embeddings=False) == total - outside
    attention = c.num_layers * c.num_heads * c.head_dim * c.context_length
    assert c.flops_per_token() == 6 * (total - outside + c.vocab_size * c.hidden_size + attention)


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "untied"])
def test_a_cache_packing_and_positions_change_nothing(make_model: Make, name: str) -> None:
    model, tokens = make_model(2, torch.float64, **SHAPES[name]), tokens_of(2, 12)
    whole, cache = model.hidden(tokens), KVCache(model.config, 2, 12, model.output_weight)
    parts = [
        model.hidden(tokens[:, a:b], positions_BT=torch.arange(a, b)[None], cache=cache) for a, b in ((0, 7), (7, 12))
    ]
    torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-10, rtol=0)
    positions = torch.tensor([[*range(5), *range(7)]])
    packed = model.hidden(tokens[:1], torch.tensor([[0] * 5 + [1] * 7]), positions_BT=positions)[0]
    for a, b in ((0, 5), (5, 12)):
        torch.testing.assert_close(packed[a:b], model.hidden(tokens[:1, a:b])[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("name", ["qwen3", "gpt2"])
def test_embeddings_in_the_place_of_ids(make_model: Make, name: str) -> None:
    """The same hidden states as of the ids, gradients flow into them, and it is one of the two."""
    model, tokens = make_model(5, torch.float64, **SHAPES[name]), tokens_of(2, 9)
    segments, at = torch.tensor([[0] * 4 + [1] * 5] * 2), torch.tensor([2, 11])
    embeds = model.model.embed_tokens(tokens).detach().requires_grad_()
    for how in ({}, {"segments_BT": segments}, {"at": at}, {"positions_BT": torch.arange(9)[None] + 3}):
        assert torch.equal(model.hidden(inputs_embeds=embeds, **how), model.hidden(tokens, **how))  # type: ignore[arg-type]
    model.hidden(inputs_embeds=embeds)[0, 4].sum().backward()
    assert embeds.grad is not None
    assert embeds.grad[0].abs().amax(-1).ne(0).tolist() == [t <= 4 for t in range(9)]
    for both in ({}, {"tokens_BT": tokens, "inputs_embeds": embeds}):
        with pytest.raises(ValueError, match="one of the two"):
            model.hidden(**both)
    with pytest.raises(ContextError, match="65 tokens"):
        model.hidden(inputs_embeds=torch.zeros(1, 65, 32, dtype=torch.float64))


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_adapters_keep_biases(make_model: Make, name: str) -> None:
    """At the start nothing changes; trained and merged, the plain layers do the same, biases included."""
    model, tokens = make_model(3, torch.float64, **SHAPES[name]), tokens_of(2, 9)
    before, biases = model(tokens), {n: p.clone() for n, p in model.named_parameters() if n.endswith(".bias")}
    apply_lora(model, LoRAConfig(2), seed=1)
    assert torch.equal(model(tokens), before)
    assert len(adapters(model)) == 2 * (6 if name == "gpt2" else 7)
    assert all(not p.requires_grad for n, p in model.named_parameters() if n in biases)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B.weight.normal_(generator=torch.Generator().manual_seed(2))
    trained = model(tokens)
    assert (trained - before).abs().max() > 0.1
    merge(model)
    torch.testing.assert_close(model(tokens), trained, atol=1e-9, rtol=0)
    after = dict(model.named_parameters())
    assert biases
    assert all(torch.equal(after[n], bias) and after[n].requires_grad for n, bias in biases.items())


def test_adapters_on_layers_that_are_not_there_are_refused(make_model: Make) -> None:
    with pytest.raises(ConfigError, match=r"are gate_proj, but the model has no such layer"):
        apply_lora(make_model(**GPT2), LoRAConfig(2, targets=("gate_proj",)), seed=1)


def test_patterns_of_attention_are_those_of_the_model(make_model: Make) -> None:
    """With learned positions too: the last layer's patterns give its output."""
    model, tokens = make_model(4, torch.float64, **GPT2), tokens_of(1, 6)
    last: Any = model.model.layers[1]
    x, rope = model.with_positions(model.model.embed_tokens(tokens))
    x = model.model.layers[0](x, rope, Dense(causal=True), None, 0)
    _, _, v = last.self_attn.project(last.input_layernorm(x), rope)
    x = x + last.self_attn.o_proj((attention_patterns(model, tokens)[1] @ v).transpose(1, 2).flatten(2))
    x = x + last.mlp(last.post_attention_layernorm(x))
    torch.testing.assert_close(model.model.norm(x), model.hidden(tokens), atol=1e-10, rtol=0)


# -- names, starts, files ---------------------------------------------------------------------------------------------


def test_names_are_those_of_hugging_face_where_there_are_any(make_model: Make) -> None:
    names = set(make_model(**{**GPT2, "tie_embeddings": False}).state_dict())
    attention = {f"self_attn.{p}_proj.{kind}" for p in "qkvo" for kind in ("weight", "bias")}
    mlp = {f"mlp.{p}_proj.{kind}" for p in ("up", "down") for kind in ("weight", "bias")}
    norms = {f"{n}.{kind}" for n in ("input_layernorm", "post_attention_layernorm") for kind in ("weight", "bias")}
    wanted = {f"model.layers.{i}.{n}" for i in (0, 1) for n in attention | mlp | norms}
    assert names == wanted | {
        "model.embed_tokens.weight", "model.embed_positions.weight", "model.norm.weight", "model.norm.bias",
        "lm_head.weight",
    }  # fmt: skip


def test_a_start_depends_on_the_seed_alone_and_biases_are_0(shape: ModelConfig) -> None:
    config = dataclasses.replace(shape, **{**GPT2, "tie_embeddings": False})
    torch.manual_seed(1)
    first = Transformer(config, seed=5).state_dict()
    torch.manual_seed(2)
    again = Transformer(config, seed=5).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert all(not first[n].any() for n in first if n.endswith(".bias"))
    for name in ("lm_head", "model.embed_positions"):
        assert float(first[f"{name}.weight"].std()) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("name", ["attention_bias", "norm", "positions", "mlp"])
def test_an_unknown_name_is_refused(shape: ModelConfig, name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} is 'other'; it must be one of "):
        dataclasses.replace(shape, **{name: "other"})  # type: ignore[arg-type]


def test_model_json_of_old_runs_reads_back_and_new_keys_do_too(tmp_path: Path, shape: ModelConfig) -> None:
    run = Run.__new__(Run)  # a folder is all that reading model.json needs
    run.path = tmp_path
    run.save_model_config(shape)
    old = json.loads((tmp_path / "model.json").read_text())
    for name in ("tie_embeddings", "attention_bias", "mlp_bias", "norm", "positions", "mlp"):
        del old[name]
    (tmp_path / "model.json").write_text(json.dumps(old))
    assert run.model_config() == shape
    other = dataclasses.replace(shape, **GPT2)
    run.save_model_config(other)
    assert run.model_config() == other


# -- export -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("world"))
    made.run("pretrain", "base", steps=1)
    return made


@pytest.mark.parametrize("name", ["gpt2", "qwen2", "layernorm", "all-biases", "learned", "gelu"])
def test_a_shape_that_cannot_be_exported_is_refused(world: World, shape: ModelConfig, name: str) -> None:
    tokenizer = Tokenizer.load(world.path("base"))
    with pytest.raises(ConfigError, match=r"cannot be exported; wanted the architecture of Qwen3 or Llama"):
        model_config(dataclasses.replace(shape, **SHAPES[name]), tokenizer, "ForCausalLM")
    untied = model_config(dataclasses.replace(shape, **SHAPES["untied"]), tokenizer, "ForCausalLM")
    assert (untied["tie_word_embeddings"], untied["model_type"]) == (False, "llama")


def test_a_refused_export_leaves_no_folder(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(world.path("base"))
    model = Transformer(dataclasses.replace(run.model_config(), mlp_bias=True))
    monkeypatch.setattr("tercet.interop.huggingface.load_language_model", lambda run: model)
    with pytest.raises(ConfigError, match="mlp_bias True cannot be exported"):
        export_model(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
