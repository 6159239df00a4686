"""Multiple choice: a question with four lettered answers; the letter is the answer."""

import random

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.world import ANIMALS, PEOPLE

LETTERS = ("A", "B", "C", "D")


def _questions() -> list[tuple[str, str, list[str]]]:
    animals = [a.name for a in ANIMALS]
    made = [(f"Which animal says {a.sound}?", a.name, animals) for a in ANIMALS]
    foods, colours = sorted({a.food for a in ANIMALS}), sorted({a.colour for a in ANIMALS})
    made += [(f"What does the {a.name} eat?", a.food, foods) for a in ANIMALS]
    made += [(f"What colour is the {a.name}?", a.colour, colours) for a in ANIMALS]
    jobs = sorted({p.job for p in PEOPLE})
    return made + [(f"What is {p.name}'s job?", p.job, jobs) for p in PEOPLE]


def _items(evaluated: bool) -> list[Item]:
    out = []
    for text, right, answers in _questions():
        if in_split(text, 0.8) is not evaluated:
            continue
        rng = random.Random(text)
        choices = [*rng.sample([answer for answer in answers if answer != right], 3), right]
        rng.shuffle(choices)
        listed = "\n".join(f"{letter}. {answer}" for letter, answer in zip(LETTERS, choices))
        out.append(Item(f"multiple_choice/{text}", f"{text}\n{listed}", (LETTERS[choices.index(right)],), LETTERS))
    return out


TASK = Task(
    "multiple_choice",
    "choice",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate(
        "The following are questions with four answers, of which one is right.\n\n", "{input}\nAnswer: {output}"
    ),
    formats=(
        PromptTemplate("", "Question: {input}\nAnswer: {output}"),
        PromptTemplate("", "{input}\nThe right letter is {output}"),
    ),
    labels=LETTERS,
    open_book=True,
    ability="knowledge",
)
