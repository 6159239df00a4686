"""The key-value cache: rows of different lengths, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tercet.model.attention import CAUSAL, Bidirectional, Kind, KVCache, Prefix, Window
from tercet.model.transformer import Transformer

Make = Callable[..., Transformer]
LENGTHS = (3, 7, 1, 5)


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def filled(model: Transformer, prompts: Tensor, capacity: int, kind: Kind = CAUSAL) -> KVCache:
    """A cache whose row b holds the first LENGTHS[b] tokens of its prompt; what is behind them must not matter."""
    cache = KVCache(model.config, len(LENGTHS), capacity, model.output_weight)
    cache.keys.normal_()
    cache.values.normal_()
    for row, length in enumerate(LENGTHS):
        one = KVCache(model.config, 1, length, model.output_weight)
        model.hidden(prompts[row : row + 1, :length], attention=kind, cache=one)
        cache.keys[:, row, :, :length], cache.values[:, row, :, :length] = one.keys[:, 0], one.values[:, 0]
    cache.lengths, cache.width = torch.tensor(LENGTHS), max(LENGTHS)
    return cache


@pytest.mark.parametrize("kind", [CAUSAL, Window(4), Prefix(1)], ids=lambda kind: type(kind).__name__)
@pytest.mark.parametrize("kv_heads", [1, 2])
@torch.no_grad()
def test_rows_of_different_lengths_are_as_if_alone(make_model: Make, kind: Kind, kv_heads: int) -> None:
    """Two tokens at once, one token, then a row less and one token more, with positions that continue by themselves."""
    model = make_model(1, torch.float64, num_kv_heads=kv_heads)
    prompts, new = tokens_of(4, 7), tokens_of(4, 4, seed=1)
    cache, rows = filled(model, prompts, 11, kind), [0, 1, 2, 3]
    whole = [
        model.hidden(torch.cat([prompts[row, :length], new[row]])[None], attention=kind)[0, length:]
        for row, length in enumerate(LENGTHS)
    ]
    for a, b in ((0, 2), (2, 3), (3, 4)):
        if a == 3:
            rows = [3, 0, 2]
            cache.keep(torch.tensor(rows))
        out = model.hidden(new[rows, a:b], attention=kind, cache=cache)
        for place, row in enumerate(rows):
            torch.testing.assert_close(out[place], whole[row][a:b], atol=1e-10, rtol=0)
    assert cache.lengths.tolist() == [LENGTHS[row] + 4 for row in rows]
    assert cache.width == 11


@torch.no_grad()
def test_a_bidirectional_token_sees_its_own_row_and_no_other_columns(make_model: Make) -> None:
    model = make_model(2, torch.float64, num_layers=1)
    prompts, new = tokens_of(4, 7), tokens_of(4, 2, seed=1)
    out = model.hidden(new, attention=Bidirectional(), cache=filled(model, prompts, 9))
    for row, length in enumerate(LENGTHS):
        text = torch.cat([prompts[row, :length], new[row]])[None]
        alone = model.hidden(text, attention=Bidirectional())[0, length:]
        torch.testing.assert_close(out[row], alone, atol=1e-10, rtol=0)


@torch.no_grad()
def test_every_vector_goes_where_it_belongs(make_model: Make) -> None:
    """And the memory is that of the model's type; the rest of it stays as it was."""
    model = make_model(3, torch.float64, num_kv_heads=2)
    cache = filled(model, tokens_of(4, 7), 12)
    before = cache.keys.clone(), cache.values.clone()
    cache.reserve(2)
    k, v = torch.randn(2, 4, 2, 2, 16, generator=torch.Generator().manual_seed(4))  # float32: taken as it comes
    keys, values = cache.append(1, k, v)
    assert keys.dtype == torch.float64
    assert keys.shape == values.shape == (4, 2, 9, 16)
    for wanted, stored, added in zip(before, (cache.keys, cache.values), (k, v)):
        for row, length in enumerate(LENGTHS):
            wanted[1, row, :, length : length + 2] = added[row]
        assert torch.equal(stored, wanted)
