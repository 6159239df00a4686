"""Cloze: the last word of a sentence that states a fact of the microworld."""

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, COLOURS, HOMES, THINGS


def _facts() -> list[tuple[str, str, tuple[str, ...]]]:
    foods, materials = tuple(sorted({a.food for a in ANIMALS})), tuple(sorted(set(THINGS.values())))
    facts: list[tuple[str, str, tuple[str, ...]]] = [(f"The {a.name} is", a.colour, COLOURS) for a in ANIMALS]
    facts += [(f"The {a.name} eats", a.food, foods) for a in ANIMALS]
    facts += [(f"The {a.name} says", a.sound, tuple(b.sound for b in ANIMALS)) for a in ANIMALS]
    facts += [(f"The {a.name} lives {HOMES[a.home]} the", a.home, tuple(HOMES)) for a in ANIMALS]
    return facts + [(f"The {thing} is made of", material, materials) for thing, material in THINGS.items()]


def _items(evaluated: bool) -> list[Item]:
    return [
        Item(f"cloze/{text}", text, (word,), choices)
        for text, word, choices in _facts()
        if in_split(text, 0.8) is evaluated and word not in text  # not "The sea otter lives in the" … "sea"
    ]


TASK = Task(
    "cloze",
    "choice",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("", "{input} {output}", ".\n"),
    formats=(PromptTemplate("", "{input} {output}", ". "),),
    shots=0,
    ability="knowledge",
)
