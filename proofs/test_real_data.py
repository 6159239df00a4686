"""Studies of real text: nothing held out is trained on, and what docs/measurements/curves.md claims is significant.

The data is not part of this project. The environment variable TERCET_DATA names its folder (`tercet study sentiment
--help` says which files); without it these tests are skipped.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.errors import ConfigError, DataError
from tercet.studies.real_text.data import choice_data, fingerprints, must_be_apart, plain, sentiment_data
from tercet.studies.real_text.human_choices_study import HUMAN_CHOICES
from tercet.studies.real_text.models import BagOfWords, auc, better
from tercet.studies.real_text.sentiment_study import SENTIMENT
from tercet.training.settings import from_json

DATA = os.environ.get("TERCET_DATA", "")
needs_data = pytest.mark.skipif(
    not DATA, reason="no real data: name its folder in the environment variable TERCET_DATA"
)


def test_a_bag_of_words_learns_words_and_no_order() -> None:
    pairs = [(f"a good {thing}", f"a bad {thing}") for thing in ("film", "day", "cat")]
    words = BagOfWords(pairs)
    good, bad, swapped, unknown = words.score(["good day", "bad day", "day good", "zzz"])
    assert good > 0 > bad
    assert swapped == pytest.approx(good)
    assert unknown == 0


def test_a_bag_of_words_is_the_optimum_of_its_loss() -> None:
    """One word on each side: w = −v, and log σ's slope σ(−2w) is the decay's decay · w."""
    words = BagOfWords([("good", "bad")], steps=3_000, decay=0.1, lr=0.01)
    w = words.score(["good"])[0]
    assert words.score(["bad"])[0] == pytest.approx(-w, abs=1e-4)
    assert 1 / (1 + np.exp(2 * w)) == pytest.approx(0.1 * w, abs=1e-4)


def test_auc_and_ties() -> None:
    assert auc([3.0, 1.0], [2.0, 1.0]) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert better([1.0, 2.0, 3.0], [2.0, 2.0, 2.0]) == [0.0, 0.5, 1.0]


def test_a_leak_is_found() -> None:
    must_be_apart(["One day."], ["Another day."], "here")
    with pytest.raises(DataError, match="another day"):
        must_be_apart(["One day.", "another  day !"], ["Another day."], "here")


def test_without_data_the_message_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--data must be given"):
        from_json(SENTIMENT.settings, {}, "tercet study sentiment")
    with pytest.raises(ConfigError, match=r"--data .*: there is no sentiment/sentence_polarity\.zip"):
        fingerprints(str(tmp_path))


@needs_data
@pytest.mark.parametrize("seed", range(4))
def test_sentiment_is_split_cleanly(seed: int) -> None:
    data = sentiment_data(Path(DATA), seed)
    parts = [{plain(s) for s in itertools.chain(*p.values())} for p in (data.proxy, data.gold, data.held_out)]
    assert [len(p) for p in parts] == [sum(map(len, p.values())) for p in (data.proxy, data.gold, data.held_out)]
    assert not any(a & b for a, b in itertools.combinations(parts, 2))
    assert min(map(len, parts)) > 2_000
    assert data.held_out == sentiment_data(Path(DATA), seed + 1).held_out


@needs_data
def test_no_sentence_that_people_saw_is_trained_on() -> None:
    """Checked anew, pair by pair: neither sentence of any of the 348 pairs, and no pair of a held-out paradigm."""
    data = choice_data(Path(DATA))
    used = {plain(s) for pair in data.training for s in pair}
    people = {c.pair for c in data.choices}
    assert len(people) == 348
    assert len(data.choices) == 6_974
    assert len(data.held_out) == 10
    assert [s for pair in people for s in pair if plain(s) in used] == []
    assert [s for p in data.held_out.values() for pair in p for s in pair if plain(s) in used] == []
    assert len(data.training) > 55_000
    assert np.mean([c.gold_agrees for c in data.choices]) == pytest.approx(0.873, abs=5e-4)


@needs_data
def test_ppo_raises_what_it_never_saw(tmp_path: Path) -> None:
    """About five minutes on two quiet cores."""
    check_sentiment(SENTIMENT(SENTIMENT.settings(data=DATA, seeds=4), tmp_path)["results"]["summary"])


@needs_data
def test_a_learned_reward_predicts_what_people_choose(tmp_path: Path) -> None:
    """About five minutes on two quiet cores."""
    check_choices(HUMAN_CHOICES(HUMAN_CHOICES.settings(data=DATA, seeds=4), tmp_path)["results"]["summary"])


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
