"""Generate text whose continuation depends only on its context, and questions about it, without torch.

    pairs    " ba to di ku ba to …": pairs of a mapping from words to words that is drawn anew for every document
    copy     a passage of words that is drawn anew, then pieces from anywhere in it

In neither does the next word follow from the words themselves: without the start of the document a model can only
guess.

Every word has reserved outputs, which never follow it in training, in any kind of document. Held-out mappings consist
only of reserved pairs, so that a model cannot have memorised any of them. There are so many words that learning which
outputs are missing does not help either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Literal

from tercet.data.types import Document, Message, Question
from tercet.errors import ConfigError

Family = Literal["pairs", "copy"]
FAMILIES: tuple[Family, ...] = ("pairs", "copy")
WORDS = tuple(consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou")
SIZES = {18: (2, 3), 48: (4, 8), 98: (6, 12)}  # tokens of a training document → smallest and largest number of pairs
ASKED = 8  # pairs of a mapping that a question is about
RESERVED = 2  # outputs of each word that never follow it in training
PASSAGE = {18: (3, 5), 48: (4, 10), 98: (6, 16)}  # tokens of a document → fewest and most words of its passage
PIECE = (2, 5)  # fewest and most words of a piece of the passage
TEMPLATE, SEPARATOR = " {input} {output}", ""  # options of `tercet prompt`; every word has its space before it


@dataclass(frozen=True)
class Prompt:
    """Examples (word, output) of one mapping, and a question about the same mapping with its answer."""

    examples: tuple[tuple[str, str], ...]
    question: str
    answer: str

    @property
    def text(self) -> str:
        """Return the text that a model continues."""
        return "".join(f" {word} {output}" for word, output in self.examples) + f" {self.question}"

    @property
    def in_context(self) -> bool:
        """Return whether the answer is among the examples."""
        return (self.question, self.answer) in self.examples

    @property
    def ceiling(self) -> float:
        """Return the best possible accuracy, given the examples and that all words of a mapping are different."""
        seen = {word for pair in self.examples for word in pair} | {self.question}
        return 1.0 if self.in_context else 1.0 / (len(WORDS) - len(seen))


class World:
    """The reserved outputs of a seed, and documents and questions that keep to them."""

    def __init__(self, seed: int) -> None:
        order = list(WORDS)
        Random(f"mappings/{seed}").shuffle(order)
        self.seed = seed
        # The next words in a random circle: each word is a reserved output of equally many words.
        self.reserved = {w: tuple((order * 2)[i + 1 : i + 1 + RESERVED]) for i, w in enumerate(order)}

    def mapping(self, size: int, heldout: bool, rng: Random) -> dict[str, str]:
        """Return `size` words with their outputs, all different; outputs are reserved ones only if `heldout`."""
        while True:  # two outputs may coincide, or be among the words: then everything is drawn again
            words = rng.sample(WORDS, size)
            outputs = [self._follower(word, heldout, rng) for word in words]
            if len({*words, *outputs}) == 2 * size:
                return dict(zip(words, outputs))

    def _follower(self, word: str, heldout: bool, rng: Random) -> str:
        return rng.choice([w for w in WORDS if (w in self.reserved[word]) is heldout])

    def _passage(self, size: int, rng: Random) -> list[str]:
        """Return different words, none of them followed by one of its reserved outputs."""
        while True:
            words = rng.sample(WORDS, size)
            if not any(b in self.reserved[a] for a, b in pairwise(words)):
                return words

    def documents(self, family: Family, count: int, tokens: int, *, heldout: bool = False) -> Iterator[Document]:
        """Yield `count` documents of `tokens` words, each of which is one token.

        Raises ConfigError for an unknown family or an unsupported length.
        """
        if family not in FAMILIES:
            raise ConfigError(f"family is {family!r}; wanted one of {', '.join(FAMILIES)}")
        if tokens not in SIZES:
            raise ConfigError(f"documents of {tokens} tokens; wanted a length of {', '.join(map(str, SIZES))} tokens")
        side = "heldout" if heldout else "train"
        for number in range(count):
            rng = Random(f"{self.seed}/{side}/{family}/{tokens}/{number}")
            if family == "pairs":
                words = self._paired(tokens, heldout, rng)
            else:
                words = self._copied(tokens, rng)
            yield Document("".join(f" {word}" for word in words), family, f"{family}/{side}/{tokens}/{number}")

    def _paired(self, count: int, heldout: bool, rng: Random) -> list[str]:
        """Return pairs of a mapping in random order; no word follows an output for which it is reserved."""
        pairs = self.mapping(rng.choice(SIZES[count]), heldout, rng)
        words: list[str] = []
        while len(words) < count:
            free = [w for w in pairs if not words or w not in self.reserved[words[-1]]]
            if not free:  # a mapping of two words: both may be reserved outputs of the last word
                return self._paired(count, heldout, rng)
            word = rng.choice(free)
            words += (word, pairs[word])
        return words

    def _copied(self, count: int, rng: Random) -> list[str]:
        """Return a passage and then pieces of it; the next word depends on the words before, not on the position."""
        passage = self._passage(rng.randint(*PASSAGE[count]), rng)
        words = list(passage)
        while len(words) < count:
            starts = [i for i, word in enumerate(passage[:-1]) if word not in self.reserved[words[-1]]]
            if not starts:  # a passage of three words: both other words may be reserved, so draw another passage
                return self._copied(count, rng)
            start = rng.choice(starts)
            words += passage[start : start + rng.randint(*PIECE)]
        return words[:count]

    def prompts(self, count: int, shots: int, *, heldout: bool = True, seed: int = 0) -> list[Prompt]:
        """Return `count` questions, each about a mapping of its own and after `shots` examples of that mapping.

        Mapping and question do not depend on the number of shots; fewer examples are the last ones of more examples.
        """
        out = []
        for number in range(count):
            rng = Random(f"{self.seed}/prompts/{heldout}/{seed}/{number}")
            pairs = list(self.mapping(ASKED, heldout, rng).items())
            question, answer = rng.choice(pairs)
            examples = [rng.choice(pairs) for _ in range(shots)]
            out.append(Prompt(tuple(reversed(examples)), question, answer))
        return out

    def drawn(self, number: int, shots: int) -> tuple[dict[str, str], list[tuple[str, str]]]:
        """Return a held-out mapping and `shots` examples of it; more examples begin with the fewer ones."""
        rng = Random(f"{self.seed}/drawn/{number}")
        pairs = self.mapping(ASKED, True, rng)
        return pairs, [rng.choice(list(pairs.items())) for _ in range(shots)]

    def tasks(self, count: int, shots: int) -> Iterator[Question]:
        """Yield held-out questions with their examples in the prompt, for `tercet prompt --questions … --shots 0`."""
        for number, prompt in enumerate(self.prompts(count, shots)):
            turns = (Message("user", prompt.text.removeprefix(" ")),)
            yield Question(turns, (prompt.answer,), f"{shots} examples", f"pairs/{shots}/{number}", "combination")


def neighbours(text: str) -> set[tuple[str, str]]:
    """Return every (word, next word) of a text: the pairs that a model trained on it can have memorised."""
    return set(pairwise(text.split()))
