"""Reading: a story of one to three sentences and a question that only the story answers."""

from tercet.evaluation.task import Form, Item, Task, item_of
from tercet.microworld.tasks import tasks


def _items(split: str) -> list[Item]:
    found = tasks("heldout" if split == "heldout" else "sft", 0, 200 if split == "heldout" else 60, ["reading"])
    return [item_of(t) for t in found if len(t.prompt) == 1]


TASK = Task(
    "question_answering",
    "free",
    lambda: _items("heldout"),
    lambda: _items("sft"),
    form=Form("Answer the question from the story.\n\n"),
    formats=(Form("", "{input}\n{output}"), Form("", "Question: {input}\nAnswer: {output}")),
    open_book=True,
    ability="reasoning",
)
