"""In-context learning: labels without any meaning, which a model can only learn from the examples in the prompt.

Animals are "wug" and foods are "dax" (labels without meaning, as in Wei et al. 2023). Without examples every model
guesses; any gain with examples is learnt from the prompt.
"""

from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, FOODS

LABELS = ("wug", "dax")
WORDS = {"wug": [a.name for a in ANIMALS][:17], "dax": [f.name for f in FOODS]}


def _items(evaluated: bool) -> list[Item]:
    return [
        Item(f"mapping/{word}", word, (label,), LABELS)
        for label, words in WORDS.items()
        for word in (words[:9] if evaluated else words[9:])
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
