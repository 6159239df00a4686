"""Fluency: a sentence of the microworld against the same sentence with two neighbouring words exchanged."""

import random

from tercet.data.microworld.tasks import tasks
from tercet.evaluation.task import Form, Item, Task


def _items() -> list[Item]:
    out: dict[str, Item] = {}
    for task in tasks("heldout", 0, 400, ["facts", "category"]):
        good = next((a for a in task.answers if a.endswith(".") and len(a.split()) > 3), "")
        words = good.split(" ")
        at = random.Random(good).randrange(max(1, len(words) - 2))
        bad = " ".join([*words[:at], *reversed(words[at : at + 2]), *words[at + 2 :]])
        if good and bad != good:
            out[good] = Item(f"fluency/{good}", "", (good,), (good, bad) if len(out) % 2 else (bad, good))
    return list(out.values())


TASK = Task("fluency", "choice", _items, form=Form("", "{output}"), shots=0, ability="fluency")
