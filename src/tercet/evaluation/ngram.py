"""N-gram baselines: the bits that counting alone needs for the same tokens, as a bar for a language model.

A model of order n mixes the relative frequency of a token after its last n − 1 tokens with the model of order n − 1:

    p_n(w | h) = λ(h) · c(h, w) / c(h) + (1 − λ(h)) · p_{n−1}(w | h without its first token)
    p_1(w)     = (c(w) + 1) / (N + V)                                            add-one, so no token has probability 0

This is Jelinek–Mercer smoothing (Jelinek and Mercer 1980). The weight λ depends on how often the context was seen.
Contexts share one λ per bucket, a range of c(h) / (number of different tokens seen after h). This is the "average
count" of Chen and Goodman (1996), which is better than buckets of c(h). A context that was never seen has λ = 0.
Because each level is a mixture of two distributions over the V tokens, the probabilities sum to one.

The weights are fitted by expectation maximisation on a twentieth of the training documents, which is not counted
meanwhile. Then all training documents are counted. Held-out text is only scored.

Tables are sorted int64 keys (context and token as digits to base V + 1), searched by bisection. So four million tokens
take seconds.
"""

from __future__ import annotations

import lzma
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tercet.errors import ConfigError, DataError

Ids = NDArray[np.int64]
Reals = NDArray[np.float64]

ASIDE = 20  # one document in this many is kept aside to fit the mixing weights
BUCKETS = 16  # two per doubling of the mean count; the last one has no upper end
EM_STEPS = 40


@dataclass(frozen=True)
class _Text:
    """Documents end to end, each after `order` − 1 begin-of-document ids.

    `stream` [S] has these ids too; `positions` [N] are the indices of the tokens, `document` [N] their documents'
    numbers.
    """

    stream: Ids
    positions: Ids
    document: Ids

    def keys(self, order: int, base: int) -> Ids:
        """Return each token and the `order` − 1 tokens before it as one number, oldest digit first, [N]."""
        keys = np.zeros(self.positions.size, dtype=np.int64)
        for back in range(order - 1, -1, -1):
            keys *= base
            keys += self.stream[self.positions - back]
        return keys


