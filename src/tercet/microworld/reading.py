"""Generate stories of one to three sentences, each with a question that only the story answers.

A scheme is a kind of event. The pair that the question is about (the ball and the box) is the key and decides the
split. People, colours and the distracting sentence vary freely. A distracting pair belongs to the SFT split, except for
pairs with colours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from tercet.microworld.items import MicroworldItem, items_for, pick_other, split_of
from tercet.microworld.world import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    COUNTED,
    EATEN,
    FOOD,
    PERSON,
    THINGS,
    VISITED,
    article,
    number_forms,
)

_NAMES = tuple(PERSON)
_OBJECTS = tuple(THINGS)
_NUMBERS = tuple(map(str, range(2, 10)))
# Number of stories for each pair.
_TELLINGS = 2


@dataclass(frozen=True, slots=True)
class Told:
    """A story, the `fields` of its question template, and the answers."""

    story: str
    fields: dict[str, str]
    short: tuple[str, ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Scheme:
    """A kind of event over pairs of `firsts` and `seconds`; `tell(first, second, rng)` writes a story about a pair."""

    name: str
    firsts: tuple[str, ...]
    seconds: tuple[str, ...]
    tell: Callable[[str, str, Random], Told]
    seen: tuple[str, ...]
    unseen: tuple[str, ...]


def key_of(scheme: str, first: str, second: str) -> str:
    """Return the key of a pair in a scheme."""
    return f"reading/{scheme}/{first}/{second}"


def second_for(rng: Random, scheme: str, first: str, seconds: tuple[str, ...], *taken: str) -> str:
    """Return a random element of `seconds` that is not in `taken` and whose pair with `first` is not reserved."""
    free = [other for other in seconds if other not in taken and split_of(key_of(scheme, first, other)) == "sft"]
    return rng.choice(free)


def _tell(rng: Random, main: str, other: str, always_both: bool = False) -> str:
    """Join the answering sentence with a distracting one in random order; often leave out the distracting one."""
    if not always_both and rng.random() < 0.35:
        return main
    lines = [main, other]
    rng.shuffle(lines)
    return " ".join(lines)


def _people(rng: Random, *taken: str) -> tuple[str, str]:
    one = pick_other(rng, _NAMES, *taken)
    return one, pick_other(rng, _NAMES, one, *taken)


def _where(thing: str, container: str, tail: str = "") -> tuple[tuple[str, ...], tuple[str, ...]]:
    short = (f"in the {container}", f"the {container}", container)
    return short, (f"The {thing} is in the {container}{tail}.", f"It is in the {container}{tail}.")


def _put(thing: str, container: str, rng: Random) -> Told:
    one, other = _people(rng)
    thing2 = pick_other(rng, _OBJECTS, thing)
    container2 = second_for(rng, "put", thing2, CONTAINERS, container)
    main = f"{one} puts the {rng.choice(COLOURS)} {thing} in the {container}."
    story = _tell(rng, main, f"{other} puts the {rng.choice(COLOURS)} {thing2} in the {container2}.")
    return Told(story, {"o": thing}, *_where(thing, container))


def _move(thing: str, container: str, rng: Random) -> Told:
    one, other = _people(rng)
    before = second_for(rng, "put", thing, CONTAINERS, container)
    story = f"{one} puts the {thing} in the {before}. Then {other} moves the {thing} to the {container}."
    short, sentences = _where(thing, container)
    return Told(story, {"o": thing}, short, (*sentences, *_where(thing, container, " now")[1]))


def _colour(colour: str, thing: str, rng: Random) -> Told:
    one, other = _people(rng)
    thing2 = pick_other(rng, _OBJECTS, thing)
    colour2 = pick_other(rng, COLOURS, colour)
    story = _tell(rng, f"{one} has {article(colour)} {thing}.", f"{other} has {article(colour2)} {thing2}.")
    sentences = (f"The {thing} is {colour}.", f"It is {colour}.", f"{one}'s {thing} is {colour}.")
    return Told(story, {"o": thing}, (colour,), sentences)


def _who(name: str, thing: str, rng: Random) -> Told:
    other = pick_other(rng, _NAMES, name)
    thing2 = second_for(rng, "who", other, _OBJECTS, thing)
    main = f"{name} has {article(rng.choice(COLOURS))} {thing}."
    story = _tell(rng, main, f"{other} has {article(rng.choice(COLOURS))} {thing2}.", always_both=True)
    return Told(story, {"o": thing}, (name,), (f"{name} has the {thing}.", f"{name} has it.", f"{name} does."))


def _give(name: str, thing: str, rng: Random) -> Told:
    one, other = _people(rng, name)
    story = f"{one} has the {thing}. {one} gives the {thing} to {name}."
    if rng.random() < 0.5:
        thing2 = second_for(rng, "give", other, _OBJECTS, thing)
        story = _tell(rng, story, f"{other} has the {thing2}.", always_both=True)
    sentences = (f"{name} has the {thing}.", f"{name} has the {thing} now.", f"{name} has it.", f"{name} does.")
    return Told(story, {"o": thing}, (name,), sentences)


def _go(name: str, place: str, rng: Random) -> Told:
    other = pick_other(rng, _NAMES, name)
    place2 = second_for(rng, "go", other, VISITED, place)
    story = _tell(rng, f"{name} goes to the {place}.", f"{other} goes to the {place2}.")
    short = (f"at the {place}", f"the {place}", place)
    return Told(story, {"p": name}, short, (f"{name} is at the {place}.", f"{PERSON[name].pronoun} is at the {place}."))


def _eat(name: str, food: str, rng: Random) -> Told:
    other = pick_other(rng, _NAMES, name)
    food2 = second_for(rng, "eat", other, EATEN, food)
    story = _tell(rng, f"{name} eats {article(food)}.", f"{other} eats {article(food2)}.")
    sentences = (f"{name} eats {article(food)}.", f"{PERSON[name].pronoun} eats {article(food)}.")
    return Told(story, {"p": name}, (article(food), food), sentences)


def _see(name: str, animal: str, rng: Random) -> Told:
    other = pick_other(rng, _NAMES, name)
    animal2 = second_for(rng, "see", other, SEEN_ANIMALS, animal)
    story = _tell(rng, f"{name} sees {article(animal)}.", f"{other} sees {article(animal2)}.")
    sentences = (f"{name} sees {article(animal)}.", f"{PERSON[name].pronoun} sees {article(animal)}.")
    return Told(story, {"p": name}, (article(animal), animal), sentences)


def _count(food: str, number: str, rng: Random) -> Told:
    name = rng.choice(_NAMES)
    food2 = pick_other(rng, COUNTED, food)
    number2 = second_for(rng, "count", food2, _NUMBERS, number)
    parts = [f"{number} {FOOD[food].plural}", f"{number2} {FOOD[food2].plural}"]
    rng.shuffle(parts)
    plural = FOOD[food].plural
    sentences = (f"{name} has {number} {plural}.", f"{PERSON[name].pronoun} has {number} {plural}.")
    told = {"p": name, "f": plural}
    return Told(f"{name} has {' and '.join(parts)}.", told, number_forms(int(number)), sentences)


SEEN_ANIMALS = tuple(animal.name for animal in ANIMALS)

_WHERE = ("Where is the {o}?", "Tell me where the {o} is.", "Do you know where the {o} is?")
_WHO = ("Who has the {o}?", "Tell me who has the {o}.", "Do you know who has the {o}?")


def _now(questions: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{question[:-1]} now{question[-1]}" for question in questions)


_SCHEMES = (
    Scheme("put", _OBJECTS, CONTAINERS, _put, _WHERE, ("Can you tell me where the {o} is?",)),
    Scheme("move", _OBJECTS, CONTAINERS, _move, _now(_WHERE), ("Can you tell me where the {o} is now?",)),
    Scheme(
        "colour",
        COLOURS,
        _OBJECTS,
        _colour,
        ("What colour is the {o}?", "Tell me the colour of the {o}.", "Which colour is the {o}?"),
        ("Can you name the colour of the {o}?",),
    ),
    Scheme("who", _NAMES, _OBJECTS, _who, _WHO, ("Can you tell me who has the {o}?",)),
    Scheme("give", _NAMES, _OBJECTS, _give, _now(_WHO), ("Can you tell me who has the {o} now?",)),
    Scheme(
        "go",
        _NAMES,
        VISITED,
        _go,
        ("Where is {p}?", "Tell me where {p} is.", "Do you know where {p} is?"),
        ("Can you tell me where {p} is?",),
    ),
    Scheme(
        "eat",
        _NAMES,
        EATEN,
        _eat,
        ("What does {p} eat?", "Tell me what {p} eats.", "Do you know what {p} eats?"),
        ("Can you tell me what {p} eats?",),
    ),
    Scheme(
        "see",
        _NAMES,
        SEEN_ANIMALS,
        _see,
        ("What does {p} see?", "Tell me what {p} sees.", "Do you know what {p} sees?"),
        ("Can you tell me what {p} sees?",),
    ),
    Scheme(
        "count",
        COUNTED,
        _NUMBERS,
        _count,
        ("How many {f} does {p} have?", "Tell me how many {f} {p} has.", "Do you know how many {f} {p} has?"),
        ("Can you tell me how many {f} {p} has?",),
    ),
)


def reading_items() -> Iterator[MicroworldItem]:
    """Yield the stories with their questions; the words of a story depend on its key, not on a seed."""
    for scheme in _SCHEMES:
        for first in scheme.firsts:
            for second in scheme.seconds:
                key = key_of(scheme.name, first, second)
                stories: dict[str, Told] = {}
                for telling in range(_TELLINGS):
                    told = scheme.tell(first, second, Random(f"{key}/{telling}"))
                    stories[told.story] = told
                for told in stories.values():
                    yield from items_for(
                        key,
                        "reading",
                        scheme.name,
                        seen=[f"{told.story} {question.format(**told.fields)}" for question in scheme.seen],
                        unseen=[f"{told.story} {question.format(**told.fields)}" for question in scheme.unseen],
                        short=told.short,
                        sentences=told.sentences,
                    )
