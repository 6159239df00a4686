"""A `Task`: items and a template, which turn classification, translation, questions, code and dialogue into text.

    description     "Translate English to French:\\n"
    examples        "sea otter => loutre de mer"       the template with an item's input and its answer
    question        "cheese =>"                        the template up to the place of the answer

There are four kinds. A `choice` is scored by the likelihoods of its choices. A `free` answer is generated and compared.
`code` is generated and run. A `target` is scored by the likelihood of its one right answer (as in LAMBADA). Of an item
that is evaluated, only the input gets into the prompt. No torch here.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError, TercetError
from tercet.evaluation.scoring.scorers import canonical
from tercet.training.settings import suggest

TASK_KINDS = ("choice", "free", "code", "target")
METRIC_OF = {"choice": "acc", "free": "exact_match", "code": "runs", "target": "greedy"}


@dataclass(frozen=True, slots=True)
class Item:
    """One question of a task: `answers` are all texts that count as right; an example shows the first.

    For the kind choice, `answers[0]` is one of `choices`, or `right` has the indices of the right choices if their
    texts are not unique. `contexts`, if given, are whole prompts, one for each choice, used instead of the template;
    choices are then whole continuations. `group` names a document that several items share. `test` is code that must
    run after the answer. `where` is the item's place in a file, for error messages.
    """

    id: str
    input: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    group: str = ""
    ability: str = ""
    test: str = ""
    contexts: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    where: str = field(default="", compare=False, repr=False)

    @property
    def rights(self) -> tuple[int, ...]:
        """The indices of the right choices."""
        return self.right or tuple(n for n, c in enumerate(self.choices) if c in self.answers)


@dataclass(frozen=True)
class PromptTemplate:
    """The text around items: a description, then examples in the template, then the question without its answer."""

    description: str = ""
    template: str = "Q: {input}\nA: {output}"
    separator: str = "\n\n"

    def question(self, text: str) -> str:
        """Return the template with its input, up to the place of the answer."""
        return self.template.removesuffix("{output}").replace("{input}", text)

    def prompt(self, text: str, examples: Sequence[tuple[str, str]]) -> str:
        """Return the text that the model continues; `examples` are (input, answer). It has no space at the end."""
        shots = [self.question(i) + o for i, o in examples]
        return (self.description + self.separator.join([*shots, self.question(text)])).rstrip(" ")

    def answer(self, text: str) -> str:
        """Return an answer as it continues the prompt: with the template's space, as " word" is often one token."""
        before = self.question("")
        return " " * (len(before) - len(before.rstrip(" "))) + text


