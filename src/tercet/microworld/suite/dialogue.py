"""Dialogue: a question that is understood only after the turns before it ("And the snake?")."""

from tercet.data.types import Question
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.tasks import draw_questions

SPEAKERS = {"user": "User", "assistant": "Assistant", "system": "System"}


def _item(question: Question) -> Item:
    text = "\n".join(f"{SPEAKERS[m.role]}: {m.content}" for m in question.prompt)
    return Item(question.id, text, question.answers, ability=question.ability)


def _items(asked: bool) -> list[Item]:
    found = draw_questions(
        "heldout" if asked else "preference", 1, 700 if asked else 300, ["facts", "translation", "arithmetic"]
    )
    return [_item(t) for t in found if len(t.prompt) > 1]


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
