"""The feed and the packing: no token lost, none twice, nothing across texts; and every step a function of the seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tercet.errors import ConfigError, DataError
from tercet.training.loader import BatchLoader, permuted
from tercet.training.losses import next_token_batch
from tercet.training.packing import PAD_SEGMENT, Batch, PackedSequences, pack_stream, pack_whole, pad_right

PAD = 3


def rows_of(count: int, first: int = 0) -> PackedSequences:
    """Rows that carry their number as token."""
    tokens = np.repeat(np.arange(first, first + count, dtype=np.int32)[:, None], 4, axis=1)
    return PackedSequences(tokens, np.zeros_like(tokens), np.ones(tokens.shape, dtype=np.float32))


def numbers(feed: BatchLoader, steps: Sequence[int]) -> list[int]:
    return [int(n) for step in steps for n in feed.batch(step).tokens[:, 0]]


# -- the order --------------------------------------------------------------------------------------------------------


def test_a_step_is_a_function_of_seed_and_step_alone() -> None:
    sources = {"a": rows_of(37), "b": rows_of(11, 100)}
    feed = BatchLoader(sources, {"a": 0.7, "b": 0.3}, 8, seed=5)
    forward = {step: numbers(feed, [step]) for step in range(40)}
    backward = {
        step: numbers(BatchLoader(sources, {"b": 0.3, "a": 0.7}, 8, seed=5), [step]) for step in reversed(range(40))
    }
    assert forward == backward
    np.random.seed(1)  # and not of the global generators
    torch.manual_seed(1)
    assert numbers(feed, [17]) == forward[17]
    assert numbers(BatchLoader(sources, {"a": 0.7, "b": 0.3}, 8, seed=6), range(40)) != numbers(feed, range(40))


def test_the_batch_size_only_groups_the_examples() -> None:
    """So that the same rows are seen whatever the micro-batches or the number of machines."""
    sources = {"a": rows_of(37), "b": rows_of(11, 100)}
    wanted = numbers(BatchLoader(sources, None, 1, seed=5), range(240))
    for size in (2, 5, 8, 60):
        assert numbers(BatchLoader(sources, None, size, seed=5), range(240 // size)) == wanted


@given(size=st.integers(1, 60), seed=st.integers(0, 2**63), epochs=st.integers(1, 4), batch=st.integers(1, 9))
def test_every_epoch_shows_every_row_once(size: int, seed: int, epochs: int, batch: int) -> None:
    feed = BatchLoader({"only": rows_of(size)}, None, batch, seed)
    seen = numbers(feed, range(-(-size * epochs // batch)))
    for epoch in range(epochs):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


def test_epochs_have_different_orders() -> None:
    seen = numbers(BatchLoader({"only": rows_of(50)}, None, 10, seed=0), range(50))
    orders = {tuple(seen[e * 50 : e * 50 + 50]) for e in range(5)}
    assert len(orders) == 5
    assert tuple(range(50)) not in orders


def test_permutations_are_the_same_when_the_cache_is_full() -> None:
    wanted = [permuted(i, 10, (1, 2)) for i in range(2_000)]  # 200 epochs, far more than are kept
    assert [permuted(i, 10, (1, 2)) for i in reversed(range(2_000))] == wanted[::-1]
    assert [permuted(i, 10, (1, 3)) for i in range(2_000)] != wanted


# -- the mixture ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ({"a": 0.7, "b": 0.2, "c": 0.1}, {"a": 700, "b": 200, "c": 100}),
        ({"a": 1, "b": 1, "c": 2}, {"a": 250, "b": 250, "c": 500}),
        ({"a": 0.001, "b": 0.998, "c": 0.001}, {"a": 1, "b": 998, "c": 1}),
        ({"a": 1, "b": 1, "c": 1}, {"a": 333, "b": 334, "c": 333}),
        ({"a": 0.5, "b": 0, "c": 0.5}, {"a": 500, "c": 500}),
        (None, {"a": 600, "b": 300, "c": 100}),
    ],
)
def test_every_thousand_examples_hold_each_source_in_its_share(
    weights: dict[str, float] | None, counts: dict[str, int]
) -> None:
    feed = BatchLoader({"a": rows_of(60), "b": rows_of(30, 100), "c": rows_of(10, 200)}, weights, 1, seed=2)
    for start in (0, 1_000, 5_000, 333):
        picked = Counter("abc"[feed.example(i)[0]] for i in range(start, start + 1_000))
        assert picked == counts
    order = "".join("abc"[feed.example(i)[0]] for i in range(1_000))
    assert order != "".join(sorted(order))  # mixed, not one source after the other


def test_every_source_runs_through_its_own_epochs() -> None:
    """The rare source's rows too come once each before any comes again."""
    feed = BatchLoader({"a": rows_of(60), "b": rows_of(30, 100)}, {"a": 0.9, "b": 0.1}, 10, seed=2)
    seen = numbers(feed, range(300))
    for source in ([n for n in seen if n < 100], [n for n in seen if n >= 100]):
        rows = len(set(source))
        assert rows == (60 if source[0] < 100 else 30)
        for epoch in range(len(source) // rows):
            assert len(set(source[epoch * rows : (epoch + 1) * rows])) == rows


def test_impossible_mixtures_are_refused() -> None:
    sources = {"a": rows_of(5), "b": rows_of(5)}
    for weights in ({"a": 1.0, "b": -0.1}, {"a": 0.0, "b": 0.0}, {"a": float("nan"), "b": 1.0}):
        with pytest.raises(ConfigError, match="mixture weights"):
            BatchLoader(sources, weights, 1, 0)
    with pytest.raises(ConfigError, match="mixture weight of b is below a thousandth"):
        BatchLoader(sources, {"a": 1.0, "b": 0.0001}, 1, 0)


def test_by_size_no_source_is_lost_silently() -> None:
    """One row beside 5,000: without weights its share is below the resolution, but it must not vanish silently."""
    try:
        feed = BatchLoader({"big": rows_of(5_000), "small": rows_of(1, 9_999)}, None, 1, seed=0)
    except ConfigError:
        return
    assert any(feed.example(i)[0] == 1 for i in range(20_000))


# -- packing ----------------------------------------------------------------------------------------------------------

TEXT = st.lists(st.integers(10, 20), max_size=30)


@given(texts=st.lists(TEXT, min_size=1, max_size=12), length=st.integers(1, 25))
@example(texts=[[10, 11]], length=1)
@example(texts=[list(range(10, 20)), list(range(10, 21))], length=10)
def test_a_stream_has_every_token_as_target_once(texts: list[list[int]], length: int) -> None:
    """Every token but a text's first, which nothing may predict; in order; and never a padding token."""
    if sum(map(len, texts)) < 2:
        with pytest.raises(DataError, match="tokens in all; wanted at least 2"):
            pack_stream(texts, length, PAD)
        return
    rows = pack_stream(texts, length, PAD)
    assert rows.tokens.shape == rows.segments.shape == rows.weights.shape == (len(rows), length + 1)
    batch = next_token_batch(rows)
    counted = batch.weights.flatten() == 1
    assert torch.equal(counted, batch.weights.flatten() != 0)
    assert batch.targets.flatten()[counted].tolist() == [t for text in texts for t in text[1:]]
    # The token that a target is predicted from is the one before it in its own text.
    assert batch.tokens.flatten()[counted].tolist() == [t for text in texts for t in text[:-1]]
    assert len(rows) == -(-(sum(map(len, texts)) - 1) // length)  # no row of padding


@given(data=st.data(), texts=st.lists(TEXT.filter(len), min_size=1, max_size=12), spare=st.integers(0, 20))
def test_packing_whole_texts_loses_nothing(data: st.DataObject, texts: list[list[int]], spare: int) -> None:
    length = max(map(len, texts)) - 1 + spare
    length = max(length, 1)
    pairs = [
        (t, data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=len(t), max_size=len(t)))) for t in texts
    ]
    rows = pack_whole(pairs, length, PAD)
    found = []
    for row in range(len(rows)):
        used = int((rows.segments[row] != PAD_SEGMENT).sum())
        assert used > 0
        assert (rows.tokens[row, used:] == PAD).all()
        assert (rows.weights[row, used:] == 0).all()
        for segment in range(int(rows.segments[row].max()) + 1):
            (places,) = np.nonzero(rows.segments[row] == segment)
            assert places.tolist() == list(range(places[0], places[0] + len(places)))  # in one piece
            found.append((tuple(rows.tokens[row, places].tolist()), tuple(rows.weights[row, places].tolist())))
    assert sorted(found) == sorted((tuple(t), tuple(w)) for t, w in pairs)
    batch = next_token_batch(rows)
    assert batch.count == pytest.approx(sum(sum(w[1:]) for _, w in pairs))


