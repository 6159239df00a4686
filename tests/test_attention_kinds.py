"""Kinds of attention against masks written as loops, for packed texts and with a cache; and the depth of the call."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.model import attention
from tercet.model.attention import Bidirectional, Causal, Kind, KVCache, Prefix, SharedPrefix, Window, segment_mask
from tercet.model.transformer import Transformer
from tercet.training.shared_prompts import pack_groups

Make = Callable[..., Transformer]
KINDS: dict[str, tuple[Kind, Callable[[int, int], bool]]] = {
    "causal": (Causal(), lambda q, k: k <= q),
    "bidirectional": (Bidirectional(), lambda q, k: True),
    "prefix": (Prefix(4), lambda q, k: k <= q or (q < 4 and k < 4)),
    "window": (Window(3), lambda q, k: q - 3 < k <= q),
}
SEGMENTS = [[0] * 5 + [1] * 6 + [-1], [2] * 12]


def tokens_of(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 300, (rows, length), generator=torch.Generator().manual_seed(seed))


def naive_mask(segments: Sequence[int], sees: Callable[[int, int], bool]) -> Tensor:
    start = [segments.index(s) for s in segments]
    n = range(len(segments))
    return torch.tensor([[start[q] == start[k] and sees(q - start[q], k - start[k]) for k in n] for q in n])


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_sees_what_its_loop_says(name: str) -> None:
    kind, sees = KINDS[name]
    wanted = torch.stack([naive_mask(row, sees) for row in SEGMENTS])[:, None]
    assert torch.equal(segment_mask(torch.tensor(SEGMENTS, dtype=torch.int32), kind), wanted)


@pytest.mark.parametrize("name", KINDS)
def test_the_model_attends_by_its_kind(make_model: Make, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Output at a token changes exactly where a token that it sees changes (one layer: nothing is passed on)."""
    kind, sees = KINDS[name]
    model, tokens = make_model(1, torch.float64, num_layers=1), tokens_of(1, 9)
    before = model.hidden(tokens, attention=kind)[0]
    for k in range(9):
        other = tokens.clone()
        other[0, k] = (other[0, k] + 1) % 300
        changed = (model.hidden(other, attention=kind)[0] - before).abs().amax(-1) > 1e-9
        assert changed.tolist() == [sees(q, k) for q in range(9)]


@pytest.mark.parametrize("name", KINDS)
def test_a_packed_text_is_as_if_alone(make_model: Make, name: str) -> None:
    kind, _ = KINDS[name]
    model, tokens = make_model(2, torch.float64), tokens_of(2, 12)
    packed = model.hidden(tokens, torch.tensor(SEGMENTS, dtype=torch.int32), attention=kind)
    for row, a, b in ((0, 0, 5), (0, 5, 11), (1, 0, 12)):
        alone = model.hidden(tokens[row : row + 1, a:b], attention=kind)[0]
        torch.testing.assert_close(packed[row, a:b], alone, atol=1e-6, rtol=0)


def test_a_prefix_of_each_row_and_of_each_packed_text(make_model: Make) -> None:
    model, tokens = make_model(3, torch.float64), tokens_of(2, 12)
    rows = model.hidden(tokens, attention=Prefix(torch.tensor([2, 7])[:, None, None]))
    for row, n in enumerate((2, 7)):
        alone = model.hidden(tokens[row : row + 1], attention=Prefix(n))[0]
        torch.testing.assert_close(rows[row], alone, atol=1e-10, rtol=0)
    of_texts = Prefix(torch.tensor([[3] * 5 + [4] * 7])[:, :, None])
    packed = model.hidden(tokens[:1], torch.tensor([[0] * 5 + [1] * 7]), attention=of_texts)[0]
    for a, b, n in ((0, 5, 3), (5, 12, 4)):
        alone = model.hidden(tokens[:1, a:b], attention=Prefix(n))[0]
        torch.testing.assert_close(packed[a:b], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize("name", ["causal", "prefix", "window"])
def test_a_cache_changes_nothing(make_model: Make, name: str) -> None:
    """The first tokens at once, then two, then one by one: the same as all at once. (A prefix must be read at once.)"""
    kind, _ = KINDS[name]
    model, tokens = make_model(4, torch.float64), tokens_of(3, 10)
    cache, out = KVCache(model.config, 3, 10, model.output_weight), []
    for a, b in ((0, 5), (5, 7), (7, 8), (8, 9), (9, 10)):
        positions = torch.arange(a, b)[None]
        out.append(model.hidden(tokens[:, a:b], positions_BT=positions, attention=kind, cache=cache))
    torch.testing.assert_close(torch.cat(out, 1), model.hidden(tokens, attention=kind), atol=1e-10, rtol=0)


def test_the_flag_of_plain_attention_is_used_where_it_can_be(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[tuple[bool, bool]]()
    plain = F.scaled_dot_product_attention

    def watched(*args: Any, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        seen.append((attn_mask is None, is_causal))
        return plain(*args, attn_mask=attn_mask, is_causal=is_causal)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    model, tokens = make_model(1, num_layers=1), tokens_of(2, 12)
    one = torch.tensor([[0] * 12, [5] * 12])
    for kind, segments in (
        (Causal(), None), (Causal(), one), (Bidirectional(), one), (Window(3), one), (Causal(), torch.tensor(SEGMENTS))
    ):  # fmt: skip
        model.hidden(tokens, segments, attention=kind)
    assert seen == [(True, True), (True, True), (True, False), (False, False), (False, False)]


def test_segments_do_not_go_with_a_filled_cache_or_shared_prefixes(make_model: Make) -> None:
    model, tokens, batch = make_model(1), tokens_of(1, 4), pack_groups([[1, 2]], [[[3], [4]]])
    cache = KVCache(model.config, 1, 8, model.output_weight)
    model.hidden(tokens, cache=cache)
    segments = torch.zeros(1, 4, dtype=torch.int32)
    for more in ({"cache": cache, "positions_BT": torch.arange(4, 8)[None]}, {"attention": batch.attention}):
        with pytest.raises(ValueError, match="segments cannot be combined"):
            model.hidden(tokens, segments, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("shared", [False, True])
def test_three_frames_of_our_own_lead_to_torchs_attention(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """A stack trace shows the model, the block and the attention layer, and nothing else of this package."""
    paths = set[tuple[str, ...]]()
    plain = F.scaled_dot_product_attention

    def watched(*args: Any, **more: Any) -> Tensor:
        frame, path = sys._getframe(1), list[str]()
        while frame is not None:
            if str(frame.f_globals.get("__name__")).startswith("tercet."):
                path.append(frame.f_code.co_qualname if sys.version_info >= (3, 11) else frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        paths.add(tuple(reversed(path)))
        return plain(*args, **more)

    monkeypatch.setattr(attention.F, "scaled_dot_product_attention", watched)
    model = make_model(1)
    if shared:
        batch = pack_groups([[1, 2, 3]], [[[4], [5, 6]]])
        assert isinstance(batch.attention, SharedPrefix)
        model.hidden(batch.tokens, positions_BT=batch.positions, attention=batch.attention)
    else:
        model.hidden(tokens_of(2, 12), torch.tensor(SEGMENTS))
    assert [[name.split(".")[-1] for name in path] for path in paths] == [["hidden", "forward", "forward"]]
    if sys.version_info >= (3, 11):
        assert paths == {("Transformer.hidden", "Block.forward", "Attention.forward")}
