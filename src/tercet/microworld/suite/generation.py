"""Generation: write a sentence with a given word. Any such sentence is right."""

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, HOMES, THINGS


def _items(evaluated: bool) -> list[Item]:
    sentences = {a.name: f"The {a.name} lives {HOMES[a.home]} the {a.home}." for a in ANIMALS}
    sentences |= {thing: f"The {thing} is made of {material}." for thing, material in THINGS.items()}
    return [
        Item(f"generation/{word}", word, (sentence, word))
        for word, sentence in sentences.items()
        if in_split(word, 0.75, "generation") is evaluated
    ]


TASK = Task(
    "generation",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("Write a sentence with the word.\n\n", "Word: {input}\nSentence: {output}"),
    formats=(PromptTemplate("", "{input}: {output}", "\n"),),
    metric="sentence_with",
    open_book=True,
    ability="instruction following",
)
