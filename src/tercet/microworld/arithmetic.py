"""Questions about sums and differences, and about the output of two lines of Python."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import permutations
from typing import Literal

from tercet.microworld.items import MicroworldItem, Split, digest, items_for, split_of, wordings
from tercet.microworld.words import WORDS
from tercet.microworld.world import number_forms

Operator = Literal["+", "-"]
OPERATORS: tuple[Operator, ...] = ("+", "-")
# Operands and results lie between 0 and this number: at most two digits, none negative.
LARGEST = 99

_SEEN = ("What is {e}?", "How much is {e}?", "Calculate {e}.", "What is {w}?")
_UNSEEN = ("Tell me the result of {e}.", "What do you get for {e}?")

_CODE_SEEN = (
    "What does this code print?\n{c}",
    "What is the output of this code?\n{c}",
    "{c}\nWhat does this code print?",
    "Here is some code:\n{c}\nWhat does it print?",
)
_CODE_UNSEEN = ("Tell me what this code prints.\n{c}", "{c}\nWhat is printed?")
_LARGEST_IN_CODE = 20


def pair_key(operator: Operator, first: int, second: int) -> str:
    """Return the key of a pair; 3 + 4 and 4 + 3 share it, so that neither is trained on if the other is reserved."""
    if operator == "+":
        first, second = sorted((first, second))
    return f"arithmetic/{first} {operator} {second}"


def pair_split(operator: Operator, first: int, second: int) -> Split:
    """Return the split of a pair; only pairs of "sft" occur in pretraining documents and demonstrations."""
    return split_of(pair_key(operator, first, second))


def value(operator: Operator, first: int, second: int) -> int:
    """Return `first + second` or `first - second`."""
    return first + second if operator == "+" else first - second


def spoken(operator: Operator) -> str:
    """Return the operator as a word."""
    return "plus" if operator == "+" else "minus"


def pairs(largest: int) -> Iterator[tuple[Operator, int, int]]:
    """Yield every pair whose operands and result lie in 0 … `largest`."""
    for operator in OPERATORS:
        for first in range(largest + 1):
            for second in range(largest - first + 1) if operator == "+" else range(first + 1):
                yield operator, first, second


def arithmetic_items() -> Iterator[MicroworldItem]:
    """Yield questions like "What is 3 + 4?": one-digit pairs in all wordings, each longer pair in one of them."""
    for operator, first, second in pairs(LARGEST):
        key = pair_key(operator, first, second)
        result = value(operator, first, second)
        expression = f"{first} {operator} {second}"
        worded = f"{first} {spoken(operator)} {second}"
        small = first < 10 and second < 10
        pick = digest(expression)
        seen, unseen = (_SEEN, _UNSEEN) if small else (_SEEN[pick % 4 :][:1], _UNSEEN[pick % 2 :][:1])
        openings = wordings(seen, e=expression, w=worded)
        yield from items_for(
            key,
            "arithmetic",
            f"{operator} {'one digit' if small else 'two digits'}",
            seen=openings if small else openings[:1],
            unseen=[template.format(e=expression) for template in unseen],
            short=number_forms(result),
            sentences=(
                f"{expression} is {result}.",
                f"The answer is {result}.",
                f"It is {result}.",
                f"{expression} = {result}.",
                f"{worded} is {result}.",
            ),
            relation="arithmetic",
            subject=expression,
        )


def programs() -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, form, code, output) of every program; sums and differences share their keys with arithmetic."""
    for operator, first, second in pairs(_LARGEST_IN_CODE):
        variable = "xyna"[digest(f"{operator}{first},{second}") % 4]
        code = f"{variable} = {first}\nprint({variable} {operator} {second})"
        yield pair_key(operator, first, second), operator, code, str(value(operator, first, second))
    for first, second in permutations(range(_LARGEST_IN_CODE + 1), 2):
        low, high = sorted((first, second))
        yield f"python/max/{low},{high}", "max", f"x = {first}\nprint(max(x, {second}))", str(high)
        yield f"python/min/{low},{high}", "min", f"x = {first}\nprint(min(x, {second}))", str(low)
    for word in WORDS:
        for variable in ("word", "name"):
            yield f"python/echo/{word}", "echo", f'{variable} = "{word}"\nprint({variable})', word


def python_items() -> Iterator[MicroworldItem]:
    """Yield questions like "What does this code print?"."""
    for key, form, code, output in programs():
        yield from items_for(
            key,
            "python",
            form,
            seen=[template.format(c=code) for template in _CODE_SEEN],
            unseen=[template.format(c=code) for template in _CODE_UNSEEN],
            short=(output,),
            sentences=(
                f"It prints {output}.",
                f"The code prints {output}.",
                f"The output is {output}.",
                f"The answer is {output}.",
            ),
        )