def test_packing_fills_rows() -> None:
    """100 texts of 1 to 30 tokens in rows of 31: within one row of a bound that no packing can beat."""
    lengths = np.random.default_rng(0).integers(1, 31, 100)
    rows = pack_whole([([7] * n, [1.0] * n) for n in lengths], 30, PAD)
    alone = int((lengths > 15).sum())  # no two of these fit into one row
    assert len(rows) <= max(alone, -(-int(lengths.sum()) // 31)) + 1
    short = np.random.default_rng(1).integers(1, 10, 100)
    assert len(pack_whole([([7] * n, [1.0] * n) for n in short], 30, PAD)) == -(-int(short.sum()) // 31)


@given(
    segments=st.lists(st.integers(-1, 3), min_size=2, max_size=12),
    weights=st.lists(st.sampled_from([0.0, 0.3, 1.0]), min_size=12, max_size=12),
)
def test_a_weight_never_crosses_texts(segments: list[int], weights: list[float]) -> None:
    n = len(segments)
    rows = PackedSequences(
        np.arange(n, dtype=np.int32)[None],
        np.array([segments], dtype=np.int32),
        np.array([weights[:n]], dtype=np.float32),
    )
    batch = next_token_batch(rows.take([0]))
    assert batch.segments is not None
    assert batch.segments.tolist() == [segments[:-1]]
    assert (batch.tokens.tolist(), batch.targets.tolist()) == ([list(range(n - 1))], [list(range(1, n))])
    for t in range(n - 1):
        inside = segments[t] == segments[t + 1] != PAD_SEGMENT
        assert float(batch.weights[0, t]) == pytest.approx(weights[t + 1] if inside else 0.0)


def test_a_text_too_long_and_no_text_are_refused() -> None:
    assert len(pack_whole([([1] * 9, [1.0] * 9)], 8, PAD)) == 1
    with pytest.raises(DataError, match="10 tokens does not fit a row of 9"):
        pack_whole([([1] * 10, [1.0] * 10)], 8, PAD)
    with pytest.raises(DataError, match="no conversations"):
        pack_whole([], 8, PAD)


def test_rows_concatenate_and_batches_have_the_types_of_the_model() -> None:
    rows = PackedSequences.concatenate([rows_of(3), rows_of(2, 10)])
    assert rows.tokens[:, 0].tolist() == [0, 1, 2, 10, 11]
    batch = next_token_batch(rows.take([4, 0]))
    assert isinstance(batch, Batch)
    assert batch.segments is not None
    assert [x.dtype for x in (batch.tokens, batch.targets, batch.weights, batch.segments)] == [
        torch.int64, torch.int64, torch.float32, torch.int32,
    ]  # fmt: skip
    assert batch.tokens.tolist() == [[11] * 3, [0] * 3]
    assert batch.count == 6


def test_pad_right() -> None:
    tokens, lengths = pad_right([[5, 6, 7], [8], []], PAD)
    assert tokens.tolist() == [[5, 6, 7], [8, PAD, PAD], [PAD] * 3]
    assert lengths.tolist() == [3, 1, 0]
