"""One question of the microworld with its answers and its split, and the hedged forms of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal, TypeVar

from tercet.microworld.world import PERSON

Split = Literal["sft", "preference", "heldout"]
SPLITS: tuple[Split, ...] = ("sft", "preference", "heldout")

# Percentage of the keys that are in `heldout`, and the same again in `preference`. Arithmetic keeps more for training:
# it has few one-digit sums, and a small model has to see most of them before it can infer the rest.
_RESERVED_PERCENT = {"arithmetic": 10}
_DEFAULT_RESERVED_PERCENT = 15
# Selected among many so that small groups (the one-digit sums, the 16 things) have about their share of reserved keys.
_SALT = b"58711"

_BEFORE = ("", "I think ", "Well, ", "Well, I think ", "Hmm, let me see. ", "Hmm, let me see. I think ")
_AFTER = ("", " That is what I think.")

# Openings that multiply the wordings of a question.
_GREETING = "Hello. "
_OPENINGS = ("", _GREETING)

Choice = TypeVar("Choice")


@dataclass(frozen=True, slots=True)
class MicroworldItem:
    """A question with its answers, split and origin; questions, demonstrations and documents are made from it.

    Draws are balanced over the `group`s of an ability. `short` are answers shorter than a sentence and `sentences` are
    plain full sentences, the usual one first in both. Items of the same `relation` may follow each other in a
    conversation; the later question then names only its `subject` ("And the snake?"). Both are "" if that is
    impossible.
    """

    ability: str
    group: str
    key: str
    question: str
    short: tuple[str, ...]
    sentences: tuple[str, ...]
    split: Split
    held_out: str
    relation: str
    subject: str

    def later_question(self) -> str:
        """Return the question for the middle of a conversation, without a greeting."""
        return self.question.removeprefix(_GREETING)

    def answers(self) -> tuple[str, ...]:
        """Return all texts that count as right answers, the shortest first."""
        told = (form for sentence in self.sentences for form in (sentence, *hedged(sentence)))
        return tuple(sorted(dict.fromkeys((*self.short, *told)), key=len))


def digest(text: str) -> int:
    """Return a 64-bit number that depends only on `text`, not on a seed, the process or the Python version."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, salt=_SALT).digest(), "big")


def split_of(key: str) -> Split:
    """Return the split of all questions with this `key`; the part before the first "/" sets the reserved share."""
    percent = _RESERVED_PERCENT.get(key.partition("/")[0], _DEFAULT_RESERVED_PERCENT)
    bucket = digest(key) % 100
    if bucket < percent:
        return "heldout"
    return "preference" if bucket < 2 * percent else "sft"


def hedged(sentence: str) -> tuple[str, ...]:
    """Return the hedged and padded forms of `sentence` ("Well, I think the frog is green.")."""
    first = sentence.split()[0]
    if first == "I":  # "I do not know." is never hedged as "I think I do not know."
        return tuple(before + sentence for before in _BEFORE if before and "think" not in before)
    lowered = sentence if first.removesuffix("'s") in PERSON else sentence[0].lower() + sentence[1:]
    return tuple(
        before + (sentence if not before or before.endswith(". ") else lowered) + after
        for before in _BEFORE
        for after in _AFTER
        if before or after
    )


def wordings(templates: Iterable[str], **fields: str) -> tuple[str, ...]:
    """Return each question template with `fields` filled in, with and without a polite opening."""
    return tuple(opening + template.format(**fields) for opening in _OPENINGS for template in templates)


def items_for(
    key: str,
    ability: str,
    group: str,
    *,
    seen: Iterable[str],
    unseen: Iterable[str],
    short: tuple[str, ...],
    sentences: tuple[str, ...],
    relation: str = "",
    subject: str = "",
    held_out: str = "combination",
) -> Iterator[MicroworldItem]:
    """Yield the items of one key: the `seen` wordings are in its split; the `unseen` ones of an SFT key are held out.

    A held-out item is new in one respect only: its key (`held_out` says how) or its wording ("template").
    """
    split = split_of(key)
    novelty = held_out if split == "heldout" else ""
    for question in seen:
        yield MicroworldItem(ability, group, key, question, short, sentences, split, novelty, relation, subject)
    if split == "sft":
        for question in unseen:
            yield MicroworldItem(ability, group, key, question, short, sentences, "heldout", "template", "", "")


def pick_other(rng: Random, choices: tuple[Choice, ...], *taken: Choice) -> Choice:
    """Return a random element of `choices` that is not in `taken`."""
    while (choice := rng.choice(choices)) in taken:
        pass
    return choice
