"""The curves on real data: nothing held out is trained on, and what `docs/measurements/curves.md` claims of (d) and (e) is significant.

The data is not part of this project: without the environment variable TERCET_DATA these tests are skipped.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import real_data
import real_text
import torch

from tercet.errors import ConfigError

needs_data = pytest.mark.skipif(
    not os.environ.get("TERCET_DATA"),
    reason="no real data: name its folder (see proofs/real_data.py) in the environment variable TERCET_DATA",
)


def test_a_bag_of_words_learns_words_and_no_order() -> None:
    pairs = [(f"a good {thing}", f"a bad {thing}") for thing in ("film", "day", "cat")]
    words = real_data.BagOfWords(pairs)
    good, bad, swapped, unknown = words.score(["good day", "bad day", "day good", "zzz"])
    assert good > 0 > bad
    assert swapped == pytest.approx(good)
    assert unknown == 0


def test_a_bag_of_words_is_the_optimum_of_its_loss() -> None:
    """One word on each side: w = −v, and log σ's slope σ(−2w) is the decay's decay · w."""
    words = real_data.BagOfWords([("good", "bad")], steps=3_000, decay=0.1, lr=0.01)
    w = words.score(["good"])[0]
    assert words.score(["bad"])[0] == pytest.approx(-w, abs=1e-4)
    assert 1 / (1 + np.exp(2 * w)) == pytest.approx(0.1 * w, abs=1e-4)


def test_auc_and_ties() -> None:
    assert real_data.auc([3.0, 1.0], [2.0, 1.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert real_data.better([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == [0.0, 0.5, 1.0]


def test_a_leak_is_found() -> None:
    real_text.must_be_apart(["One day."], ["Another day."], "here")
    with pytest.raises(AssertionError, match="another day"):
        real_text.must_be_apart(["One day.", "another  day !"], ["Another day."], "here")


def test_without_data_the_message_says_how_to_name_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TERCET_DATA", raising=False)
    with pytest.raises(ConfigError, match="TERCET_DATA"):
        real_text.data_folder(None)
    with pytest.raises(ConfigError, match="sentence_polarity"):
        real_text.data_folder(str(tmp_path))


@needs_data
@pytest.mark.parametrize("seed", range(4))
def test_sentiment_is_split_cleanly(seed: int) -> None:
    data = real_text.sentiment_data(real_text.data_folder(None), seed)
    parts = [{real_text.plain(s) for s in itertools.chain(*p.values())} for p in (data.proxy, data.gold, data.held_out)]
    assert [len(p) for p in parts] == [sum(map(len, p.values())) for p in (data.proxy, data.gold, data.held_out)]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    assert min(map(len, parts)) > 2_000
    assert data.held_out == real_text.sentiment_data(real_text.data_folder(None), seed + 1).held_out


@needs_data
def test_no_sentence_that_people_saw_is_trained_on() -> None:
    """Checked anew, pair by pair: neither sentence of any of the 348 pairs, and no pair of a held-out paradigm."""
    data = real_text.choice_data(real_text.data_folder(None))
    used = {real_text.plain(s) for pair in data.training for s in pair}
    people = {c.pair for c in data.choices}
    assert len(people) == 348
    assert len(data.choices) == 6_974
    assert len(data.held_out) == 10
    assert [s for pair in people for s in pair if real_text.plain(s) in used] == []
    assert [s for p in data.held_out.values() for pair in p for s in pair if real_text.plain(s) in used] == []
    assert len(data.training) > 55_000
    assert np.mean([c.gold_agrees for c in data.choices]) == pytest.approx(0.873, abs=5e-4)


@needs_data
def test_the_curves(tmp_path: Path) -> None:
    """One test for both, so that the base is pretrained once. About ten minutes on two quiet cores."""
    threads = torch.get_num_threads()
    found = real_data.run(real_text.data_folder(None), tmp_path, ("d", "e"), seeds=4, processes=2)
    torch.set_num_threads(threads)
    check_sentiment(found["d"])
    check_choices(found["e"])


def check_sentiment(d: dict[str, Any]) -> None:
    """The judges know held-out sentences; PPO raises its reward, and what it never saw, within 10 nats."""
    assert all(d["auc"][judge]["low"] > 0.65 for judge in ("proxy", "gold", "words"))
    assert d["gain"]["proxy"]["low"] > 0
    assert d["gain"]["gold"]["low"] > 0
    assert d["gain"]["positive"]["gold"]["low"] > 0
    assert all(0 < seed["kl"] <= 10 for seed in d["seeds"])
    assert d["after"]["kl"]["high"] <= 10


def check_choices(e: dict[str, Any]) -> None:
    """Better than chance, than a bag of words and than the base's likelihood; not better than people allow."""
    assert all(difference["low"] > 0 for difference in e["reward model minus"].values())
    assert e["people"]["all"]["reward model"]["value"] < e["people"]["all"]["gold label"]["value"]
    assert e["people"]["all"]["gold label"]["value"] == pytest.approx(0.873, abs=5e-4)
