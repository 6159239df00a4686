"""How much of an evaluation set stands in the training text: n-gram overlap as in GPT-3 (Brown et al. 2020, appendix C).

An item is dirty where any run of N words of it occurs in a training document. N is the 5th percentile of the items'
lengths, at least 8 and at most 13 words. N-grams that more than 10 training documents hold are common phrases and do not
count. Case, punctuation and white space do not matter. An item of fewer than N words cannot be told, and is counted as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.statistics.significance import score

SHORTEST, LONGEST, COMMON = 8, 13, 10
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Contamination:
    """Ids of the items that training holds (`dirty`), and of those too short to tell (`short`), by n-grams of `n` words."""

    n: int
    items: int
    dirty: frozenset[str]
    short: frozenset[str]

    def split(self, ids: Sequence[str], scores: Sequence[float], groups: Sequence[str] | None = None) -> dict[str, Any]:
        """The share of dirty items among those long enough to tell, and the score over clean and over dirty items.

        Items too short to tell count as clean, as in GPT-3. Intervals are over the documents of `groups` where given.
        What has no items is None.
        """

        def part(kept: Sequence[bool], values: Sequence[float]) -> dict[str, Any] | None:
            chosen = [n for n, keep in enumerate(kept) if keep]
            if not chosen:
                return None
            return score([values[n] for n in chosen], groups and [groups[n] for n in chosen]).to_json()

        dirty, told = [id in self.dirty for id in ids], [id not in self.short for id in ids]
        return {
            "ngram": self.n, "share": part(told, [float(d) for d in dirty]), "found": sum(dirty), "told": sum(told),
            "too_short": len(ids) - sum(told), "clean": part([not d for d in dirty], scores), "dirty": part(dirty, scores),
        }  # fmt: skip


def words(text: str) -> list[str]:
    """The words of a text, case folded, without punctuation."""
    return _WORD.findall(text.casefold())


def ngram_length(lengths: Sequence[int]) -> int:
    """N: the 5th percentile of the lengths in words (the lower of two), within 8 and 13. Raises ConfigError without any."""
    if not lengths:
        raise ConfigError("contamination: no items to look for")
    return max(SHORTEST, min(LONGEST, sorted(lengths)[int(0.05 * (len(lengths) - 1))]))


def contamination(
    tasks: Mapping[str, Mapping[str, str]], training: Iterable[str], n: int = 0
) -> dict[str, Contamination]:
    """Look for every task's items (texts by id) in the training documents, which are read once, as a stream.

    `n` 0 chooses it for each task as above. Memory grows with the items, not with the training text.
    """
    split = {name: {id: words(text) for id, text in items.items()} for name, items in tasks.items()}
    sizes = {name: n or ngram_length([len(w) for w in items.values()]) for name, items in split.items()}
    # an n-gram says its length itself, so that one table serves all tasks
    seen = {g: 0 for name, items in split.items() for w in items.values() for g in _ngrams(w, sizes[name])}
    lengths = {len(g) for g in seen}
    for document in training:
        found = words(document)
        for gram in {g for size in lengths for g in _ngrams(found, size) if g in seen}:
            seen[gram] += 1
    out = {}
    for name, items in split.items():
        size = sizes[name]
        dirty = frozenset(id for id, w in items.items() if any(0 < seen[g] <= COMMON for g in _ngrams(w, size)))
        out[name] = Contamination(size, len(items), dirty, frozenset(id for id, w in items.items() if len(w) < size))
    return out


def _ngrams(found: Sequence[str], n: int) -> Iterable[tuple[str, ...]]:
    return (tuple(found[i : i + n]) for i in range(len(found) - n + 1))