@dataclass(frozen=True)
class _Table:
    """Counts of n-grams and of their contexts, by sorted keys."""

    grams: Ids
    counts: Ids
    contexts: Ids
    totals: Ids  # occurrences of each context
    followers: Ids  # different tokens after each context

    @classmethod
    def of(cls, keys: Ids, base: int) -> _Table:
        grams, counts = np.unique(keys, return_counts=True)
        contexts, first, followers = np.unique(grams // base, return_index=True, return_counts=True)
        return cls(grams, counts, contexts, np.add.reduceat(counts, first), followers)

    def frequency(self, keys: Ids, base: int) -> tuple[Reals, Ids]:
        """Return the relative frequency c(h, w) / c(h) of each key [N], and its context's bucket [N] (0: unseen)."""
        gram, context = _find(self.grams, keys), _find(self.contexts, keys // base)
        total = np.where(context < 0, 1, self.totals[context])
        frequency = np.where(gram < 0, 0, self.counts[gram]) / total
        mean_count = total / np.where(context < 0, 1, self.followers[context])
        bucket = 1 + np.minimum((2 * np.log2(mean_count)).astype(np.int64), BUCKETS - 1)
        return frequency, np.where(context < 0, 0, bucket)


def ngram_bits(train: Sequence[Ids] | Ids, heldout: Sequence[Ids], vocab_size: int, order: int) -> Reals:
    """Return the bits (−log₂ probability) of each held-out document under an n-gram model of `train`, [len(heldout)].

    `train` is a list of documents (integer arrays of ids below `vocab_size`), or one array for one document. Order 1 is
    the unigram, 2 the bigram, 3 the trigram. Every document starts in a begin-of-document context, which is not itself
    predicted; an empty document costs 0 bits. With fewer than 20 training documents, the last twentieth of the tokens
    is kept aside for the weights instead of every twentieth document.

    Raises ConfigError if order or vocab_size is impossible, DataError if an id is outside the vocabulary or there are
    fewer than 20 training tokens.
    """
    return _bits_by_order(train, heldout, vocab_size, order)[-1]


def ngram_baselines(train: Sequence[Ids] | Ids, heldout: Sequence[Ids], vocab_size: int) -> dict[str, Reals]:
    """Return the bits of each held-out document under "unigram", "bigram" and "trigram", as `ngram_bits` does."""
    return dict(zip(("unigram", "bigram", "trigram"), _bits_by_order(train, heldout, vocab_size, 3)))


def xz_bits_per_byte(text: bytes) -> float:
    """Return the size of a text compressed with xz (preset 6), in bits per byte of text.

    About 70 bytes are a fixed cost of the format, so short texts look harder than they are. Raises DataError if the
    text is empty.
    """
    if not text:
        raise DataError("xz_bits_per_byte: the text is empty; wanted at least one byte")
    return 8 * len(lzma.compress(text, preset=6)) / len(text)


def _bits_by_order(train: Sequence[Ids] | Ids, heldout: Sequence[Ids], vocab_size: int, order: int) -> list[Reals]:
    """Return the bits of each held-out document [len(heldout)] under the models of order 1, 2, …, `order`."""
    base = vocab_size + 1  # the extra digit is the begin-of-document id
    if order < 1 or vocab_size < 1 or base**order > np.iinfo(np.int64).max:
        raise ConfigError(
            f"n-gram model: found order {order} with vocab_size {vocab_size}; wanted both at least 1 and "
            "(vocab_size + 1) ** order below 2 ** 63: lower the order"
        )
    known = _text([train] if isinstance(train, np.ndarray) else train, vocab_size, order, "train")
    unknown = _text(heldout, vocab_size, order, "heldout")
    aside = _kept_aside(known.document)

    bits: list[Reals] = []
    p_aside, p_unknown = np.empty(0), np.empty(0)
    for n in range(1, order + 1):
        keys, queries = known.keys(n, base), unknown.keys(n, base)
        if n == 1:
            p_aside = _add_one(keys[~aside], vocab_size)[keys[aside]]
            p_unknown = _add_one(keys, vocab_size)[queries]
        else:
            frequency, bucket = _Table.of(keys[~aside], base).frequency(keys[aside], base)
            weights = _mixing_weights(frequency, p_aside, bucket)
            p_aside = _mix(weights[bucket], frequency, p_aside)
            frequency, bucket = _Table.of(keys, base).frequency(queries, base)
            p_unknown = _mix(weights[bucket], frequency, p_unknown)
        total: Reals = np.bincount(unknown.document, -np.log2(p_unknown), len(heldout)).astype(np.float64)
        bits.append(total)
    return bits


def _text(documents: Sequence[Ids], vocab_size: int, order: int, name: str) -> _Text:
    """Check the documents and lay them end to end."""
    documents = [np.asarray(ids) for ids in documents]
    for number, ids in enumerate(documents):
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise DataError(
                f"{name}[{number}]: found {ids.dtype} of shape {ids.shape}; wanted a flat integer array of token ids"
            )
        if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
            raise DataError(
                f"{name}[{number}]: found ids from {ids.min()} to {ids.max()}; wanted 0 to {vocab_size - 1}: "
                "give the vocab_size of the tokenizer that made these ids"
            )
    pad = order - 1
    lengths = np.array([ids.size for ids in documents], dtype=np.int64)
    document = np.repeat(np.arange(lengths.size), lengths)
    positions = np.arange(document.size) + pad * (document + 1)
    stream = np.full(document.size + pad * lengths.size, vocab_size, dtype=np.int64)
    if document.size:
        stream[positions] = np.concatenate(documents)
    return _Text(stream, positions, document)


def _kept_aside(document: Ids) -> NDArray[np.bool_]:
    """Return which training tokens [N] fit the weights: every 20th document, or the last 20th of the tokens."""
    if document.size < ASIDE:
        raise DataError(f"n-gram model: found {document.size} training tokens; wanted at least {ASIDE}: give more text")
    # only documents with tokens are numbered, so that none that is kept aside is empty
    number = np.cumsum(np.diff(document, prepend=document[0]) > 0)
    if number[-1] + 1 < ASIDE:
        return np.arange(document.size) >= document.size - document.size // ASIDE
    aside: NDArray[np.bool_] = number % ASIDE == ASIDE - 1
    return aside


def _add_one(ids: Ids, vocab_size: int) -> Reals:
    """Return p_1 of every token [V]."""
    return (np.bincount(ids, minlength=vocab_size) + 1) / (ids.size + vocab_size)


def _find(table: Ids, keys: Ids) -> Ids:
    """Return the index of each key in the sorted table, or −1 if it does not occur."""
    index = np.minimum(np.searchsorted(table, keys), table.size - 1)
    return np.where(table[index] == keys, index, -1)


def _mix(weight: Reals, frequency: Reals, lower: Reals) -> Reals:
    return weight * frequency + (1 - weight) * lower


def _mixing_weights(frequency: Reals, lower: Reals, bucket: Ids) -> Reals:
    """Return λ of each bucket [1 + BUCKETS] by expectation maximisation (Jelinek and Mercer 1980); bucket 0 has λ = 0.

    Each step adds one token to either side. This keeps λ below 1, where an n-gram that was never seen would cost
    infinitely many bits, and gives a bucket without tokens λ = 0.5.
    """
    tokens = np.bincount(bucket, minlength=1 + BUCKETS)
    weights = np.full(1 + BUCKETS, 0.5)
    for _ in range(EM_STEPS):
        share = weights[bucket] * frequency
        from_frequency = share / (share + (1 - weights[bucket]) * lower)
        weights = (np.bincount(bucket, weights=from_frequency, minlength=1 + BUCKETS) + 1) / (tokens + 2)
    weights[0] = 0.0
    return weights
