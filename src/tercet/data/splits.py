"""Held-out data: chosen by the document's id, and checked for text that training has seen."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from tercet.data.types import Document
from tercet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of a held-out set also stands in the training set (counts)."""

    texts: int
    """held-out texts"""
    duplicates: int
    """those that are in the training set as a whole"""
    lines: int
    """long lines in held-out texts"""
    shared_lines: int
    """those that are also a line of a training text"""

    @property
    def duplicate_share(self) -> float:
        """Share of held-out texts that training has seen as a whole, 0 to 1."""
        return self.duplicates / self.texts if self.texts else 0.0

    @property
    def line_share(self) -> float:
        """Share of long held-out lines that training has seen, 0 to 1."""
        return self.shared_lines / self.lines if self.lines else 0.0


def in_split(id: str, heldout: float, salt: str = "tercet") -> bool:
    """Whether the document `id` is held out, where a share `heldout` (0 to 1) is.

    The id alone decides, by a hash that is uniform in [0, 1). So a document stays on its side when others come or go,
    and a larger `heldout` only adds documents. Another `salt` gives another split. Raises ConfigError.
    """
    if not 0.0 <= heldout <= 1.0:
        raise ConfigError(f"heldout = {heldout}: wanted a share from 0 to 1, for example 0.05")
    digest = hashlib.blake2b(f"{salt}\0{id}".encode(), digest_size=8).digest()
    # 53 bits, as many as a float holds: more could round up to exactly 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53 < heldout


def split(documents: Iterable[Document], heldout: float) -> tuple[list[Document], list[Document]]:
    """Part documents into (train, held-out) by `in_split`, in their order; raises ConfigError. Either may be empty."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        parts[in_split(document.id, heldout)].append(document)
    return parts


def check_overlap(train: Iterable[str], heldout: Iterable[str], n: int = 60) -> Overlap:
    """Count held-out texts, and held-out lines of at least `n` characters, that also stand in the training texts.

    Texts and lines are compared with case and white space folded. Time is linear in both sets and memory in the
    held-out set only: `train` is read once, as a stream, after `heldout`.
    """
    texts: dict[str, int] = {}
    lines: dict[str, int] = {}
    for text in heldout:
        _count(texts, fold(text))
        for line in _long_lines(text, n):
            _count(lines, line)
    seen_texts: set[str] = set()
    seen_lines: set[str] = set()
    for text in train:
        if (folded := fold(text)) in texts:
            seen_texts.add(folded)
        seen_lines.update(line for line in _long_lines(text, n) if line in lines)
    return Overlap(
        texts=sum(texts.values()),
        duplicates=sum(texts[text] for text in seen_texts),
        lines=sum(lines.values()),
        shared_lines=sum(lines[line] for line in seen_lines),
    )


def drop_overlap(train: Iterable[Document], heldout: Iterable[Document]) -> list[Document]:
    """The held-out documents whose text, case and white space folded, is not also a training document's text."""
    kept = [(fold(document.text), document) for document in heldout]
    candidates = {folded for folded, _ in kept}
    seen = {folded for document in train if (folded := fold(document.text)) in candidates}
    return [document for folded, document in kept if folded not in seen]


def fold(text: str) -> str:
    """The text with case and white space folded, for comparing."""
    return " ".join(text.casefold().split())


def _long_lines(text: str, n: int) -> Iterable[str]:
    # A line shorter than n cannot fold to n or more characters but for a few letters ("ß" to "ss"): fold, then measure.
    return (folded for line in text.splitlines() if len(folded := fold(line)) >= n)


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
