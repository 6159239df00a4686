"""Reading: a story of one to three sentences and a question that only the story answers."""

from tercet.evaluation.task import Item, PromptTemplate, Task, item_of
from tercet.microworld.tasks import draw_questions


def _items(split: str) -> list[Item]:
    found = draw_questions(
        "heldout" if split == "heldout" else "sft", 0, 200 if split == "heldout" else 60, ["reading"]
    )
    return [item_of(t) for t in found if len(t.prompt) == 1]


TASK = Task(
    "question_answering",
    "free",
    lambda: _items("heldout"),
    lambda: _items("sft"),
    form=PromptTemplate("Answer the question from the story.\n\n"),
    formats=(PromptTemplate("", "{input}\n{output}"), PromptTemplate("", "Question: {input}\nAnswer: {output}")),
    open_book=True,
    ability="reasoning",
)
