"""The task "code": complete a function from its head and docstring; assertions check it in the sandbox."""

from collections.abc import Callable

from tercet.data.splits import in_split
from tercet.evaluation.task import Item, PromptTemplate, Task

# name, docstring, body, expected value; {n} is a number
_KINDS: tuple[tuple[str, str, str, Callable[[int, int], object]], ...] = (
    ("add", "Return x plus {n}.", "x + {n}", lambda x, n: x + n),
    ("subtract", "Return x minus {n}.", "x - {n}", lambda x, n: x - n),
    ("times", "Return x times {n}.", "x * {n}", lambda x, n: x * n),
    ("above", "Return whether x is more than {n}.", "x > {n}", lambda x, n: x > n),
    ("larger", "Return the larger one of x and {n}.", "max(x, {n})", lambda x, n: x if x > n else n),
    ("smaller", "Return the smaller one of x and {n}.", "min(x, {n})", lambda x, n: x if x < n else n),
    ("rest", "Return the rest of x divided by {n}.", "x % {n}", lambda x, n: x - x // n * n),
    ("distance", "Return the distance from x to {n}.", "abs(x - {n})", lambda x, n: x - n if x > n else n - x),
)


def _items(evaluated: bool) -> list[Item]:
    out = []
    for kind, docstring, body, function in _KINDS:
        for n in range(2, 12):
            name, code = f"{kind}_{n}", body.replace("{n}", str(n))
            if in_split(name, 0.7, "code") is not evaluated:
                continue
            text = f'def {name}(x):\n    """{docstring.replace("{n}", str(n))}"""'
            cases = [(x, function(x, n)) for x in (0, 1, n - 1, n, n + 3, 50)]
            test = "\n".join(f"assert {name}({x}) == {value!r}" for x, value in cases)
            out.append(Item(f"code/{name}", text, (f"    return {code}",), ability=kind, test=test))
    return out


TASK = Task(
    "code",
    "code",
    lambda: _items(True),
    lambda: _items(False),
    form=PromptTemplate("", "{input}\n{output}", "\n\n\n"),
    formats=(PromptTemplate("# Python\n\n", "{input}\n{output}", "\n\n"),),
    metric="runs",
    stops=("\n\n", "\ndef ", "\nclass ", "\nprint", "\nif "),
    max_new_tokens=32,
    ability="code",
)
