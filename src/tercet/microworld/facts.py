"""Closed-book questions: facts of the world, categories, translations of words, and unanswerable questions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import permutations

from tercet.microworld.items import MicroworldItem, digest, items_for, wordings
from tercet.microworld.words import LANGUAGES, WORDS
from tercet.microworld.world import (
    ANIMALS,
    COLOURS,
    CONTAINERS,
    FOODS,
    HOMES,
    PEOPLE,
    PERSON,
    THINGS,
    VISITED,
    article,
    capital,
    number_forms,
)


@dataclass(frozen=True, slots=True)
class Relation:
    """A kind of fact. In the templates {x} is the subject, {v} the value, {n} the bare value and {s} the pronoun.

    `seen` and `unseen` are question templates; `states` are templates of sentences that state it, the usual one first.
    """

    name: str
    seen: tuple[str, ...]
    unseen: tuple[str, ...]
    states: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fact:
    """A `subject` ("the frog"), its `relation` and the value in its short `forms`, the one used in sentences first."""

    group: str
    relation: Relation
    subject: str
    forms: tuple[str, ...]

    def sentences(self) -> tuple[str, ...]:
        """Return the fact as full sentences, the usual one first."""
        pronoun = PERSON[self.subject].pronoun if self.subject in PERSON else "It"
        fields = {"x": self.subject, "v": self.forms[0], "n": self.forms[-1], "s": pronoun}
        return tuple(capital(state.format(**fields)) for state in self.relation.states)


COLOUR = Relation(
    "colour",
    ("What colour is {x}?", "Tell me the colour of {x}.", "Which colour is {x}?", "Do you know the colour of {x}?"),
    ("Can you name the colour of {x}?", "What is the colour of {x}?"),
    ("{x} is {v}.", "{s} is {v}.", "The colour of {x} is {v}."),
)
LEGS = Relation(
    "legs",
    (
        "How many legs does {x} have?",
        "Tell me how many legs {x} has.",
        "What number of legs does {x} have?",
        "Do you know how many legs {x} has?",
    ),
    ("Can you tell me how many legs {x} has?", "Count the legs of {x}."),
    ("{x} has {v} legs.", "{s} has {v} legs."),
)
HOME = Relation(
    "home",
    ("Where does {x} live?", "Tell me where {x} lives.", "What is the home of {x}?", "Do you know where {x} lives?"),
    ("Can you tell me where {x} lives?", "In which place does {x} live?"),
    ("{x} lives {v}.", "{s} lives {v}.", "The home of {x} is the {n}."),
)
DIET = Relation(
    "food",
    ("What does {x} eat?", "Tell me what {x} eats.", "What is the food of {x}?", "Do you know what {x} eats?"),
    ("Can you tell me what {x} eats?", "Which food does {x} eat?"),
    ("{x} eats {v}.", "{s} eats {v}.", "The food of {x} is {v}."),
)
SOUND = Relation(
    "sound",
    ("What does {x} say?", "Tell me what {x} says.", "What sound does {x} make?", "Do you know what {x} says?"),
    ("Can you tell me what {x} says?", "Which sound does {x} make?"),
    ("{x} says {v}.", "{s} says {v}."),
)
SAYER = Relation(
    "sayer",
    (
        "Which animal says {x}?",
        "What animal says {x}?",
        "Tell me which animal says {x}.",
        "Do you know which animal says {x}?",
    ),
    ("Can you tell me which animal says {x}?", "Name the animal that says {x}."),
    ("{v} says {x}.", "It is {v}."),
)
NEAR = Relation("near", HOME.seen[:2] + HOME.seen[3:], HOME.unseen[:1], ("{x} lives {v}.", "{s} lives {v}."))
JOB = Relation(
    "job",
    ("What is {x}'s job?", "Tell me {x}'s job.", "What is the job of {x}?", "Do you know {x}'s job?"),
    ("Can you tell me {x}'s job?", "Which job does {x} have?"),
    ("{x} is {v}.", "{s} is {v}.", "{x} works as {v}."),
)
LIKED_FOOD = Relation(
    "liked-food",
    (
        "What is {x}'s favourite food?",
        "Tell me {x}'s favourite food.",
        "What is the favourite food of {x}?",
        "Do you know {x}'s favourite food?",
    ),
    ("Can you tell me {x}'s favourite food?", "Which food does {x} like best?"),
    ("{x}'s favourite food is {v}.", "The favourite food of {x} is {v}.", "{s} likes {v} best."),
)
LIKED_COLOUR = Relation(
    "liked-colour",
    tuple(question.replace("food", "colour") for question in LIKED_FOOD.seen),
    tuple(question.replace("food", "colour") for question in LIKED_FOOD.unseen),
    tuple(state.replace("food", "colour") for state in LIKED_FOOD.states),
)
PET = Relation(
    "pet",
    ("What pet does {x} have?", "Tell me what pet {x} has.", "What is {x}'s pet?", "Do you know what pet {x} has?"),
    ("Can you tell me what pet {x} has?", "Which animal is {x}'s pet?"),
    ("{x}'s pet is {v}.", "{s} has {v}.", "{x} has {v}."),
)
TASTE = Relation(
    "taste",
    ("How does {x} taste?", "Tell me how {x} tastes.", "What is the taste of {x}?", "Do you know how {x} tastes?"),
    ("Can you tell me how {x} tastes?", "What taste does {x} have?"),
    ("{x} tastes {v}.", "{s} tastes {v}.", "The taste of {x} is {v}."),
)
MATERIAL = Relation(
    "material",
    (
        "What is {x} made of?",
        "Tell me what {x} is made of.",
        "What material is {x} made of?",
        "Do you know what {x} is made of?",
    ),
    ("Can you tell me what {x} is made of?", "Of what is {x} made?"),
    ("{x} is made of {v}.", "{s} is made of {v}."),
)


def _place(preposition: str, place: str) -> tuple[str, ...]:
    return (f"{preposition} the {place}", f"the {place}", place)


def _facts() -> Iterator[Fact]:
    for animal in ANIMALS:
        name = f"the {animal.name}"
        legs = number_forms(animal.legs) if animal.legs else ("0", "zero", "no legs", "no")
        yield Fact("animal", COLOUR, name, (animal.colour,))
        yield Fact("animal", LEGS, name, legs)
        yield Fact("animal", HOME, name, _place(HOMES[animal.home], animal.home))
        yield Fact("animal", DIET, name, (animal.food,))
        yield Fact("animal", SOUND, name, (animal.sound,))
        yield Fact("sound", SAYER, animal.sound, (name, animal.name))
    for person in PEOPLE:
        yield Fact("person", NEAR, person.name, _place("near", person.home))
        yield Fact("person", JOB, person.name, (article(person.job), person.job))
        yield Fact("person", LIKED_FOOD, person.name, (person.food,))
        yield Fact("person", LIKED_COLOUR, person.name, (person.colour,))
        yield Fact("person", PET, person.name, (article(person.pet), person.pet))
    for food in FOODS:
        yield Fact("food", COLOUR, article(food.name), (food.colour,))
        yield Fact("food", TASTE, article(food.name), (food.taste,))
    for thing, material in THINGS.items():
        yield Fact("thing", MATERIAL, article(thing), (material,))


FACTS = tuple(_facts())


def fact_items() -> Iterator[MicroworldItem]:
    """Yield the questions about `FACTS`; the key of a fact is its relation and its subject."""
    for fact in FACTS:
        yield from items_for(
            f"facts/{fact.relation.name}/{fact.subject}",
            "facts",
            fact.group,
            seen=wordings(fact.relation.seen, x=fact.subject),
            unseen=wordings(fact.relation.unseen, x=fact.subject),
            short=fact.forms,
            sentences=fact.sentences(),
            relation=fact.relation.name,
            subject=fact.subject,
        )


# The kinds that a question about a category chooses from, each with its members as they are written in a sentence.
KINDS = {
    "animal": tuple(article(animal.name) for animal in ANIMALS),
    "food": tuple(article(food.name) for food in FOODS),
    "thing": tuple(article(thing) for thing in (*THINGS, *CONTAINERS)),
    "place": tuple(article(place) for place in dict.fromkeys((*VISITED, *HOMES))),
    "colour": COLOURS,
    "person": tuple(PERSON),
}
_OPEN = ("What is {x}?", "Tell me what {x} is.")
_TWO = ("Is {x} {a} or {b}?", "What is {x}: {a} or {b}?")
_THREE = ("Is {x} {a}, {b} or {c}?", "What is {x}: {a}, {b} or {c}?")
_OPEN_UNSEEN = ("Can you tell me what {x} is?",)
_THREE_UNSEEN = ("Tell me if {x} is {a}, {b} or {c}.", "Choose one for {x}: {a}, {b} or {c}.")


def kind_sentence(member: str, kind: str) -> str:
    """Return the sentence that states the kind of `member`: "A frog is an animal."."""
    return capital(f"{member} is {article(kind)}.")


def _choices(templates: tuple[str, ...], member: str, kind: str, options: int) -> Iterator[str]:
    """Fill each template with the right kind and other kinds; a hash picks which ones, and their order."""
    others = [other for other in KINDS if other != kind]
    for template in templates:
        order = digest(f"{template}/{member}")
        distractors = list(permutations(others, options - 1))
        kinds = list(distractors[order % len(distractors)])
        kinds.insert(order // 100 % options, kind)
        yield template.format(x=member, **dict(zip("abc", map(article, kinds))))


def category_items() -> Iterator[MicroworldItem]:
    """Yield the questions about categories: is a frog an animal, a food or a thing?"""
    for kind, members in KINDS.items():
        for member in members:
            pronoun = PERSON[member].pronoun if kind == "person" else "It"
            yield from items_for(
                f"category/{member}",
                "category",
                kind,
                seen=wordings(
                    (*_OPEN, *_choices(_TWO, member, kind, 2), *_choices(_THREE, member, kind, 3)),
                    x=member,
                ),
                unseen=wordings((*_OPEN_UNSEEN, *_choices(_THREE_UNSEEN, member, kind, 3)), x=member),
                short=(article(kind), kind),
                sentences=(kind_sentence(member, kind), f"{pronoun} is {article(kind)}."),
            )


_TRANSLATE = (
    "What is {w} in {l}?",
    "Translate {w} to {l}.",
    "How do you say {w} in {l}?",
    "What is the {l} word for {w}?",
)
_TRANSLATE_UNSEEN = ("Give me the {l} word for {w}.", "Can you translate {w} to {l}?")


def translation_items() -> Iterator[MicroworldItem]:
    """Yield the questions for the French, German and Spanish words."""
    for word, translations in WORDS.items():
        for language, translated in translations.items():
            yield from items_for(
                f"translation/{word}/{language}",
                "translation",
                language,
                seen=wordings(_TRANSLATE, w=word, l=language),
                unseen=wordings(_TRANSLATE_UNSEEN, w=word, l=language),
                short=(translated,),
                sentences=(
                    f"The {language} word for {word} is {translated}.",
                    f"It is {translated}.",
                    f"It is {translated} in {language}.",
                ),
                relation=language,
                subject=word,
            )


# Made-up names that are neither English words nor real names. Those that end in "o" are names of people.
_ONSETS = ("bl", "dr", "fl", "gl", "kr", "pl", "sn", "tw", "vr", "zw")
_ENDINGS = ("orf", "izzek", "anvit", "umbax", "elpin", "oskel", "arvo", "ibbo", "umpo", "endro")
NOBODY = tuple(onset + ending for onset in _ONSETS for ending in _ENDINGS)
_UNKNOWN_ANIMAL = (COLOUR, LEGS, HOME, DIET, SOUND)
_UNKNOWN_PERSON = (NEAR, JOB, LIKED_FOOD, LIKED_COLOUR, PET)


def unknown_items() -> Iterator[MicroworldItem]:
    """Yield questions about things that do not exist; the right answer is always "I do not know."."""
    for name in NOBODY:
        person = name.endswith("o")
        subject = capital(name) if person else f"the {name}"
        for relation in _UNKNOWN_PERSON if person else _UNKNOWN_ANIMAL:
            yield from _unknown(name, relation.name, relation.seen, relation.unseen, subject)
        if not person:
            for language in LANGUAGES:
                yield from _unknown(name, language, _TRANSLATE, _TRANSLATE_UNSEEN, name, language)


def _unknown(
    name: str,
    relation: str,
    seen: tuple[str, ...],
    unseen: tuple[str, ...],
    subject: str,
    language: str = "",
) -> Iterator[MicroworldItem]:
    fields = {"x": subject, "w": subject, "l": language}
    yield from items_for(
        f"unknown/{name}",
        "unknown",
        relation,
        seen=wordings(seen, **fields),
        unseen=wordings(unseen, **fields),
        short=("I do not know",),
        sentences=("I do not know.", "I do not know that.", f"I do not know {subject}."),
        relation=relation,
        subject=subject,
        held_out="entity",
    )
