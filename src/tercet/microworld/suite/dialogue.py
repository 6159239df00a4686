"""Dialogue: a question that can only be understood from the turns before it ("And the snake?")."""

from tercet.data.types import Question
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.tasks import draw_questions

SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def _item(question: Question) -> Item:
    text = "\n".join(f"{SPEAKERS[m.role]}: {m.content}" for m in question.prompt)
    return Item(question.id, text, question.answers, ability=question.ability)


def _items(evaluated: bool) -> list[Item]:
    abilities = ["facts", "translation", "arithmetic"]
    questions = draw_questions("heldout" if evaluated else "preference", 1, 700 if evaluated else 300, abilities)
    return [_item(question) for question in questions if len(question.prompt) > 1]


TASK = Task(
    "dialogue",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate(
        "A conversation with an assistant who answers in a few words.\n\n", "{input}\nAssistant: {output}"
    ),
    formats=(PromptTemplate("", "{input}\nAssistant: {output}", "\n---\n"),),
    open_book=True,
    shots=2,
    ability="instruction following",
)
