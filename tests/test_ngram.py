"""The n-gram baselines against enumeration, a naive implementation with dictionaries, and chains of known entropy."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from tercet.errors import ConfigError, DataError
from tercet.evaluation.ngram import ngram_baselines, ngram_bits, xz_bits_per_byte


def documents(count: int, length: int, vocab_size: int, seed: int) -> list[np.ndarray]:
    """Documents of uneven lengths in which a token likes to follow its double, so that all orders have something."""
    rng = np.random.default_rng(seed)
    made = []
    for size in rng.integers(0, 2 * length, size=count):
        ids = [int(rng.integers(vocab_size))]
        for _ in range(int(size)):
            ids.append((2 * ids[-1] + 1) % vocab_size if rng.random() < 0.6 else int(rng.integers(vocab_size)))
        made.append(np.array(ids[1:], dtype=np.int64))
    return made


class Naive:
    """The same model, token by token, with dictionaries and tuples."""

    def __init__(self, train: list[list[int]], vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        full = [doc for doc in train if doc]
        aside = full[19::20]
        self.weights: list[dict[int, float]] = [{} for _ in range(order)]
        self.count([doc for number, doc in enumerate(full) if number % 20 != 19])
        for level in range(1, order):
            self.weights[level] = self.find_weights(aside, level)
        self.count(full)

    def count(self, docs: list[list[int]]) -> None:
        self.grams: Counter[tuple[int, ...]] = Counter()
        for doc in docs:
            padded = [-1] * (self.order - 1) + doc
            for end in range(self.order, len(padded) + 1):
                for n in range(1, self.order + 1):
                    self.grams[tuple(padded[end - n : end])] += 1
        self.totals: Counter[tuple[int, ...]] = Counter()
        self.kinds: Counter[tuple[int, ...]] = Counter()
        for gram, count in self.grams.items():
            self.totals[gram[:-1]] += count
            self.kinds[gram[:-1]] += 1

    def bucket(self, context: tuple[int, ...]) -> int | None:
        if context not in self.totals:
            return None
        return min(int(2 * math.log2(self.totals[context] / self.kinds[context])), 15)

    def p(self, gram: tuple[int, ...]) -> float:
        context = gram[:-1]
        if not context:
            return (self.grams[gram] + 1) / (self.totals[()] + self.vocab_size)
        bucket = self.bucket(context)
        if bucket is None:
            return self.p(gram[1:])
        weight = self.weights[len(context)].get(bucket, 0.5)
        return weight * self.grams[gram] / self.totals[context] + (1 - weight) * self.p(gram[1:])

    def find_weights(self, aside: list[list[int]], level: int) -> dict[int, float]:
        rows: dict[int, list[tuple[float, float]]] = {}
        for doc in aside:
            padded = [-1] * level + doc
            for end in range(level + 1, len(padded) + 1):
                gram = tuple(padded[end - level - 1 : end])
                bucket = self.bucket(gram[:-1])
                if bucket is not None:
                    rows.setdefault(bucket, []).append((self.grams[gram] / self.totals[gram[:-1]], self.p(gram[1:])))
        weights = {}
        for bucket, pairs in rows.items():
            weight = 0.5
            for _ in range(40):
                shares = [weight * high / (weight * high + (1 - weight) * low) for high, low in pairs]
                weight = (sum(shares) + 1) / (len(pairs) + 2)
            weights[bucket] = weight
        return weights

    def bits(self, doc: list[int]) -> float:
        padded = [-1] * (self.order - 1) + doc
        return sum(
            -math.log2(self.p(tuple(padded[end - self.order : end]))) for end in range(self.order, len(padded) + 1)
        )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_agrees_with_naive_implementation(order: int) -> None:
    train, heldout = documents(120, 12, 7, seed=1), documents(15, 12, 7, seed=2)
    naive = Naive([doc.tolist() for doc in train], 7, order)
    expected = [naive.bits(doc.tolist()) for doc in heldout]
    assert any(doc.size == 0 for doc in train), "the data should have an empty document in it"
    np.testing.assert_allclose(ngram_bits(train, heldout, 7, order), expected, rtol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_probabilities_sum_to_one_after_every_context(order: int) -> None:
    vocab_size = 5
    # Token 4 never occurs in training: contexts with it are unseen, and it must still have a probability.
    train = [doc[doc != 4] for doc in documents(60, 8, vocab_size, seed=3)]
    contexts = [c for size in range(4) for c in itertools.product(range(vocab_size), repeat=size)]
    before = ngram_bits(train, [np.array(c, dtype=np.int64) for c in contexts], vocab_size, order)
    longer = [np.array((*c, token)) for c in contexts for token in range(vocab_size)]
    after = ngram_bits(train, longer, vocab_size, order).reshape(len(contexts), vocab_size)
    np.testing.assert_allclose((2.0 ** (before[:, None] - after)).sum(axis=1), 1.0, rtol=1e-12)


def test_unigram_is_add_one_by_hand() -> None:
    train = np.array([0] * 15 + [1] * 5)
    bits = ngram_bits(train, [np.array([0]), np.array([1, 2])], 3, 1)
    np.testing.assert_allclose(bits, [-math.log2(16 / 23), -math.log2(6 / 23) - math.log2(1 / 23)])


def entropy(p: np.ndarray) -> float:
    return float(-(p * np.log2(p)).sum())


def chain(order: int, vocab_size: int, length: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a Markov chain's tokens, its transition table and the stationary distribution of its states."""
    rng = np.random.default_rng(seed)
    states = vocab_size**order
    table = rng.dirichlet(np.full(vocab_size, 0.4), size=states) * 0.98 + 0.02 / vocab_size
    moves = np.zeros((states, states))
    for state, token in itertools.product(range(states), range(vocab_size)):
        moves[state, (state * vocab_size + token) % states] += table[state, token]
    stationary = np.linalg.matrix_power(moves, 2000)[0]
    cumulative, draws, state, ids = table.cumsum(axis=1), rng.random(length), 0, np.empty(length, dtype=np.int64)
    for i in range(length):
        ids[i] = min(int(np.searchsorted(cumulative[state], draws[i])), vocab_size - 1)
        state = (state * vocab_size + int(ids[i])) % states
    return ids, table, stationary


