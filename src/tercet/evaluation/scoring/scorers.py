"""Named scorers, which give an answer a score from 0 to 1: for tasks, eval, rewards, judges and training logs.

    exact_match, f1, …          a name                   numeric:0.01, regex:PATTERN    a name with an argument
    python:mine.py:score        a function of your own   judge:RUN                      a language model that grades

`scorer_of` makes a `Scorer` from such a text. To add one, write a function with `@scorer`. No torch here: scorers that
need more than the standard library import it when they are made.
"""

from __future__ import annotations

import importlib
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from numbers import Real
from typing import Any

from tercet.data.formats.conversations import to_messages
from tercet.data.text_matching import matches_gold as matches
from tercet.data.text_matching import normalise
from tercet.data.types import Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring.answers import Answer, BatchFunction
from tercet.evaluation.scoring.functions import error_text, load_function, source_of
from tercet.training.settings import suggest

Function = Callable[[Question, str, bool], float]

DEFAULT = ("exact_match",)
OLD_SCORER_NAMES = {"exact": "exact_match", "number": "numeric"}  # in older task files and scores
_MICROWORLD = "tercet.microworld.rubric"  # imported only if the scorer rubric is named
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\d))?")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_CODE_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scorer:
    """One way to score answers, from 0 to 1; higher is better.

    `name` is the full name ("numeric:0.01"). `function` takes (question with its accepted answers, answer, whether the
    model ended it). `description` is one line. `needs` is what a question must have: "answers", "test" (code that
    checks an answer), "id" (of reasoning-gym), or "" for nothing. `batch`, if given, scores many answers at once.
    """

    name: str
    function: Function
    description: str
    needs: str = "answers"
    batch: BatchFunction | None = None

    def __call__(self, question: Question, answer: str, finished: bool = True) -> float:
        """Return the score of one answer. Raises DataError if it cannot be scored, or its score is not from 0 to 1."""
        self.check(question)
        return self._checked(question, self.function(question, answer, finished))

    def scores(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        """Return the score of every answer, in the order of the questions."""
        if self.batch is None:
            return [self(question, *answer) for question, answer in zip(questions, answers, strict=True)]
        for question in questions:
            self.check(question)
        values = self.batch(questions, answers)
        return [self._checked(question, value) for question, value in zip(questions, values, strict=True)]

    def check(self, question: Question) -> None:
        """Raise DataError, which names the question, if it lacks what this scorer needs."""
        where = question.where or f"task {question.id!r}"
        if self.needs == "answers" and not question.answers:
            raise DataError(
                f'{where}: the scorer {self.name} needs accepted answers, found none; add "answers" to the row'
            )
        if self.needs == "test" and not question.test:
            raise DataError(
                f'{where}: the scorer {self.name} needs "test", Python code that fails if the answer is wrong; add it '
                "to the row"
            )
        if self.needs == "id":
            from tercet.data.formats.reasoning_gym import parse_id

            parse_id(question.id, where)

    def _checked(self, question: Question, value: Any) -> float:
        if not isinstance(value, Real) or not 0 <= float(value) <= 1:  # NaN is neither
            raise DataError(
                f"{question.where or question.id}: the scorer {self.name} gave {value!r:.80}; "
                "wanted a number from 0 to 1"
            )
        return float(value)


@dataclass(frozen=True)
class ScorerEntry:
    """An entry of the list of scorers: how its name is written, a description, and a function that makes it.

    `make` takes the text after the colon.
    """

    usage: str
    description: str
    make: Callable[[str], Function | Scorer]
    needs: str = "answers"
    graded: bool = False
    """whether there are scores between 0 and 1, so that their mean is not a share of answers"""
    late: bool = False
    """whether making it runs a user's code, needs a library or loads a model"""


SCORER_ENTRIES: dict[str, ScorerEntry] = {}


def scorer(
    usage: str = "", needs: str = "answers", graded: bool = False, late: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that adds a function to the scorers by its name; its docstring is the description.

    Without `usage` the function is the scorer: (question, answer, finished) → score. With `usage`, such as
    "numeric[:TOLERANCE]", it takes the text after the colon and returns such a function, or a whole `Scorer`.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        text = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        SCORER_ENTRIES[name] = ScorerEntry(
            usage or name, text, function if usage else lambda _: function, needs, graded, late
        )
        return function

    return add


def canonical(name: str) -> str:
    """Return today's name for an older name of a scorer, and any other text unchanged."""
    return OLD_SCORER_NAMES.get(name, name)


def describe(name: str) -> str:
    """Return the one-line description of a scorer, or "" if there is none of that name."""
    entry = SCORER_ENTRIES.get(canonical(name).partition(":")[0])
    return entry.description if entry else ""


def is_share(name: str) -> bool:
    """Return whether a scorer gives only 0 or 1, so that its mean is a share of answers."""
    entry = SCORER_ENTRIES.get(canonical(name).partition(":")[0])
    return entry is not None and not entry.graded


def entry_of(spec: str, where: str) -> tuple[ScorerEntry, str]:
    """Return the entry of a scorer and the text after the colon. Raises ConfigError, which begins with `where`."""
    name, colon, argument = canonical(spec).partition(":")
    entry = SCORER_ENTRIES.get(name)
    if entry is None:
        known = ", ".join(entry.usage for entry in SCORER_ENTRIES.values())
        near = suggest(name, [*SCORER_ENTRIES, *OLD_SCORER_NAMES])
        raise ConfigError(f"{where}: there is no scorer {spec!r}{near}; the scorers are {known}")
    must = ":" in entry.usage and "[" not in entry.usage
    if (colon and ":" not in entry.usage) or (must and not argument) or (colon and not argument):
        raise ConfigError(f"{where}: found the scorer {spec!r}; it is written {entry.usage}")
    return entry, argument


def scorer_of(spec: str, where: str = "--scorer") -> Scorer:
    """Return the scorer `spec`, such as "f1" or "numeric:0.01". Raises ConfigError, which begins with `where`."""
    entry, argument = entry_of(spec, where)
    try:
        made = entry.make(argument)
    except ConfigError as error:
        raise ConfigError(f"{where} {spec}: {error}") from error
    name = canonical(spec)
    return made if isinstance(made, Scorer) else Scorer(name, made, entry.description, entry.needs)


def check_scorers(specs: Sequence[str], where: str = "--scorer") -> None:
    """Raise ConfigError for no scorer, an unknown one, or one named twice. No user's code is run, no model loaded."""
    if not specs:
        raise ConfigError(f"{where}: no scorer is named; wanted at least one, for example {DEFAULT[0]}")
    for spec in specs:
        entry, _ = entry_of(spec, where)
        if [canonical(other) for other in specs].count(canonical(spec)) > 1:
            raise ConfigError(f"{where}: the scorer {spec} is named twice; name it once")
        if not entry.late:
            scorer_of(spec, where)


def scorers_for(specs: Sequence[str], questions: Sequence[Question]) -> list[Scorer]:
    """Return the scorers for the log of a training on these prompts; the default needs rows with answers, or is left
    out.

    Raises ConfigError if another scorer needs answers and no row has any, DataError if a row lacks what a scorer needs.
    """
    with_answers = [q for q in questions if q.answers]
    out = []
    for made in [scorer_of(spec) for spec in specs if with_answers or tuple(specs) != DEFAULT]:
        if made.needs and not with_answers:
            raise ConfigError(
                f'--scorer {made.name}: it needs accepted answers, but no row of --prompts has "answers"; add them, or '
                "leave out --scorer"
            )
        for question in with_answers:
            made.check(question)
        out.append(made)
    return out


def scorer_files(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the code files of scorers of your own, which are inputs of a run and pinned by their hashes."""
    modules = [spec.removeprefix("python:").rpartition(":")[0] for spec in specs if spec.startswith("python:")]
    return tuple(file for file in map(source_of, modules) if file)


# -- texts that are compared -----------------------------------------------------------------------------------------


@scorer()
def exact_match(question: Question, answer: str, finished: bool) -> float:
    """1 if the answer equals an accepted one, apart from case and spaces and punctuation around it."""
    return float(matches(question, answer))


@scorer()
def verbatim(question: Question, answer: str, finished: bool) -> float:
    """1 if the answer equals an accepted one exactly, apart from spaces around it."""
    return float(answer.strip() in {a.strip() for a in question.answers})


@scorer()
def contains(question: Question, answer: str, finished: bool) -> float:
    """1 if the answer contains an accepted answer as whole words, in any case."""
    words = _words(answer)

    def inside(gold: str) -> bool:
        # an accepted answer without a letter or digit has no words and is searched as it is
        return _words(gold) in words if _words(gold).strip() else gold.strip() in answer

    return float(any(map(inside, question.answers)))


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


@scorer("regex:PATTERN", needs="")
def regex(pattern: str) -> Function:
    """1 if the pattern matches in the answer; with a group, if the last match's group equals an accepted answer."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"the pattern {pattern!r} is not a regular expression: {error}; wanted one in the syntax of Python's re"
        ) from error
    if not compiled.groups:
        return lambda question, answer, finished: float(compiled.search(answer) is not None)

    def last_group(question: Question, answer: str, finished: bool) -> float:
        groups = [match[1] or "" for match in compiled.finditer(answer)]
        return float(bool(groups) and matches(question, groups[-1]))

    return last_group


@scorer("numeric[:TOLERANCE]")
def numeric(tolerance: str) -> Function:
    """1 if the answer's last number is within the tolerance (default 0) of an accepted answer's last number."""
    try:
        largest = Decimal(tolerance or "0")
    except InvalidOperation:
        largest = Decimal("NaN")
    if not largest.is_finite() or largest < 0:
        raise ConfigError(f"the tolerance is {tolerance!r}; wanted a number of 0 or more, as in numeric:0.01")

    def close(question: Question, answer: str, finished: bool) -> float:
        number = last_number(answer)
        accepted = [last_number(gold) for gold in question.answers]
        return float(number is not None and any(n is not None and abs(n - number) <= largest for n in accepted))

    return close


def last_number(text: str) -> Decimal | None:
    """Return the last number of a text ("1,234.0" and "1234" are equal), or None if there is none."""
    numbers = _NUMBER.findall(text.replace("−", "-"))
    return Decimal(numbers[-1].replace(",", "")) if numbers else None


@scorer(graded=True)
def f1(question: Question, answer: str, finished: bool) -> float:
    """The best F1 of words shared with an accepted answer, as in SQuAD: without case, punctuation and articles."""
    return max(_f1(answer, gold) for gold in question.answers)


def _f1(answer: str, gold: str) -> float:
    """Return F1 = 2 · shared words / words of both, each word as often as it occurs (Rajpurkar et al. 2016).

    If one of them has only articles and punctuation, it is 1 for equal texts and 0 for others.
    """
    given, accepted = Counter(_squad_words(answer)), Counter(_squad_words(gold))
    if not given or not accepted:
        return float(bool(normalise(answer)) and normalise(answer) == normalise(gold))
    return 2 * sum((given & accepted).values()) / (sum(given.values()) + sum(accepted.values()))


def _squad_words(text: str) -> list[str]:
    return _ARTICLE.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split()


@scorer("chrf", graded=True, late=True)
def chrf(argument: str) -> Function:
    """Character n-gram F-score of sacrebleu (chrF2, n = 1 … 6), 0 to 1, against the accepted answer that fits best."""
    metric = _sacrebleu().CHRF()
    return lambda question, answer, finished: _share(metric, question, answer)


@scorer("bleu", graded=True, late=True)
def bleu(argument: str) -> Function:
    """BLEU of sacrebleu for one answer, 0 to 1 (effective order); its mean over answers is not the BLEU of a corpus."""
    metric = _sacrebleu().BLEU(effective_order=True)
    return lambda question, answer, finished: _share(metric, question, answer)


def _share(metric: Any, question: Question, answer: str) -> float:
    """Return sacrebleu's score divided by 100; the limit is there because rounding may give a little more than 100."""
    return min(1.0, float(metric.sentence_score(answer, list(question.answers)).score) / 100)


def _sacrebleu() -> Any:
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise ConfigError("the library sacrebleu is not installed; pip install 'tercet[metrics]'") from error


@scorer()
def sentence_with(question: Question, answer: str, finished: bool) -> float:
    """1 if the answer is one sentence of 3 to 20 words that contains the question's text as a word."""
    words = answer.split()
    shaped = answer.strip()[:1].isupper() and answer.strip().endswith((".", "!", "?")) and 3 <= len(words) <= 20
    word = re.escape(question.prompt[-1].content)
    return float(shaped and re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None)


# -- code that is run ------------------------------------------------------------------------------------------------


@scorer(needs="test")
def code(question: Question, answer: str, finished: bool) -> float:
    """1 if the answer's Python code (its ``` blocks, if any), followed by the row's "test", runs in the sandbox."""
    blocks = _CODE_BLOCK.findall(answer)
    return _ran("\n".join(blocks) if blocks else answer, question)


@scorer(needs="test")
def runs(question: Question, answer: str, finished: bool) -> float:
    """1 if the question, the answer that completes it and the row's "test" run in the sandbox as one program."""
    return _ran(f"{question.prompt[-1].content}\n{answer}", question)


def _ran(program: str, question: Question) -> float:
    from tercet.evaluation.scoring.sandbox import run_code

    return float(run_code(f"{program}\n\n{question.test}\n").ok)


@scorer(needs="id", graded=True)
def reasoning_gym(question: Question, answer: str, finished: bool) -> float:
    """The score by the task's own verifier in the package reasoning-gym, for rows of `tercet data-gym`."""
    from tercet.data.formats.reasoning_gym import verify

    return verify(question, answer, question.where or f"task {question.id!r}")


# -- functions, models, and the microworld's rubric ------------------------------------------------------------------


@scorer("python:FILE.py:FUNCTION", needs="", graded=True, late=True)
def python(place: str) -> Function:
    """A function of your own in a file or module: f(prompt, answer, answers) returns a number from 0 to 1."""
    function = load_function("python", place)

    def call(question: Question, answer: str, finished: bool) -> float:
        try:
            value: float = function(to_messages(question.prompt), answer, list(question.answers))
        except (Exception, SystemExit) as error:
            where = question.where or question.id
            raise DataError(
                f"{where}: the scorer python:{place} failed on the answer {answer[:80]!r}: {error_text(error)}"
            ) from error
        return value

    return call


@scorer("judge:RUN", late=True)
def judge(place: str) -> Scorer:
    """1 if a language model, shown an accepted answer, says that this one is right: a run, or NAME@http(s)://…/v1."""
    from tercet.evaluation.scoring.judge_scorer import grader

    grade = grader(place)
    one: Function = lambda question, answer, finished: grade([question], [(answer, finished)])[0]  # noqa: E731
    return Scorer(f"judge:{place}", one, describe("judge"), batch=grade)


@scorer("rubric[:PART]", graded=True)
def rubric(part: str) -> Function:
    """The microworld's own rubric (right, sentence, direct, finished), or one part of it, as in rubric:sentence."""
    module = importlib.import_module(_MICROWORLD)
    if part and part not in module.WEIGHTS:
        raise ConfigError(
            f"the rubric has no part {part!r}{suggest(part, module.WEIGHTS)}; it has {', '.join(module.WEIGHTS)}"
        )
    return lambda question, answer, finished: float(module.part_score(question, answer, finished, part or "total"))


def help_text() -> str:
    """Return a sentence that names every scorer, for `--help`."""
    return f"Scorers of answers, from 0 to 1: {', '.join(entry.usage for entry in SCORER_ENTRIES.values())}."
