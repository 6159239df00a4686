"""Classification: what kind of thing is it? Six classes with equal numbers of items."""

from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, COLOURS, CONTAINERS, FOODS, HOMES, PEOPLE, THINGS, VISITED

CLASSES = {
    "animal": [a.name for a in ANIMALS],
    "food": [f.name for f in FOODS],
    "thing": [*THINGS, *CONTAINERS],
    "person": [p.name for p in PEOPLE],
    "colour": list(COLOURS),
    "place": list(dict.fromkeys([*VISITED, *HOMES])),
}
EACH = 7  # evaluated items of each class; the examples come from the others


def _items(evaluated: bool) -> list[Item]:
    return [
        Item(f"classification/{word}", word, (kind,), tuple(CLASSES), ability=kind)
        for kind, words in CLASSES.items()
        for word in (words[:EACH] if evaluated else words[EACH:10])
    ]


TASK = Task(
    "classification",
    "choice",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate(
        "Is it an animal, a food, a thing, a person, a colour or a place?\n\n", "{input}: {output}", "\n"
    ),
    formats=(
        PromptTemplate("", "Word: {input}\nKind: {output}", "\n\n"),
        PromptTemplate("", "{input} is a kind of {output}", "\n"),
    ),
    labels=tuple(CLASSES),
    ability="knowledge",
)
