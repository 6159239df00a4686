"""Reading: a story of one to three sentences and a question that only the story answers."""

from tercet.evaluation.task import Item, PromptTemplate, Task, item_of
from tercet.microworld.tasks import draw_questions


def _items(evaluated: bool) -> list[Item]:
    questions = draw_questions("heldout" if evaluated else "sft", 0, 200 if evaluated else 60, ["reading"])
    return [item_of(question) for question in questions if len(question.prompt) == 1]


TASK = Task(
    "question_answering",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("Answer the question from the story.\n\n"),
    formats=(PromptTemplate("", "{input}\n{output}"), PromptTemplate("", "Question: {input}\nAnswer: {output}")),
    open_book=True,
    ability="reasoning",
)