def test_first_order_chain_reaches_its_entropies() -> None:
    ids, table, stationary = chain(1, 6, 60_000, seed=5)
    bits = ngram_baselines(np.split(ids[:40_000], 400), [ids[40_000:]], 6)
    rate = sum(share * entropy(row) for share, row in zip(stationary, table))
    per_token = {name: float(total[0]) / 20_000 for name, total in bits.items()}
    assert per_token["unigram"] == pytest.approx(entropy(stationary), rel=0.01)
    assert per_token["bigram"] == pytest.approx(rate, rel=0.015)
    # Two tokens of context cannot help here; a fair trigram must not lose by it either.
    assert per_token["trigram"] == pytest.approx(per_token["bigram"], rel=0.01)
    # One long document instead of many: the weights come from its end, and the result is as good.
    undivided = float(ngram_bits(ids[:40_000], [ids[40_000:]], 6, 3)[0]) / 20_000
    assert undivided == pytest.approx(per_token["trigram"], rel=0.002)


def test_second_order_chain_needs_the_trigram() -> None:
    ids, table, stationary = chain(2, 5, 60_000, seed=6)
    bits = ngram_baselines(np.split(ids[:40_000], 400), [ids[40_000:]], 5)
    rate = sum(share * entropy(row) for share, row in zip(stationary, table))
    assert float(bits["trigram"][0]) / 20_000 == pytest.approx(rate, rel=0.02)
    assert float(bits["bigram"][0]) / 20_000 > rate + 0.1


