"""The transformer against a reference in plain loops, and what must not change its outputs."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tercet.errors import ConfigError, ContextError
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.layers import rotate
from tercet.model.transformer import Transformer
from tercet.training.losses import next_token, next_token_batch
from tercet.training.packing import pack_whole

Make = Callable[..., Transformer]
Array = NDArray[np.float64]


def ids(count: int, seed: int = 0, vocab: int = 300) -> list[int]:
    return np.random.default_rng(seed).integers(0, vocab, count).tolist()


def flat_gradients(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


# -- the reference: Python loops in float64, one query at a time ------------------------------------------------------


def naive_rms(x: Array, gain: Array, eps: float) -> Array:
    return x / math.sqrt(float(np.mean(x**2)) + eps) * gain


def naive_rope(x: Array, position: int, theta: float) -> Array:
    """Dimension k and k + C/2 as one complex number, turned by position · theta^(−2k/C)."""
    half = len(x) // 2
    turned = [(x[k] + 1j * x[k + half]) * np.exp(1j * position * theta ** (-2 * k / len(x))) for k in range(half)]
    return np.array([z.real for z in turned] + [z.imag for z in turned])


def naive_logits(model: Transformer, tokens: Sequence[int]) -> Array:
    c = model.config
    w = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    embeddings = w["model.embed_tokens.weight"]
    stream = [embeddings[t].copy() for t in tokens]
    for layer in range(c.num_layers):
        at = f"model.layers.{layer}."
        normed = [naive_rms(x, w[at + "input_layernorm.weight"], c.norm_eps) for x in stream]
        queries, keys, values = [], [], []
        for position, x in enumerate(normed):
            q = (w[at + "self_attn.q_proj.weight"] @ x).reshape(c.num_heads, c.head_dim)
            k = (w[at + "self_attn.k_proj.weight"] @ x).reshape(c.num_kv_heads, c.head_dim)
            gain_q, gain_k = w[at + "self_attn.q_norm.weight"], w[at + "self_attn.k_norm.weight"]
            queries.append([naive_rope(naive_rms(h, gain_q, c.norm_eps), position, c.rope_theta) for h in q])
            keys.append([naive_rope(naive_rms(h, gain_k, c.norm_eps), position, c.rope_theta) for h in k])
            values.append((w[at + "self_attn.v_proj.weight"] @ x).reshape(c.num_kv_heads, c.head_dim))
        for t in range(len(tokens)):
            heads = []
            for head in range(c.num_heads):
                shared = head * c.num_kv_heads // c.num_heads
                scores = np.array([queries[t][head] @ keys[s][shared] / math.sqrt(c.head_dim) for s in range(t + 1)])
                share = np.exp(scores - scores.max())
                share /= share.sum()
                heads.append(sum(share[s] * values[s][shared] for s in range(t + 1)))
            stream[t] = stream[t] + w[at + "self_attn.o_proj.weight"] @ np.concatenate(heads)
        for t in range(len(tokens)):
            x = naive_rms(stream[t], w[at + "post_attention_layernorm.weight"], c.norm_eps)
            gate = w[at + "mlp.gate_proj.weight"] @ x
            up = w[at + "mlp.up_proj.weight"] @ x
            stream[t] = stream[t] + w[at + "mlp.down_proj.weight"] @ (gate / (1 + np.exp(-gate)) * up)
    return np.stack([embeddings @ naive_rms(x, w["model.norm.weight"], c.norm_eps) for x in stream])


@pytest.mark.parametrize(("heads", "kv_heads"), [(2, 1), (2, 2), (4, 2)])
def test_logits_equal_a_naive_forward_pass(make_model: Make, heads: int, kv_heads: int) -> None:
    model = make_model(1, torch.float64, num_heads=heads, num_kv_heads=kv_heads)
    tokens = ids(20)
    wanted = naive_logits(model, tokens)
    assert wanted.std() > 0.5  # a reference that is nearly constant would agree with anything
    np.testing.assert_allclose(model(torch.tensor([tokens]))[0].detach().numpy(), wanted, atol=1e-5)
    np.testing.assert_allclose(model.float()(torch.tensor([tokens]))[0].detach().numpy(), wanted, atol=1e-4)


def test_grouped_queries_equal_repeated_key_value_heads(make_model: Make) -> None:
    grouped = make_model(2, torch.float64, num_heads=4, num_kv_heads=2)
    repeated = make_model(3, torch.float64, num_heads=4, num_kv_heads=4)
    weights = grouped.state_dict()
    for name in weights:
        if "k_proj" in name or "v_proj" in name:  # heads 0 and 1 share the first, 2 and 3 the second
            first, second = weights[name][:16], weights[name][16:]
            weights[name] = torch.cat([first, first, second, second])
    repeated.load_state_dict(weights)
    tokens = torch.tensor([ids(30), ids(30, 1)])
    torch.testing.assert_close(grouped(tokens), repeated(tokens), atol=1e-10, rtol=0)


# -- packing, padding, causality --------------------------------------------------------------------------------------


def test_packed_texts_are_as_if_alone(make_model: Make) -> None:
    """Logits, loss and gradients of one packed row = those of its texts, each by itself (plain cross-entropy)."""
    model = make_model(4)
    texts = [ids(n, n) for n in (17, 9, 23)]
    weights = [np.random.default_rng(n).random(len(t)).round(2).tolist() for n, t in enumerate(texts)]
    rows = pack_whole(list(zip(texts, weights)), 60, pad=3)
    assert len(rows) == 1
    batch = next_token_batch(rows.take([0]))
    assert batch.segments is not None
    packed = model(batch.tokens, batch.segments)[0]
    alone = {tuple(t): model(torch.tensor([t]))[0] for t in texts}
    at, segments = 0, batch.segments[0].tolist()
    for text in sorted(texts, key=len, reverse=True):  # the longest is packed first
        assert batch.tokens[0, at : at + len(text)].tolist() == text
        assert len(set(segments[at : at + len(text)])) == 1
        torch.testing.assert_close(packed[at : at + len(text)], alone[tuple(text)], atol=1e-5, rtol=0)
        at += len(text)

    loss, _ = next_token(model, batch)
    loss.backward()
    got = flat_gradients(model).clone()
    model.zero_grad()
    wanted_loss = torch.zeros(())
    for text, weight in zip(texts, weights):
        nats = F.cross_entropy(model(torch.tensor([text[:-1]]))[0], torch.tensor(text[1:]), reduction="none")
        wanted_loss = wanted_loss + (nats * torch.tensor(weight[1:])).sum()
    wanted_loss.backward()
    wanted = flat_gradients(model)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=1e-6)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-5


def test_without_segments_packed_texts_do_leak(make_model: Make) -> None:
    """The control of the test above: it is the segments that keep texts apart."""
    model = make_model(4)
    first, second = ids(9, 1), ids(9, 2)
    joined = model(torch.tensor([first + second]))[0, 9:]
    assert (joined - model(torch.tensor([second]))[0]).abs().max().item() > 0.1


@pytest.mark.parametrize("pad", [0, 3, 299])
def test_padding_on_the_right_changes_nothing(make_model: Make, pad: int) -> None:
    model = make_model(5)
    text = ids(12)
    alone = model(torch.tensor([text]))[0]
    for amount in (1, 7, 52):
        padded = model(torch.tensor([text + [pad] * amount]))[0, :12]
        torch.testing.assert_close(padded, alone, atol=1e-5, rtol=0)


def test_a_token_changes_nothing_before_it(make_model: Make) -> None:
    model = make_model(6)
    tokens = torch.tensor([ids(40)])
    changed = tokens.clone()
    changed[0, 25] = (changed[0, 25] + 1) % 300
    for segments in (None, torch.zeros(1, 40, dtype=torch.int32)):
        a, b = model(tokens, segments)[0], model(changed, segments)[0]
        torch.testing.assert_close(a[:25], b[:25], atol=1e-6, rtol=0)
        assert ((a[25:] - b[25:]).abs().amax(dim=1) > 1e-3).all()  # and something in every place from there on


def test_a_text_longer_than_the_context_is_refused(make_model: Make) -> None:
    model = make_model()
    assert model(torch.zeros(1, 64, dtype=torch.long)).shape == (1, 64, 300)
    with pytest.raises(ContextError, match=r"65 tokens.*64"):
        model(torch.zeros(1, 65, dtype=torch.long))


# -- rotary positions -------------------------------------------------------------------------------------------------


def test_rotary_scores_depend_on_the_distance_only(make_model: Make) -> None:
    model = make_model(0, torch.float64)
    q, k = torch.randn(2, 1, 1, 1, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(at_q: int, at_k: int) -> float:
        turned = [
            rotate(x, model.rope_cos[None, p : p + 1], model.rope_sin[None, p : p + 1])
            for x, p in ((q, at_q), (k, at_k))
        ]
        assert float(turned[0].norm()) == pytest.approx(float(q.norm()), rel=1e-6)
        return float((turned[0] * turned[1]).sum())

    for distance in (0, 1, 13):
        assert [score(s + distance, s) for s in (1, 17, 50)] == pytest.approx([score(distance, 0)] * 3, abs=1e-5)
    assert score(0, 0) == pytest.approx(float((q * k).sum()))
    assert abs(score(13, 0) - score(0, 0)) > 1e-2
    assert abs(score(13, 0) - score(0, 13)) > 1e-2  # and it knows which one comes first


def test_a_shift_of_all_positions_changes_nothing(make_model: Make) -> None:
    model = make_model(7)
    tokens = torch.tensor([ids(20)])
    here = model.hidden(tokens)
    there = model.hidden(tokens, positions_BT=torch.arange(20)[None] + 40)
    torch.testing.assert_close(here, there, atol=1e-5, rtol=0)


# -- the scalar model -------------------------------------------------------------------------------------------------


def scalar_model(make_model: Make, dtype: torch.dtype = torch.float32) -> ValueHeadModel:
    model = ValueHeadModel(make_model(8), seed=1).to(dtype)
    with torch.no_grad():
        model.gain.fill_(1.7)
        model.bias.fill_(-0.4)
        model.score.bias.fill_(0.2)
    return model


def test_scalar_is_gain_times_score_plus_bias(make_model: Make) -> None:
    model = scalar_model(make_model, torch.float64)
    tokens = torch.tensor([ids(10), ids(10, 1)])
    hidden, weight = model.backbone.hidden(tokens).detach(), model.score.weight[0].detach()
    wanted = [[1.7 * (float(weight @ h) + 0.2) - 0.4 for h in row] for row in hidden]
    torch.testing.assert_close(model(tokens), torch.tensor(wanted, dtype=torch.float64), atol=1e-6, rtol=0)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert not trained & {"gain", "bias"}
    assert {"gain", "bias"} <= set(model.state_dict())


def test_scalar_head_starts_as_stiennon_says() -> None:
    """Weights Normal(0, 1/√(hidden + 1)), bias 0; the output of a fresh model is the score itself."""
    wide = ModelConfig(8, hidden_size=4096, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=2, intermediate_size=1)
    model = ValueHeadModel(Transformer(wide), seed=3)
    assert model.score.weight.std().item() == pytest.approx(4097**-0.5, rel=0.05)
    assert model.score.bias.item() == 0
    assert (float(model.gain), float(model.bias)) == (1, 0)


@pytest.mark.parametrize("amount", [1, 5, 40])
def test_scalar_does_not_depend_on_the_padding(make_model: Make, amount: int) -> None:
    """Neither on its amount nor on its side (on the left it is a segment of its own)."""
    model = scalar_model(make_model)
    text = ids(15)
    alone = model(torch.tensor([text]))[0]
    right = model(torch.tensor([text + [3] * amount]))[0, :15]
    segments = torch.tensor([[-1] * amount + [0] * 15], dtype=torch.int32)
    left = model(torch.tensor([[3] * amount + text]), segments)[0, amount:]
    torch.testing.assert_close(right, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(left, alone, atol=1e-5, rtol=0)


# -- shape and start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes", [{}, {"num_heads": 6, "num_kv_heads": 3}, {"num_layers": 3, "head_dim": 10, "vocab_size": 77}]
)
def test_the_formula_counts_every_parameter(make_model: Make, changes: dict[str, int]) -> None:
    model = make_model(0, **changes)
    total = sum(p.numel() for p in model.parameters())
    assert model.config.parameters() == total
    assert model.config.parameters(embeddings=False) == total - model.model.embed_tokens.weight.numel()


def test_weights_have_the_names_of_qwen3(make_model: Make) -> None:
    layer = [
        *("input_layernorm", "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
        *(f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")),
    ]
    wanted = {f"model.layers.{i}.{name}.weight" for i in (0, 1) for name in layer}
    assert set(make_model().state_dict()) == wanted | {"model.embed_tokens.weight", "model.norm.weight"}


def test_start_depends_on_the_seed_alone(shape: ModelConfig) -> None:
    torch.manual_seed(1)
    first = Transformer(shape, seed=5).state_dict()
    torch.manual_seed(2)
    again, other = Transformer(shape, seed=5).state_dict(), Transformer(shape, seed=6).state_dict()
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert float(first["model.embed_tokens.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert float(first["model.layers.1.mlp.down_proj.weight"].std()) == pytest.approx(0.01, rel=0.1)  # .02 / √(2 · 2)


def test_a_fresh_model_knows_nothing(shape: ModelConfig) -> None:
    tokens = torch.tensor([ids(64)])
    loss = F.cross_entropy(Transformer(shape)(tokens)[0], torch.tensor(ids(64, 9)))
    assert loss.item() == pytest.approx(math.log(300), abs=0.1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3, "num_kv_heads": 2}, "multiple"),
        ({"head_dim": 15}, "even"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_impossible_shapes_are_refused(shape: ModelConfig, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(shape, **changes)