@dataclass(frozen=True)
class Task:
    """A named set of items with a prompt template and a metric.

    `make_items` returns the items that are evaluated, `make_examples` those from which examples are drawn. `labels` are
    the answers that all items share, if there are any. `formats` are other templates. `shots` is the number of examples
    in a suite, 0 if the task has no examples. `open_book` says that inputs may hold the answer's text (a story, a list
    of choices). With `by_ability`, an item gets examples of its own ability. `chance` is the score of guessing, for
    tasks without choices. `source` and `examples_from` say in errors where items and examples come from.
    """

    name: str
    kind: str
    make_items: Callable[[], Sequence[Item]]
    make_examples: Callable[[], Sequence[Item]] = tuple
    version: int = 1
    form: PromptTemplate = PromptTemplate()
    formats: tuple[PromptTemplate, ...] = ()
    metric: str = ""
    labels: tuple[str, ...] = ()
    stops: tuple[str, ...] = ("\n",)
    max_new_tokens: int = 24
    shots: int = 4
    ability: str = ""
    open_book: bool = False
    by_ability: bool = False
    chance: float = 0.0
    source: str = ""
    examples_from: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS:
            raise ConfigError(
                f"task {self.name!r}: found the kind {self.kind!r}; wanted one of {', '.join(TASK_KINDS)}"
            )
        for form in (self.form, *self.formats):
            if not form.template.endswith("{output}"):
                raise ConfigError(f"task {self.name!r}: the template {form.template!r} must end with {{output}}")
        if not 0 <= self.chance < 1:
            raise ConfigError(
                f"task {self.name!r}: chance is {self.chance}; wanted the score of guessing, at least 0 and below 1"
            )
        object.__setattr__(self, "metric", canonical(self.metric) or METRIC_OF[self.kind])
        if self.make_examples is tuple:
            object.__setattr__(self, "shots", 0)
        if not self.name or any(c.isspace() or c == "," for c in self.name):
            raise ConfigError(f"a task has the name {self.name!r}; wanted a name without spaces and commas")

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items that are evaluated. Raises DataError if there are none, or one lacks what the kind needs."""
        items = self._checked(self.make_items)
        if not items:
            source = f" ({self.source})" if self.source else ""
            raise DataError(f"task {self.name!r}{source}: found no items; wanted at least one")
        return items

    @cached_property
    def examples(self) -> tuple[Item, ...]:
        """The items from which examples are drawn. Raises DataError as `items` does."""
        return self._checked(self.make_examples)

    def _checked(self, make: Callable[[], Sequence[Item]]) -> tuple[Item, ...]:
        try:
            items = tuple(make())
        except (TercetError, OSError):
            raise
        except Exception as error:  # anything can go wrong in a user's own task
            raise DataError(f"task {self.name!r}: its items cannot be made: {type(error).__name__}: {error}") from error
        for item in items:
            where = item.where or f"task {self.name!r}, item {item.id!r}"
            if not item.answers or not item.answers[0]:
                raise DataError(f"{where}: found no answer; wanted at least one")
            if self.kind == "choice" and (len(item.choices) < 2 or not item.rights):
                raise DataError(
                    f"{where}: the answer {item.answers[0]!r} is not among the choices {list(item.choices)}; "
                    "wanted at least two choices, and the answer among them"
                )
            texts = [c.removeprefix(" ") if item.contexts else c for c in item.choices]
            if "" in texts or (texts and len(item.rights) == len(texts)):
                raise DataError(
                    f"{where}: the choices are {list(item.choices)}; wanted texts that are not empty, at least one of "
                    "them wrong"
                )
            if self.kind == "code" and not item.test:
                raise DataError(f'{where}: found no "test"; wanted code that fails if the answer is wrong')
        return items

    def guessing(self) -> float:
        """Return the score of guessing: the mean share of right choices, or `chance` for other kinds."""
        if self.kind != "choice":
            return self.chance
        return sum(len(i.rights) / len(i.choices) for i in self.items) / len(self.items)

    def draw(self, shots: int, seed: int, item: Item | None = None) -> tuple[Item, ...]:
        """Return `shots` examples drawn by the seed, never `item` itself.

        With one seed, fewer shots are the first of more. All items get the same examples, so that their prompts share a
        prefix; with `by_ability` all items of one ability do. Raises ConfigError if there are too few examples.
        """
        ability = item.ability if item is not None and self.by_ability else ""
        out: list[Item] = []
        for example in self._shuffled(seed, ability):
            if len(out) == shots:
                break
            if item is None or example.input != item.input:
                out.append(example)
        if len(out) < shots:
            of = f" of {ability!r}" if ability else ""
            raise ConfigError(
                f"task {self.name!r}: {shots} shots, but there are only {len(out)} examples{of} to draw from"
                f"{self.examples_from or '; use fewer --shots'}"
            )
        return tuple(out)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _shuffled(self, seed: int, ability: str) -> tuple[Item, ...]:
        pool = [e for e in self.examples if not ability or e.ability == ability]
        return tuple(random.Random(f"{self.name}/{seed}/{ability}").sample(pool, len(pool)))

    def labelled(self, examples: Sequence[Item], labels: str, seed: int) -> list[tuple[str, str]]:
        """Return (input, answer) of each example, with `labels` "gold", "wrong" or "random" (Min et al. 2022).

        Random labels are drawn evenly from the label set, so some are right; wrong ones from its other labels. A task
        without labels takes the item's choices, or else the answers of all examples. Raises ConfigError if there is no
        wrong answer to draw.
        """
        if labels == "gold":
            return [(e.input, e.answers[0]) for e in examples]
        rng, out = random.Random(f"labels/{self.name}/{seed}"), []
        for e in examples:
            known = self.labels or e.choices or tuple(dict.fromkeys(x.answers[0] for x in self.examples))
            others = [k for k in known if k not in e.answers] if labels == "wrong" else list(known)
            if not others:
                raise ConfigError(
                    f"task {self.name!r}: there is no wrong answer to draw for {e.input!r}; leave out --vary labels"
                )
            out.append((e.input, rng.choice(others)))
        return out

    def limited(self, limit: int, seed: int = 0) -> Task:
        """Return the same task with `limit` items drawn by the seed (0: all items)."""
        if limit <= 0 or limit >= len(self.items):
            return self
        drawn = random.Random(f"limit/{self.name}/{seed}").sample(range(len(self.items)), limit)
        kept = tuple(self.items[i] for i in sorted(drawn))
        return replace(self, make_items=lambda: kept)


def from_questions(
    name: str, questions: Sequence[Question], examples: Sequence[Question], form: PromptTemplate, max_new_tokens: int
) -> Task:
    """Return a task of free answers to questions, with examples of the same ability.

    Examples of several turns are left out.
    """
    items, pool = tuple(map(item_of, questions)), tuple(item_of(q) for q in examples if len(q.prompt) == 1)
    return Task(
        name,
        "free",
        lambda: items,
        lambda: pool,
        form=form,
        max_new_tokens=max_new_tokens,
        by_ability=True,
        open_book=True,
    )


def item_of(question: Question) -> Item:
    """Return a question as an item; the user's turns are its input."""
    text = "\n".join(m.content for m in question.prompt if m.role == "user")
    return Item(question.id, text, question.answers, ability=question.ability, where=question.where)


def question_of(item: Item) -> Question:
    """Return an item as a question for scorers; its input is the user's message."""
    prompt = (Message("user", item.input),)
    return Question(prompt, item.answers, item.ability, item.id, where=item.where, test=item.test)


# -- the registry -----------------------------------------------------------------------------------------------------

TASKS = ("tercet.evaluation.tasks", "tercet.microworld.suite")  # packages with one task in each file
_REGISTERED: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Register a task under its name, for --task and --suite. Raises ConfigError if the name is taken."""
    if task.name in _REGISTERED and _REGISTERED[task.name] is not task:
        raise ConfigError(f"there is already a task {task.name!r}; give your task another name")
    _REGISTERED[task.name] = task
    return task


@functools.lru_cache(maxsize=1)
def built_in() -> tuple[str, ...]:
    """Register the tasks that come with tercet, and return their names."""
    folders = [importlib.import_module(name) for name in TASKS]
    files = [m.name for f in folders for m in pkgutil.iter_modules(f.__path__, f.__name__ + ".")]
    return tuple(register(importlib.import_module(name).TASK).name for name in files)


def registered() -> Mapping[str, Task]:
    """Return all tasks by name: those that come with tercet and those that users registered."""
    built_in()
    return dict(sorted(_REGISTERED.items()))


def find(name: str) -> Task:
    """Return the task of that name. Raises ConfigError if there is none."""
    known = registered()
    if name not in known:
        raise ConfigError(
            f"no task {name!r}{suggest(name, known)}; there are {', '.join(known)}, task.json files, and tasks of "
            "your own with --import"
        )
    return known[name]
