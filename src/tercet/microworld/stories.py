"""Generate short stories for the pretraining text: people and animals, and events of the reading schemes."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from tercet.microworld.arithmetic import pair_split
from tercet.microworld.items import pick_other
from tercet.microworld.reading import second_for
from tercet.microworld.world import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    COUNTED,
    EATEN,
    FOOD,
    HOMES,
    PEOPLE,
    THINGS,
    VISITED,
    Person,
    article,
)

_OBJECTS = tuple(THINGS)
_ANIMAL_NAMES = tuple(animal.name for animal in ANIMALS)
_DAYS = ("One day,", "Today,", "In the morning,", "After lunch,")
_ENDINGS = (
    "Then {p} goes home. {s} is happy.",
    "It was a good day for {p} and {q}.",
    "Now it is night. {p} is tired and goes to bed.",
    "{p} and {q} laugh. They are good friends.",
    "Then the sun goes down. {q} says goodbye to {p}.",
)

# An event takes its main person, a friend, a random generator and the objects that the story has used so far.
Event = Callable[[Person, Person, Random, set[str]], str]


def _fresh(rng: Random, choices: tuple[str, ...], used: set[str]) -> str:
    """Pick an object that the story has not used, so that no later sentence contradicts an earlier one."""
    choice = pick_other(rng, choices, *used)
    used.add(choice)
    return choice


def _put(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    thing = _fresh(rng, _OBJECTS, used)
    container = second_for(rng, "put", thing, CONTAINERS)
    lines = [
        f"{one.name} has {article(rng.choice(COLOURS))} {thing}.",
        f"{one.name} puts the {thing} in the {container}.",
    ]
    if rng.random() < 0.5:
        lines.append(f"Now the {thing} is in the {container}.")
    else:
        lines.append(f'"Where is the {thing}?" says {friend.name}. "It is in the {container}," says {one.name}.')
    return " ".join(lines)


def _move(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    thing = _fresh(rng, _OBJECTS, used)
    before = second_for(rng, "put", thing, CONTAINERS)
    after = second_for(rng, "move", thing, CONTAINERS, before)
    return (
        f"{one.name} puts the {thing} in the {before}. Then {friend.name} moves the {thing} to the {after}. "
        f"The {thing} is in the {after} now."
    )


def _give(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    thing = second_for(rng, "give", friend.name, _OBJECTS, *used)
    used.add(thing)
    return (
        f"{one.name} has {article(rng.choice(COLOURS))} {thing}. {one.name} gives the {thing} to {friend.name}. "
        f"Now {friend.name} has the {thing}."
    )


def _see(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    name = second_for(rng, "see", one.name, _ANIMAL_NAMES, *used)
    used.add(name)
    animal = next(animal for animal in ANIMALS if animal.name == name)
    facts = [
        f"It is {animal.colour}.",
        f"It has {animal.legs} legs.",
        f"It lives {HOMES[animal.home]} the {animal.home}.",
        f"It eats {animal.food}.",
        f"The {name} says {animal.sound}.",
    ]
    told = " ".join(rng.sample(facts, rng.randint(1, 3)))
    return f"{one.name} sees {article(name)}. {told}"


def _eat(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    food = second_for(rng, "eat", one.name, EATEN)
    other = second_for(rng, "eat", friend.name, EATEN, food)
    return (
        f"{one.name} eats {article(food)} and {friend.name} eats {article(other)}. "
        f'"The {food} is {FOOD[food].taste}," says {one.name}.'
    )


def _more(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    plural = FOOD[_fresh(rng, COUNTED, used)].plural
    while True:
        first, second = rng.randint(2, 9), rng.randint(2, 9)
        if pair_split("+", first, second) == "sft":
            return (
                f"{one.name} has {first} {plural}. {friend.name} gives {second} {plural} to {one.name}. "
                f"Now {one.name} has {first + second} {plural}."
            )


def _fewer(one: Person, friend: Person, rng: Random, used: set[str]) -> str:
    plural = FOOD[_fresh(rng, COUNTED, used)].plural
    while True:
        first, second = rng.randint(4, 9), rng.randint(2, 7)
        if first - second >= 2 and pair_split("-", first, second) == "sft":
            return (
                f"{one.name} has {first} {plural} and gives {second} of them to {friend.name}. "
                f"Now {one.name} has {first - second} {plural}."
            )


_EVENTS: tuple[Event, ...] = (_put, _move, _give, _see, _see, _eat, _more, _fewer)


def _opening(one: Person, friend: Person, rng: Random) -> str:
    about = [
        f"{one.name} lives near the {one.home}.",
        f"{one.name} is {article(one.job)}.",
        f"{one.pronoun} has {article(one.pet)}.",
        f"{one.pronoun} likes {one.food} best.",
        f"{one.name}'s favourite colour is {one.colour}.",
    ]
    # The first sentence names the person, so that "She" and "He" are clear.
    first, *rest = rng.sample(about[:2], 2)
    told = [first, *rng.sample([*rest, *about[2:]], rng.randint(0, 2))]
    place = second_for(rng, "go", one.name, VISITED)
    told.append(f"{rng.choice(_DAYS)} {one.name} goes to the {place}. {friend.name} is at the {place} too.")
    return " ".join(told)


def story(rng: Random, length: int) -> str:
    """Return a story of at most about `length` characters: an opening, events between two friends, an ending."""
    one = rng.choice(PEOPLE)
    friend = pick_other(rng, PEOPLE, one)
    ending = rng.choice(_ENDINGS).format(p=one.name, q=friend.name, s=one.pronoun)
    told = [_opening(one, friend, rng)]
    used: set[str] = set()
    while sum(map(len, told)) + len(ending) < length - 100 and len(told) < 6:
        hero, other = rng.sample((one, friend), 2)
        told.append(rng.choice(_EVENTS)(hero, other, rng, used))
    return " ".join((*told, ending))
