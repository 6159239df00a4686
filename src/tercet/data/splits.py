"""Split documents into training and held-out ones by their ids, and count text that occurs on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from tercet.data.types import Document
from tercet.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Overlap:
    """How much of a held-out set also occurs in the training set (counts)."""

    texts: int
    """Held-out texts."""
    duplicates: int
    """Held-out texts that are also whole training texts."""
    lines: int
    """Long lines in held-out texts."""
    shared_lines: int
    """Long held-out lines that are also lines of a training text."""

    @property
    def duplicate_share(self) -> float:
        """Share of held-out texts that are also whole training texts, 0 to 1."""
        return self.duplicates / self.texts if self.texts else 0.0

    @property
    def line_share(self) -> float:
        """Share of long held-out lines that also occur in training texts, 0 to 1."""
        return self.shared_lines / self.lines if self.lines else 0.0


def in_split(id: str, heldout: float, salt: str = "tercet") -> bool:
    """Return whether the document `id` is held out, for a held-out share `heldout` (0 to 1).

    Only the id decides, by a hash that is uniform in [0, 1). So a document keeps its side when others are added or
    removed, and a larger `heldout` only adds documents. Another `salt` gives another split. Raises ConfigError.
    """
    if not 0.0 <= heldout <= 1.0:
        raise ConfigError(f"--heldout-share is {heldout}; wanted a share from 0 to 1, for example 0.05")
    digest = hashlib.blake2b(f"{salt}\0{id}".encode(), digest_size=8).digest()
    # 53 bits, the precision of a float: more could round up to exactly 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53 < heldout


def split(documents: Iterable[Document], heldout: float) -> tuple[list[Document], list[Document]]:
    """Return (train, held-out) documents by `in_split`, in their order; either may be empty. Raises ConfigError."""
    parts: tuple[list[Document], list[Document]] = ([], [])
    for document in documents:
        parts[in_split(document.id, heldout)].append(document)
    return parts


def check_overlap(train: Iterable[str], heldout: Iterable[str], n: int = 60) -> Overlap:
    """Count held-out texts, and held-out lines of at least `n` characters, that also occur in the training texts.

    Texts and lines are compared with case and white space folded. Time is linear in both sets, memory only in the
    held-out set: `train` is read once, as a stream, after `heldout`.
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
    """Return the held-out documents whose text is not also a training text; case and white space are folded."""
    kept = [(fold(document.text), document) for document in heldout]
    candidates = {folded for folded, _ in kept}
    seen = {folded for document in train if (folded := fold(document.text)) in candidates}
    return [document for folded, document in kept if folded not in seen]


def fold(text: str) -> str:
    """Return `text` with case and white space folded, for comparisons."""
    return " ".join(text.casefold().split())


def _long_lines(text: str, n: int) -> Iterable[str]:
    # The length is measured after folding, because folding can make a line longer ("ß" becomes "ss").
    return (folded for line in text.splitlines() if len(folded := fold(line)) >= n)


def _count(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
