"""Overlap of evaluation items with training text, by n-grams as in GPT-3 (Brown et al. 2020, appendix C).

An item is dirty if any N consecutive words of it occur in a training document. N is the 5th percentile of the items'
lengths, at least 8 and at most 13 words. N-grams in more than 10 training documents are common phrases and do not
count. Case, punctuation and white space do not matter. Items of fewer than N words cannot be checked and are counted
apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.statistics.significance import score

MIN_NGRAM, MAX_NGRAM = 8, 13  # words
MAX_DOCUMENTS = 10  # an n-gram in more training documents is a common phrase
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Contamination:
    """Ids of the items that share `n` words with training text (`dirty`), and of those with fewer words (`short`)."""

    n: int
    items: int
    dirty: frozenset[str]
    short: frozenset[str]

    def split(self, ids: Sequence[str], scores: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the share of dirty items among those long enough, and the mean score of clean and of dirty items.

        Items that are too short count as clean, as in GPT-3. Intervals are over the documents of `groups`, if given. A
        number without any items is None.
        """

        def mean_of(keep: Sequence[bool], values: Sequence[float]) -> dict[str, Any] | None:
            kept = [n for n, is_kept in enumerate(keep) if is_kept]
            if not kept:
                return None
            return score([values[n] for n in kept], groups and [groups[n] for n in kept]).to_json()

        dirty, long_enough = [id in self.dirty for id in ids], [id not in self.short for id in ids]
        return {
            "ngram": self.n,
            "share": mean_of(long_enough, [float(d) for d in dirty]),
            "found": sum(dirty),
            "told": sum(long_enough),
            "too_short": len(ids) - sum(long_enough),
            "clean": mean_of([not d for d in dirty], scores),
            "dirty": mean_of(dirty, scores),
        }


def words(text: str) -> list[str]:
    """Return the words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def ngram_length(lengths: Sequence[int]) -> int:
    """Return N: the 5th percentile of the lengths in words (rounded down), within 8 and 13.

    Raises ConfigError if `lengths` is empty.
    """
    if not lengths:
        raise ConfigError("contamination: found no items to look for; wanted a task with at least one")
    return max(MIN_NGRAM, min(MAX_NGRAM, sorted(lengths)[int(0.05 * (len(lengths) - 1))]))


def contamination(
    tasks: Mapping[str, Mapping[str, str]], training: Iterable[str], n: int = 0
) -> dict[str, Contamination]:
    """Return the contamination of every task: its items, given as texts by id, are searched in the training documents.

    The documents are read once, as a stream; memory grows with the items only. `n` is the n-gram's length; 0 chooses it
    for each task, as described above.
    """
    split = {name: {id: words(text) for id, text in items.items()} for name, items in tasks.items()}
    sizes = {name: n or ngram_length([len(w) for w in items.values()]) for name, items in split.items()}
    # n-grams of different lengths differ, so one table serves all tasks
    seen = {g: 0 for name, items in split.items() for w in items.values() for g in _ngrams(w, sizes[name])}
    lengths = {len(g) for g in seen}
    for document in training:
        its_words = words(document)
        for gram in {g for size in lengths for g in _ngrams(its_words, size) if g in seen}:
            seen[gram] += 1
    out = {}
    for name, items in split.items():
        size = sizes[name]
        dirty = frozenset(id for id, w in items.items() if any(0 < seen[g] <= MAX_DOCUMENTS for g in _ngrams(w, size)))
        out[name] = Contamination(size, len(items), dirty, frozenset(id for id, w in items.items() if len(w) < size))
    return out


def _ngrams(text: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return (tuple(text[i : i + n]) for i in range(len(text) - n + 1))
