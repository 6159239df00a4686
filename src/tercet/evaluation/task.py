"""A `Task`: data plus a template, so that classification, translation, questions, code and dialogue all become text.

    description     "Translate English to French:\\n"
    examples        "sea otter => loutre de mer"       the template filled with an item's input and its answer
    the question    "cheese =>"                        the template up to where the answer goes

Four kinds: a `choice` is scored by the likelihoods of its choices, a `free` answer is generated and compared, `code` is
generated and run, and a `target` is the likelihood of the one right answer (LAMBADA). Nothing of an asked item but its input ever reaches the prompt. No torch here.
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

KINDS = ("choice", "free", "code", "target")
METRIC_OF = {"choice": "acc", "free": "exact_match", "code": "runs", "target": "greedy"}
LABELS = ("gold", "wrong", "random")


@dataclass(frozen=True, slots=True)
class Item:
    """One question: `answers` are all texts that count as right, and the first is what an example shows.

    Of a choice, `answers[0]` is one of `choices`; `contexts`, where given, are whole prompts, one a choice, that stand
    in place of the rendered one; choices are then whole continuations. `right` says by number which choices are right
    where their texts cannot. `group` names the document that several items share, `test` is code that must run
    after the answer.
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
        """The numbers of the right choices."""
        return self.right or tuple(n for n, c in enumerate(self.choices) if c in self.answers)


@dataclass(frozen=True)
class PromptTemplate:
    """How items become text: a description, then examples in the template, then the question without its answer."""

    description: str = ""
    template: str = "Q: {input}\nA: {output}"
    separator: str = "\n\n"

    def question(self, text: str) -> str:
        """The template with its input, up to where the answer goes."""
        return self.template.removesuffix("{output}").replace("{input}", text)

    def prompt(self, text: str, examples: Sequence[tuple[str, str]]) -> str:
        """The text that the model continues; examples are (input, answer). Its last space goes: see `answer`."""
        shots = [self.question(i) + o for i, o in examples]
        return (self.description + self.separator.join([*shots, self.question(text)])).rstrip(" ")

    def answer(self, text: str) -> str:
        """An answer as it continues the prompt: the space goes with it, since models write " word" as one token."""
        before = self.question("")
        return " " * (len(before) - len(before.rstrip(" "))) + text


