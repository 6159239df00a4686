"""Translation of words, in the prompt format of Brown et al. (2020), figure 2.1."""

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.words import WORDS


def _items(evaluated: bool) -> list[Item]:
    return [
        Item(f"translation/{english}", english, (others["French"],))
        for english, others in WORDS.items()
        if in_split(english, 0.7, "translation") is evaluated and english != others["French"]
    ]


TASK = Task(
    "translation",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("Translate English to French:\n", "{input} => {output}", "\n"),
    formats=(PromptTemplate("", "English: {input}\nFrench: {output}"), PromptTemplate("", "{input} = {output}", "\n")),
    max_new_tokens=16,
    ability="languages",
)
