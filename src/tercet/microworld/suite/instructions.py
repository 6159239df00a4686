"""Instruction following: the prompt says what to do with a word, and the result must match letter by letter."""

from collections.abc import Callable

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.words import WORDS

ORDERS: dict[str, Callable[[str], str]] = {
    "Write {w} in capital letters.": str.upper,
    "Write {w} twice.": lambda w: f"{w} {w}",
    "Write {w} with a full stop after it.": lambda w: f"{w}.",
    "Write {w} in brackets.": lambda w: f"({w})",
    "Write the first letter of {w}.": lambda w: w[0],
}


def _items(evaluated: bool) -> list[Item]:
    return [
        Item(f"instructions/{order}/{w}", order.replace("{w}", w), (do(w),), ability=order)
        for w in WORDS
        for order, do in ORDERS.items()
        if " " not in w and in_split(w, 0.6, "instructions") is evaluated
    ]


TASK = Task(
    "instructions",
    "free",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("Do what you are told.\n\n"),
    formats=(PromptTemplate("", "Order: {input}\nResult: {output}"),),
    metric="verbatim",
    max_new_tokens=16,
    open_book=True,
    ability="instruction following",
)
