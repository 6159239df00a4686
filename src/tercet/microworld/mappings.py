"""Text in which what comes next can only be known from the context, and questions about it. No torch here.

    pairs    " ba to di ku ba to …" of a mapping that is drawn anew for every document: each word goes with another word
    copy     a passage of words that is drawn anew, then pieces of it, from anywhere

In neither does anything follow from the words themselves: who has not seen the document's beginning can only guess.

Every word has outputs that are reserved: in training they never stand behind it, in any kind of document. Held-out
mappings are made of those alone, so that no weight can know any of their pairs. Words are many, so that which outputs are missing
is not worth learning either.
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
SIZES = {18: (2, 3), 48: (4, 8), 98: (6, 12)}  # pairs of a mapping in training, for documents of so many tokens
ASKED = 8  # pairs of a mapping that is asked about
RESERVED = 2  # outputs of each word that training does not put behind it
PASSAGE = {18: (3, 5), 48: (4, 10), 98: (6, 16)}  # words of a passage, for documents of so many tokens
PIECE = (2, 5)  # words of a piece of it
TEMPLATE, SEPARATOR = " {input} {output}", ""  # as `tercet prompt` wants them; every word has its space before it


@dataclass(frozen=True)
class Prompt:
    """Examples (word, output) of one mapping, and a question of the same with its answer."""

    examples: tuple[tuple[str, str], ...]
    question: str
    answer: str

    @property
    def text(self) -> str:
        """What a model continues."""
        return "".join(f" {word} {output}" for word, output in self.examples) + f" {self.question}"

    @property
    def shown(self) -> bool:
        """Whether the answer stands in the examples."""
        return (self.question, self.answer) in self.examples

    @property
    def ceiling(self) -> float:
        """The chance of being right for one who knows of the mapping that its words are all different, and the examples."""
        seen = {word for pair in self.examples for word in pair} | {self.question}
        return 1.0 if self.shown else 1.0 / (len(WORDS) - len(seen))


class World:
    """The reserved outputs of a seed, and documents and questions that keep to them."""

    def __init__(self, seed: int) -> None:
        order = list(WORDS)
        Random(f"mappings/{seed}").shuffle(order)
        self.seed = seed
        # those that come next in a random circle: each word is reserved for equally many
        self.reserved = {w: tuple((order * 2)[i + 1 : i + 1 + RESERVED]) for i, w in enumerate(order)}

    def mapping(self, size: int, heldout: bool, rng: Random) -> dict[str, str]:
        """`size` words, each with another output: a reserved one where `heldout`, else one that is not. All are different."""
        while True:  # outputs of two words may be the same, or among the words: then all are drawn again
            words = rng.sample(WORDS, size)
            outputs = [self._follower(word, heldout, rng) for word in words]
            if len({*words, *outputs}) == 2 * size:
                return dict(zip(words, outputs))

    def _follower(self, word: str, heldout: bool, rng: Random) -> str:
        return rng.choice([w for w in WORDS if (w in self.reserved[word]) is heldout])

    def _passage(self, size: int, rng: Random) -> list[str]:
        """Different words of which none stands before one of its reserved outputs."""
        while True:
            words = rng.sample(WORDS, size)
            if not any(b in self.reserved[a] for a, b in pairwise(words)):
                return words

    def documents(self, family: Family, count: int, tokens: int, *, heldout: bool = False) -> Iterator[Document]:
        """`count` documents of `tokens` words, each of which is a token.

        Raises ConfigError for an unknown family, or a length that is none of those that are written.
        """
        if family not in FAMILIES:
            raise ConfigError(f"family is {family!r}; wanted one of {', '.join(FAMILIES)}")
        if tokens not in SIZES:
            raise ConfigError(f"documents of {tokens} tokens; wanted one of {', '.join(map(str, SIZES))}")
        side = "heldout" if heldout else "train"
        for number in range(count):
            rng = Random(f"{self.seed}/{side}/{family}/{tokens}/{number}")
            if family == "pairs":
                words = self._paired(tokens, heldout, rng)
            else:
                words = self._copied(tokens, rng)
            yield Document("".join(f" {word}" for word in words), family, f"{family}/{side}/{tokens}/{number}")

    def _paired(self, count: int, heldout: bool, rng: Random) -> list[str]:
        """Pairs of a mapping in any order, but no word behind an output that it is reserved for."""
        pairs = self.mapping(rng.choice(SIZES[count]), heldout, rng)
        words: list[str] = []
        while len(words) < count:
            free = [w for w in pairs if not words or w not in self.reserved[words[-1]]]
            if not free:  # of two words both may be reserved for an output
                return self._paired(count, heldout, rng)
            word = rng.choice(free)
            words += (word, pairs[word])
        return words

    def _copied(self, count: int, rng: Random) -> list[str]:
        """A passage and then pieces of it, so that the place says nothing: only the words before say how it goes on."""
        passage = self._passage(rng.randint(*PASSAGE[count]), rng)
        words = list(passage)
        while len(words) < count:
            starts = [i for i, word in enumerate(passage[:-1]) if word not in self.reserved[words[-1]]]
            if not starts:  # of three words both others may be reserved for the last: another passage
                return self._copied(count, rng)
            start = rng.choice(starts)
            words += passage[start : start + rng.randint(*PIECE)]
        return words[:count]

    def prompts(self, count: int, shots: int, *, heldout: bool = True, seed: int = 0) -> list[Prompt]:
        """`count` questions, each of a mapping of its own, with `shots` examples drawn from that mapping before it.

        Mapping and question are the same for every number of shots, and fewer examples are the last ones of more.
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
        """A held-out mapping and `shots` examples drawn from it; more examples begin with the fewer ones."""
        rng = Random(f"{self.seed}/drawn/{number}")
        pairs = self.mapping(ASKED, True, rng)
        return pairs, [rng.choice(list(pairs.items())) for _ in range(shots)]

    def tasks(self, count: int, shots: int) -> Iterator[Question]:
        """Held-out questions whose examples stand in the prompt, for `tercet prompt --questions … --shots 0`."""
        for number, prompt in enumerate(self.prompts(count, shots)):
            asked = (Message("user", prompt.text.removeprefix(" ")),)
            yield Question(asked, (prompt.answer,), f"{shots} examples", f"pairs/{shots}/{number}", "combination")


def neighbours(text: str) -> set[tuple[str, str]]:
    """Every (word, next word) of a text: what a model trained on it can have learnt by heart."""
    return set(pairwise(text.split()))
