"""In-context learning: labels that mean nothing outside the prompt, so that only the examples can tell them.

Animals are "wug" and foods are "dax" (labels without meaning, as in Wei et al. 2023). With no example every model
guesses; what it gains with examples it has learnt from the prompt.
"""

from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, FOODS

LABELS = ("wug", "dax")
WORDS = {"wug": [a.name for a in ANIMALS][:17], "dax": [f.name for f in FOODS]}


def _items(asked: bool) -> list[Item]:
    return [
        Item(f"mapping/{word}", word, (label,), LABELS)
        for label, words in WORDS.items()
        for word in (words[:9] if asked else words[9:])
    ]


TASK = Task(
    "mapping",
    "choice",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("", "{input} => {output}", "\n"),
    formats=(PromptTemplate("", "{input}: {output}", "\n"), PromptTemplate("", "Input: {input}\nOutput: {output}")),
    labels=LABELS,
    shots=8,
    ability="in-context learning",
)