@dataclass(frozen=True)
class Task:
    """A named set of items, what they are drawn from, how they are asked and how answers are scored.

    `asked` and `pool` make the items of the two splits: those that are asked, and those that examples are drawn from.
    `labels` are the answers that every item shares, where there are such; `formats` are other ways to write the
    same thing. `shots` is how many examples a suite gives, 0 where there is no pool. `open_book` says that inputs may hold the answer's text (a
    story, a list of choices). `chance` is the score of guessing, for tasks without choices.
    `examples_from` says in an error where the examples come from.
    """

    name: str
    kind: str
    asked: Callable[[], Sequence[Item]]
    pool: Callable[[], Sequence[Item]] = tuple
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
        if self.kind not in KINDS:
            raise ConfigError(f"task {self.name!r}: kind {self.kind!r}; wanted one of {', '.join(KINDS)}")
        for form in (self.form, *self.formats):
            if not form.template.endswith("{output}"):
                raise ConfigError(f"task {self.name!r}: the template {form.template!r} must end with {{output}}")
        if not 0 <= self.chance < 1:
            raise ConfigError(
                f"task {self.name!r}: chance is {self.chance}; wanted the score of guessing, from 0 to below 1"
            )
        object.__setattr__(self, "metric", canonical(self.metric) or METRIC_OF[self.kind])
        if self.pool is tuple:
            object.__setattr__(self, "shots", 0)
        if not self.name or any(c.isspace() or c == "," for c in self.name):
            raise ConfigError(f"a task is named {self.name!r}; wanted a name without spaces and commas")

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items that are asked. Raises DataError where there are none, or one is not what its kind needs."""
        found = self._checked(self.asked)
        if not found:
            raise DataError(
                f"task {self.name!r}{f' ({self.source})' if self.source else ''}: no items; wanted one or more"
            )
        return found

    @cached_property
    def examples(self) -> tuple[Item, ...]:
        """The items that examples are drawn from."""
        return self._checked(self.pool)

    def _checked(self, make: Callable[[], Sequence[Item]]) -> tuple[Item, ...]:
        try:
            items = tuple(make())
        except (TercetError, OSError):
            raise
        except Exception as error:  # a task of a user's own
            raise DataError(f"task {self.name!r}: its items cannot be made: {type(error).__name__}: {error}") from error
        for item in items:
            where = item.where or f"task {self.name!r}, item {item.id!r}"
            if not item.answers or not item.answers[0]:
                raise DataError(f"{where}: no answer; wanted at least one")
            if self.kind == "choice" and (len(item.choices) < 2 or not item.rights):
                raise DataError(
                    f"{where}: the answer {item.answers[0]!r} is not among the choices {list(item.choices)}; "
                    "wanted two choices or more, and the answer one of them"
                )
            texts = [c.removeprefix(" ") if item.contexts else c for c in item.choices]
            if "" in texts or (texts and len(item.rights) == len(texts)):
                raise DataError(
                    f"{where}: the choices are {list(item.choices)}; wanted texts of which one at least is wrong"
                )
            if self.kind == "code" and not item.test:
                raise DataError(f'{where}: no "test"; wanted code that fails where the answer is wrong')
        return items

    def guessing(self) -> float:
        """The score of guessing: the mean of 1 / number of choices, or `chance`."""
        if self.kind != "choice":
            return self.chance
        return sum(len(i.rights) / len(i.choices) for i in self.items) / len(self.items)

    def draw(self, shots: int, seed: int, item: Item | None = None) -> tuple[Item, ...]:
        """`shots` examples by the seed, never `item` itself; fewer shots of a seed are the first of more.

        All items get the same ones, so that their prompts begin alike; `by_ability` those of their own ability. Raises
        ConfigError where there are too few.
        """
        ability = item.ability if item is not None and self.by_ability else ""
        out: list[Item] = []
        for example in self._shuffled(seed, ability):
            if len(out) == shots:
                break
            if item is None or example.input != item.input:
                out.append(example)
        if len(out) < shots:
            of = f" for {ability!r}" if ability else ""
            raise ConfigError(
                f"task {self.name!r}: {shots} shots{of}, but there are only {len(out)} examples to draw from{self.examples_from}"
            )
        return tuple(out)

    @functools.lru_cache(maxsize=64)  # noqa: B019
    def _shuffled(self, seed: int, ability: str) -> tuple[Item, ...]:
        pool = [e for e in self.examples if not ability or e.ability == ability]
        return tuple(random.Random(f"{self.name}/{seed}/{ability}").sample(pool, len(pool)))

    def shown(self, examples: Sequence[Item], labels: str, seed: int) -> list[tuple[str, str]]:
        """(input, answer) of each example, with `labels` gold, wrong, or random (Min et al. 2022).

        Random ones are drawn evenly from the label set, so some are right; wrong ones from its others. Where the task has
        no labels they come from the item's choices, else from the other examples' answers. Raises ConfigError where no
        wrong answer is to be had.
        """
        if labels == "gold":
            return [(e.input, e.answers[0]) for e in examples]
        rng, out = random.Random(f"labels/{self.name}/{seed}"), []
        for e in examples:
            known = self.labels or e.choices or tuple(dict.fromkeys(x.answers[0] for x in self.examples))
            others = [k for k in known if k not in e.answers] if labels == "wrong" else list(known)
            if not others:
                raise ConfigError(
                    f"task {self.name!r}: no wrong answer can be drawn for {e.input!r}; leave out --vary labels"
                )
            out.append((e.input, rng.choice(others)))
        return out

    def limited(self, limit: int, seed: int = 0) -> Task:
        """The same task with `limit` items drawn by the seed (all where 0 or fewer)."""
        if limit <= 0 or limit >= len(self.items):
            return self
        chosen = random.Random(f"limit/{self.name}/{seed}").sample(range(len(self.items)), limit)
        kept = tuple(self.items[i] for i in sorted(chosen))
        return replace(self, asked=lambda: kept)


def from_questions(
    name: str, questions: Sequence[Question], examples: Sequence[Question], form: PromptTemplate, max_new_tokens: int
) -> Task:
    """A task of questions with gold answers (`data.tasks`): free answers, examples of the same ability.

    Examples of several turns are left out of the pool.
    """
    asked, pool = tuple(map(item_of, questions)), tuple(item_of(q) for q in examples if len(q.prompt) == 1)
    return Task(
        name, "free", lambda: asked, lambda: pool, form=form, max_new_tokens=max_new_tokens, by_ability=True, open_book=True
    )  # fmt: skip


def item_of(question: Question) -> Item:
    """A question as an item: its users' turns are the input."""
    text = "\n".join(m.content for m in question.prompt if m.role == "user")
    return Item(question.id, text, question.answers, ability=question.ability, where=question.where)


def question_of(item: Item) -> Question:
    """An item as the question that scorers take: its input is what the user says."""
    prompt = (Message("user", item.input),)
    return Question(prompt, item.answers, item.ability, item.id, where=item.where, test=item.test)


# -- the registry --------------------------------------------------------------------------------------------------------

TASKS = ("tercet.evaluation.tasks", "tercet.microworld.suite")  # folders of tasks, a file each; imported when listed
_REGISTERED: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make a task known by its name, for --task and --suite. Raises ConfigError where the name is taken."""
    if task.name in _REGISTERED and _REGISTERED[task.name] is not task:
        raise ConfigError(f"there is already a task {task.name!r}; give yours another name")
    _REGISTERED[task.name] = task
    return task


@functools.lru_cache(maxsize=1)
def built_in() -> tuple[str, ...]:
    """Register the task of every file in the folders of tasks; their names."""
    folders = [importlib.import_module(name) for name in TASKS]
    files = [m.name for f in folders for m in pkgutil.iter_modules(f.__path__, f.__name__ + ".")]
    return tuple(register(importlib.import_module(name).TASK).name for name in files)


def registered() -> Mapping[str, Task]:
    """All tasks by name: those of tercet, one file each in evaluation/tasks, and those of users."""
    built_in()
    return dict(sorted(_REGISTERED.items()))


def find(name: str) -> Task:
    """The task of that name. Raises ConfigError where there is none."""
    known = registered()
    if name not in known:
        raise ConfigError(
            f"no task {name!r}{suggest(name, known)}; there are {', '.join(known)}, files (task.json) and what --import brings"
        )
    return known[name]
