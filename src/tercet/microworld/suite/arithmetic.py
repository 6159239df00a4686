"""Arithmetic: sums and differences of numbers up to 99.

Half of them do not occur in the microworld's training text; the others are asked in wordings that do not occur there.
"""

from tercet.evaluation.task import Item, PromptTemplate, Task, item_of
from tercet.microworld.tasks import draw_questions


def _items(evaluated: bool) -> list[Item]:
    questions = draw_questions("heldout" if evaluated else "sft", 0, 200 if evaluated else 60, ["arithmetic"])
    return [item_of(question) for question in questions if len(question.prompt) == 1]


TASK = Task(
    "arithmetic",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    formats=(PromptTemplate("", "{input} {output}", "\n"), PromptTemplate("", "Question: {input}\nAnswer: {output}")),
    max_new_tokens=16,
    open_book=True,  # the question of 5 + 0 contains its answer
    ability="reasoning",
)
