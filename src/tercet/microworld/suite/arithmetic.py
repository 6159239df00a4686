"""Arithmetic: sums and differences of numbers up to 99.

Half of them stand nowhere in the microworld's training text; the others are asked in words that do not stand there.
"""

from tercet.evaluation.task import Item, PromptTemplate, Task, item_of
from tercet.microworld.tasks import draw_questions


def _items(asked: bool) -> list[Item]:
    found = draw_questions("heldout" if asked else "sft", 0, 200 if asked else 60, ["arithmetic"])
    return [item_of(t) for t in found if len(t.prompt) == 1]


TASK = Task(
    "arithmetic",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    formats=(PromptTemplate("", "{input} {output}", "\n"), PromptTemplate("", "Question: {input}\nAnswer: {output}")),
    max_new_tokens=16,
    open_book=True,  # 5 + 0 is 5
    ability="reasoning",
)
