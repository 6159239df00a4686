"""Attention patterns against the model's outputs; head scores against plain loops and hand-built heads."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tercet.diagnostics.attention import attention_patterns, prefix_matching, previous_token, repeated_tokens
from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer


def test_patterns_give_the_outputs_of_the_attention_layers(make_model: Callable[..., Transformer]) -> None:
    """Patterns times values, through the output matrix, equal the layer's output in the forward pass."""
    model = make_model(0, torch.float64)
    tokens = torch.randint(300, (3, 17), generator=torch.Generator().manual_seed(0))
    heard: list[tuple[Tensor, Tensor]] = []
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda _, inputs, output: heard.append((inputs[0], output)))
    with torch.no_grad():
        model(tokens)
    patterns = attention_patterns(model, tokens)
    assert patterns.shape == (2, 3, 2, 17, 17)
    for (x, output), layer, pattern in zip(heard[:2], model.model.layers, patterns):
        v = layer.self_attn.v_proj(x).view(3, 17, 1, 16)  # two query heads share one value head
        mixed = torch.einsum("bhts,bsc->bthc", pattern, v[:, :, 0]).reshape(3, 17, 32)
        torch.testing.assert_close(layer.self_attn.o_proj(mixed), output, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(patterns.sum(-1), torch.ones(2, 3, 2, 17, dtype=torch.float64))
    assert not patterns.triu(1).any()


def naive_prefix_matching(patterns: Tensor, tokens: Tensor, offset: int) -> list[list[float]]:
    out = []
    for layer in patterns.tolist():
        row = []
        for head in range(len(layer[0])):
            scores = []
            for b, text in enumerate(tokens.tolist()):
                for t, token in enumerate(text):
                    if token in text[:t]:
                        behind = [s for s in range(offset, t + 1) if text[s - offset] == token]
                        scores.append(sum(layer[b][head][t][s] for s in behind))
            row.append(sum(scores) / len(scores))
        out.append(row)
    return out


@pytest.mark.parametrize("vocabulary", [3, 12])
def test_prefix_matching_is_the_naive_loop(vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    tokens = torch.randint(vocabulary, (4, 15), generator=generator)
    patterns = torch.rand(2, 4, 3, 15, 15, generator=generator, dtype=torch.float64).tril()
    patterns /= patterns.sum(-1, keepdim=True)
    torch.testing.assert_close(prefix_matching(patterns, tokens), prefix_matching(patterns, tokens, offset=1))
    for offset in (1, 2):
        expected = torch.tensor(naive_prefix_matching(patterns, tokens, offset), dtype=torch.float64)
        torch.testing.assert_close(prefix_matching(patterns, tokens, offset), expected)
    before = [
        [sum(patterns[layer, b, head, t, t - 1] for b in range(4) for t in range(1, 15)) / 56 for head in range(3)]
        for layer in range(2)
    ]
    torch.testing.assert_close(previous_token(patterns), torch.tensor(before, dtype=torch.float64))


def test_repeated_tokens() -> None:
    tokens = repeated_tokens([7, 8, 9, 10, 11], 1, 4, 3, 50, seed=0)
    assert tokens.shape == (50, 13)
    assert (tokens[:, 0] == 1).all()
    assert (tokens[:, 1:5] == tokens[:, 5:9]).all()
    assert (tokens[:, 1:5] == tokens[:, 9:]).all()
    assert all(len(set(row[1:5])) == 4 and set(row[1:]) < {7, 8, 9, 10, 11} for row in tokens.tolist())
    assert len({tuple(row) for row in tokens.tolist()}) > 25


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(ConfigError, match="2 copies of 4 different tokens out of 3"):
        repeated_tokens([1, 2, 3], 0, 4, 2, 1, seed=0)
    with pytest.raises(ConfigError, match="no token occurs twice"):
        prefix_matching(torch.ones(1, 1, 1, 3, 3), torch.tensor([[1, 2, 3]]))


N = 8  # tokens that the circuit below knows


def induction_circuit() -> Transformer:
    """Two layers of one head each, by hand: the first attends to the token before and notes which it was; the second
    looks for its own token among the notes, and copies the token that carries the note.

    The residual stream: places 0 to 7 the token, 8 always on, 9 to 16 the token before.
    """
    config = ModelConfig(
        N, 32, hidden_size=32, num_layers=2, num_heads=1, num_kv_heads=1, head_dim=32, intermediate_size=8
    )
    model = Transformer(config)
    fast, slow = torch.arange(8), torch.arange(8, 16)  # pairs of the head: positions turn the fast, hardly the slow
    angle = 10_000.0 ** (-fast / 16)  # of one position
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 2:
                p.zero_()
            if name.endswith(("q_norm.weight", "k_norm.weight")):
                p.fill_(5.0)  # sharp
        eye = torch.eye(N)
        model.model.embed_tokens.weight[:, :N] = eye
        model.model.embed_tokens.weight[:, 8] = 1.0
        first, second = (layer.self_attn for layer in model.model.layers)
        first.q_proj.weight[fast, 8] = 1.0
        first.k_proj.weight[fast, 8] = angle.cos()  # turned on by one: meets the query of the next position
        first.k_proj.weight[16 + fast, 8] = angle.sin()
        for attention in (first, second):
            attention.v_proj.weight[:N, :N] = eye
        first.o_proj.weight[9 : 9 + N, :N] = eye
        second.q_proj.weight[slow, :N] = eye
        second.k_proj.weight[slow, 9 : 9 + N] = eye
        second.o_proj.weight[:N, :N] = 3 * eye
    return model


def test_an_induction_head_built_by_hand_is_recognised() -> None:
    model = induction_circuit()
    tokens = repeated_tokens(range(1, N), 0, 7, 3, 20, seed=1)
    patterns = attention_patterns(model, tokens)
    before, matching = previous_token(patterns), prefix_matching(patterns, tokens)
    assert before[0, 0] > 0.99
    assert matching[0, 0] < 0.05
    assert matching[1, 0] > 0.99
    assert before[1, 0] < 0.5
    with torch.no_grad():  # and it does what such heads are for
        predicted = model(tokens).argmax(-1)
    assert (predicted[:, 8:-1] == tokens[:, 9:]).all()