def test_heldout_documents_do_not_touch_each_other_or_the_model() -> None:
    train, heldout = documents(60, 10, 7, seed=7), documents(9, 10, 7, seed=8)
    together = ngram_bits(train, heldout, 7, 3)
    alone = [float(ngram_bits(train, [doc], 7, 3)[0]) for doc in heldout]
    np.testing.assert_allclose(together, alone, rtol=1e-12)
    assert together.shape == (9,)
    assert ngram_bits(train, [np.empty(0, dtype=np.int64)], 7, 3).tolist() == [0.0]
    assert ngram_bits(train, [], 7, 3).shape == (0,)


def test_baselines_are_the_three_orders() -> None:
    train, heldout = documents(60, 10, 7, seed=9), documents(5, 10, 7, seed=10)
    baselines = ngram_baselines(train, heldout, 7)
    assert list(baselines) == ["unigram", "bigram", "trigram"]
    for order, bits in enumerate(baselines.values(), start=1):
        np.testing.assert_allclose(bits, ngram_bits(train, heldout, 7, order), rtol=1e-12)


def test_first_token_is_predicted_from_the_begin_of_document() -> None:
    # Every document starts with 3, which is rare elsewhere: the bigram knows it, the unigram cannot.
    rng = np.random.default_rng(11)
    train = [np.concatenate(([3], rng.integers(0, 3, size=20))) for _ in range(400)]
    bits = ngram_baselines(train, [np.array([3])], 4)
    assert bits["bigram"][0] < 0.1
    assert bits["unigram"][0] > 4


def test_cannot_be_fooled_by_certain_training_data() -> None:
    # In training 1 always follows 0. Held out it does not: expensive, but never infinitely so.
    bits = ngram_bits([np.array([0, 1] * 50)] * 40, [np.array([0, 0, 1, 1])], 2, 3)
    assert np.isfinite(bits).all()
    assert bits[0] > 10


def test_small_and_unsigned_integers_give_the_same_bits() -> None:
    train, heldout = documents(60, 10, 7, seed=12), documents(5, 10, 7, seed=13)
    narrow = [doc.astype(np.uint16) for doc in train]
    np.testing.assert_array_equal(ngram_bits(narrow, heldout, 7, 3), ngram_bits(train, heldout, 7, 3))


def test_errors_say_what_was_found() -> None:
    good = documents(60, 10, 7, seed=14)
    with pytest.raises(DataError, match=r"heldout\[1\]: found ids from 0 to 7; wanted 0 to 6"):
        ngram_bits(good, [np.array([0]), np.array([0, 7])], 7, 2)
    with pytest.raises(DataError, match=r"train\[0\]: found ids from -1"):
        ngram_bits([np.array([-1, 2])], good, 7, 2)
    with pytest.raises(DataError, match=r"heldout\[0\]: found float64"):
        ngram_bits(good, [np.array([0.5])], 7, 2)
    with pytest.raises(DataError, match="3 training tokens; wanted at least 20"):
        ngram_bits([np.array([0, 1, 2])], good, 7, 2)
    with pytest.raises(DataError, match="0 training tokens"):
        ngram_bits([], good, 7, 2)
    with pytest.raises(ConfigError, match="order 0"):
        ngram_bits(good, good, 7, 0)
    with pytest.raises(ConfigError, match="order 6 with vocab_size 4096"):
        ngram_bits(good, good, 4096, 6)


def test_xz_orders_texts_by_difficulty() -> None:
    noise = np.random.default_rng(0).bytes(20_000)
    assert xz_bits_per_byte(b"the same line again\n" * 1000) < 0.1
    assert 8 <= xz_bits_per_byte(noise) < 8.1
    # Each of two bytes at random is one bit of news in eight.
    assert 1 <= xz_bits_per_byte(bytes(97 + (b & 1) for b in noise)) < 1.4
    with pytest.raises(DataError, match="empty"):
        xz_bits_per_byte(b"")
