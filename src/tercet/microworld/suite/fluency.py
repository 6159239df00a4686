"""Fluency: a sentence of the microworld against the same sentence with two neighbouring words swapped.

Every sentence is about a held-out pair of its scheme (`reading`). No document contains such a pair, so none of these
sentences occurs in the training text.
"""

from random import Random

from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.microworld.items import split_of
from tercet.microworld.reading import SEEN_ANIMALS, key_of
from tercet.microworld.world import CONTAINERS, EATEN, PERSON, THINGS, VISITED, article

_NAMES = tuple(PERSON)
# scheme → sentence template, and the first and second words of its pairs
_SCHEMES = {
    "put": ("{who} puts the {a} in the {b}.", tuple(THINGS), CONTAINERS),
    "move": ("Then {who} moves the {a} to the {b}.", tuple(THINGS), CONTAINERS),
    "give": ("{who} gives the {b} to {a}.", _NAMES, tuple(THINGS)),
    "go": ("{a} goes to the {b}.", _NAMES, VISITED),
    "eat": ("{a} eats {one}.", _NAMES, EATEN),
    "see": ("{a} sees {one}.", _NAMES, SEEN_ANIMALS),
}
EACH = 18  # sentences of each scheme


def _sentences(scheme: str) -> list[str]:
    text, firsts, seconds = _SCHEMES[scheme]
    pairs = [(a, b) for a in firsts for b in seconds if split_of(key_of(scheme, a, b)) == "heldout"]
    rng = Random(f"fluency/{scheme}")
    drawn = rng.sample(pairs, min(EACH, len(pairs)))
    return [text.format(a=a, b=b, one=article(b), who=rng.choice([n for n in _NAMES if n != a])) for a, b in drawn]


def _items() -> list[Item]:
    out: list[Item] = []
    for good in (sentence for scheme in _SCHEMES for sentence in _sentences(scheme)):
        words = good.split(" ")
        swap = Random(good).randrange(len(words) - 2)
        bad = " ".join([*words[:swap], *reversed(words[swap : swap + 2]), *words[swap + 2 :]])
        if bad != good:
            out.append(Item(f"fluency/{good}", "", (good,), (good, bad) if len(out) % 2 else (bad, good)))
    return out


TASK = Task("fluency", "choice", _items, version=2, form=PromptTemplate("", "{output}"), shots=0, ability="fluency")
