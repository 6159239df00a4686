"""What an answer is worth, from 0 to 1: named scorers, one list for tasks, eval, rewards, judges and training logs.

    exact_match, f1, …          a name alone             numeric:0.01, regex:PATTERN    a name and what it is given
    python:mine.py:score        a function of your own   judge:RUN                      a language model that is asked

`scorer_of` makes a `Scorer` from such a text. Adding one is a function with `@scorer`. No torch here: scorers that need
more than the standard library import it when they are made.
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
from tercet.evaluation.scoring.functions import load_function, said, source_of
from tercet.training.settings import suggest

Function = Callable[[Question, str, bool], float]
Answer = tuple[str, bool]  # its text, and whether the model ended it itself
Batch = Callable[[Sequence[Question], Sequence[Answer]], list[float]]

DEFAULT = ("exact_match",)
OLD_NAMES = {"exact": "exact_match", "number": "numeric"}  # in task files and scores that were written before
_MICROWORLD = "tercet.microworld.rubric"  # its own rubric: imported only where it is asked for by name
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d{1,3}(?!\d))?")
_ARTICLE = re.compile(r"\b(a|an|the)\b")
_CODE_BLOCK = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.DOTALL)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Scorer:
    """One way to score answers. The score is from 0 to 1, higher is better, and anything else is an error.

    `name` is how it was asked for ("numeric:0.01"), `function` takes (question with its accepted answers, answer,
    whether the model ended it), `description` is one line. `needs` says what a question must have: "answers",
    "test" (code that checks an answer), "id" (one of reasoning-gym's), or nothing. `batch`, where there is one, scores
    many at once.
    """

    name: str
    function: Function
    description: str
    needs: str = "answers"
    batch: Batch | None = None

    def __call__(self, question: Question, answer: str, finished: bool = True) -> float:
        """Score one answer. Raises DataError where the question cannot be scored, or the score is not from 0 to 1."""
        self.check(question)
        return self._checked(question, self.function(question, answer, finished))

    def scores(self, questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        """The score of every answer, in the order of the questions."""
        if self.batch is None:
            return [self(question, *answer) for question, answer in zip(questions, answers, strict=True)]
        for question in questions:
            self.check(question)
        found = self.batch(questions, answers)
        return [self._checked(question, value) for question, value in zip(questions, found, strict=True)]

    def check(self, question: Question) -> None:
        """Raise DataError, naming the question, where it lacks what this scorer needs."""
        where = question.where or f"task {question.id!r}"
        if self.needs == "answers" and not question.answers:
            raise DataError(
                f'{where}: the scorer {self.name} needs accepted answers, found none; add "answers" to the row'
            )
        if self.needs == "test" and not question.test:
            raise DataError(
                f'{where}: the scorer {self.name} needs "test", Python code that fails where the answer is wrong; add '
                "it to the row"
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
class Kind:
    """An entry of the list of scorers: how it is written, what it does, how it is made from what follows the colon."""

    usage: str
    description: str
    make: Callable[[str], Function | Scorer]
    needs: str = "answers"
    graded: bool = False
    """whether there are scores between 0 and 1, so that a mean is no share of answers"""
    late: bool = False
    """whether making it runs foreign code, needs a library or loads a model"""


KINDS: dict[str, Kind] = {}


def scorer(
    usage: str = "", needs: str = "answers", graded: bool = False, late: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a function known as a scorer by its name; the first sentence of its docstring is the description.

    Without `usage` the function is the scorer: (question, answer, finished) → score. With `usage`, such as
    "numeric[:TOLERANCE]", it takes the text after the colon and returns such a function, or a whole `Scorer`.
    """

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        name = function.__name__
        text = " ".join((function.__doc__ or "").split("\n\n")[0].split())
        KINDS[name] = Kind(usage or name, text, function if usage else lambda _: function, needs, graded, late)
        return function

    return add


def canonical(name: str) -> str:
    """The name of today for a scorer's name; every other text as it is."""
    return OLD_NAMES.get(name, name)


def describe(name: str) -> str:
    """The one-line description of the scorer that is written like this; "" where there is no such kind."""
    kind = KINDS.get(canonical(name).partition(":")[0])
    return kind.description if kind else ""


def is_share(name: str) -> bool:
    """Whether a scorer says yes or no, so that its mean is a share of answers."""
    kind = KINDS.get(canonical(name).partition(":")[0])
    return kind is not None and not kind.graded


def kind_of(spec: str, where: str) -> tuple[Kind, str]:
    """Return (the kind of scorer, the text after the colon). Raises ConfigError, which begins with `where`."""
    name, colon, argument = canonical(spec).partition(":")
    kind = KINDS.get(name)
    if kind is None:
        known = ", ".join(kind.usage for kind in KINDS.values())
        near = suggest(name, [*KINDS, *OLD_NAMES])
        raise ConfigError(f"{where}: there is no scorer {spec!r}{near}; the scorers are {known}")
    must = ":" in kind.usage and "[" not in kind.usage
    if (colon and ":" not in kind.usage) or (must and not argument) or (colon and not argument):
        raise ConfigError(f"{where}: found the scorer {spec!r}; it is written {kind.usage}")
    return kind, argument


def scorer_of(spec: str, where: str = "--scorer") -> Scorer:
    """The scorer that `spec` names, such as "f1" or "numeric:0.01". Raises ConfigError, which begins with `where`."""
    kind, argument = kind_of(spec, where)
    try:
        made = kind.make(argument)
    except ConfigError as error:
        raise ConfigError(f"{where} {spec}: {error}") from error
    name = canonical(spec)
    return made if isinstance(made, Scorer) else Scorer(name, made, kind.description, kind.needs)


def check_scorers(specs: Sequence[str], where: str = "--scorer") -> None:
    """Raise ConfigError for an unknown scorer, one named twice, or none; runs no foreign code and loads no model."""
    if not specs:
        raise ConfigError(f"{where}: no scorer is named; wanted one, for example {DEFAULT[0]}")
    for spec in specs:
        kind, _ = kind_of(spec, where)
        if [canonical(other) for other in specs].count(canonical(spec)) > 1:
            raise ConfigError(f"{where}: the scorer {spec} is named twice; name it once")
        if not kind.late:
            scorer_of(spec, where)


def scorers_for(specs: Sequence[str], questions: Sequence[Question]) -> list[Scorer]:
    """The scorers of a training's log, for the rows of its prompts; the default is left out where no row has answers.

    Raises ConfigError where another scorer needs answers that no row has, DataError where a row is not what it needs.
    """
    with_answers = [q for q in questions if q.answers]
    out = []
    for made in [scorer_of(spec) for spec in specs if with_answers or tuple(specs) != DEFAULT]:
        if made.needs and not with_answers:
            raise ConfigError(
                f'--scorer {made.name}: needs accepted answers, and no row of --prompts has "answers"; add them, or '
                "leave out --scorer"
            )
        for question in with_answers:
            made.check(question)
        out.append(made)
    return out


def scorer_files(specs: Sequence[str]) -> tuple[str, ...]:
    """The files of code among the scorers: inputs, to be pinned by hash."""
    places = [spec.removeprefix("python:").rpartition(":")[0] for spec in specs if spec.startswith("python:")]
    return tuple(file for file in map(source_of, places) if file)


# -- texts that are compared -----------------------------------------------------------------------------------------


@scorer()
def exact_match(question: Question, answer: str, finished: bool) -> float:
    """1 where the answer equals an accepted one; case, spaces and punctuation around it do not matter."""
    return float(matches(question, answer))


@scorer()
def verbatim(question: Question, answer: str, finished: bool) -> float:
    """1 where the answer is an accepted one letter by letter, but for spaces around it."""
    return float(answer.strip() in {a.strip() for a in question.answers})


@scorer()
def contains(question: Question, answer: str, finished: bool) -> float:
    """1 where an accepted answer stands in the answer as whole words, case folded."""
    words = _words(answer)

    def found(gold: str) -> bool:
        # an accepted answer without a letter or digit is looked for as it is
        return _words(gold) in words if _words(gold).strip() else gold.strip() in answer

    return float(any(map(found, question.answers)))


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


@scorer("regex:PATTERN", needs="")
def regex(pattern: str) -> Function:
    """1 where the pattern is found in the answer; with a group, where the last match's equals an accepted answer."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"the pattern {pattern!r} is not a regular expression: {error}; wanted one as Python's re has them"
        ) from error
    if not compiled.groups:
        return lambda question, answer, finished: float(compiled.search(answer) is not None)

    def last_group(question: Question, answer: str, finished: bool) -> float:
        found = [match[1] or "" for match in compiled.finditer(answer)]
        return float(bool(found) and matches(question, found[-1]))

    return last_group


@scorer("numeric[:TOLERANCE]")
def numeric(tolerance: str) -> Function:
    """1 where the answer's last number is within the tolerance (0 if not given) of an accepted answer's last number."""
    try:
        most = Decimal(tolerance or "0")
    except InvalidOperation:
        most = Decimal("NaN")
    if not most.is_finite() or most < 0:
        raise ConfigError(f"the tolerance is {tolerance!r}; wanted a number of 0 or more, as in numeric:0.01")

    def close(question: Question, answer: str, finished: bool) -> float:
        found = last_number(answer)
        wanted = [last_number(gold) for gold in question.answers]
        return float(found is not None and any(n is not None and abs(n - found) <= most for n in wanted))

    return close


def last_number(text: str) -> Decimal | None:
    """The last number of a text ("1,234.0" and "1234" are the same one); None where there is none."""
    found = _NUMBER.findall(text.replace("−", "-"))
    return Decimal(found[-1].replace(",", "")) if found else None


@scorer(graded=True)
def f1(question: Question, answer: str, finished: bool) -> float:
    """The best F1 over words shared with an accepted answer, as in SQuAD: without case, punctuation and articles."""
    return max(_f1(answer, gold) for gold in question.answers)


def _f1(answer: str, gold: str) -> float:
    """F1 = 2 · shared / (words of both), words counted as often as they stand (Rajpurkar et al. 2016).

    Where nothing but articles and punctuation is left of one of them, it is 1 for equal texts and 0 for others.
    """
    given, wanted = Counter(_squad_words(answer)), Counter(_squad_words(gold))
    if not given or not wanted:
        return float(bool(normalise(answer)) and normalise(answer) == normalise(gold))
    return 2 * sum((given & wanted).values()) / (sum(given.values()) + sum(wanted.values()))


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
    """sacrebleu's 0 to 100 as 0 to 1: rounding may put its full score a little above 100."""
    return min(1.0, float(metric.sentence_score(answer, list(question.answers)).score) / 100)


def _sacrebleu() -> Any:
    try:
        return importlib.import_module("sacrebleu.metrics")
    except ImportError as error:
        raise ConfigError(
            "the library sacrebleu is not installed; install it with: pip install 'tercet[metrics]'"
        ) from error


@scorer()
def sentence_with(question: Question, answer: str, finished: bool) -> float:
    """1 where the answer is one sentence of 3 to 20 words that uses the question's text as a word."""
    words = answer.split()
    shaped = answer.strip()[:1].isupper() and answer.strip().endswith((".", "!", "?")) and 3 <= len(words) <= 20
    word = re.escape(question.prompt[-1].content)
    return float(shaped and re.search(rf"\b{word}\b", answer, re.IGNORECASE) is not None)


# -- code that is run ------------------------------------------------------------------------------------------------


@scorer(needs="test")
def code(question: Question, answer: str, finished: bool) -> float:
    """1 where the answer's Python code (its ``` blocks, if any), followed by the row's "test", runs in the sandbox."""
    blocks = _CODE_BLOCK.findall(answer)
    return _ran("\n".join(blocks) if blocks else answer, question)


@scorer(needs="test")
def runs(question: Question, answer: str, finished: bool) -> float:
    """1 where the question, the answer that completes it and the row's "test" run in the sandbox as one program."""
    return _ran(f"{question.prompt[-1].content}\n{answer}", question)


def _ran(program: str, question: Question) -> float:
    from tercet.evaluation.scoring.sandbox import run_code

    return float(run_code(f"{program}\n\n{question.test}\n").ok)


@scorer(needs="id", graded=True)
def reasoning_gym(question: Question, answer: str, finished: bool) -> float:
    """The score of the task's own verifier in the package reasoning-gym, for rows of `tercet data-gym`."""
    from tercet.data.formats.reasoning_gym import verify

    return verify(question, answer, question.where or f"task {question.id!r}")


# -- functions, models, and the microworld's rubric ------------------------------------------------------------------


@scorer("python:FILE.py:FUNCTION", needs="", graded=True, late=True)
def python(place: str) -> Function:
    """A function of your own in a file or module: f(prompt, answer, answers) gives a number from 0 to 1."""
    function = load_function("python", place)

    def call(question: Question, answer: str, finished: bool) -> float:
        try:
            value: float = function(to_messages(question.prompt), answer, list(question.answers))
        except (Exception, SystemExit) as error:
            where = question.where or question.id
            raise DataError(
                f"{where}: the scorer python:{place} failed on the answer {answer[:80]!r}: {said(error)}"
            ) from error
        return value

    return call


@scorer("judge:RUN", late=True)
def judge(place: str) -> Scorer:
    """1 where a language model, shown an accepted answer, says that this is right: a run, or NAME@http(s)://…/v1."""
    from tercet.evaluation.scoring.judge_scorer import grader

    grade = grader(place)
    one: Function = lambda question, answer, finished: grade([question], [(answer, finished)])[0]  # noqa: E731
    return Scorer(f"judge:{place}", one, describe("judge"), batch=grade)


@scorer("rubric[:PART]", graded=True)
def rubric(part: str) -> Function:
    """The microworld's own rubric (right, a sentence, direct, finished), or one part of it, as in rubric:sentence."""
    module = importlib.import_module(_MICROWORLD)
    if part and part not in module.WEIGHTS:
        raise ConfigError(
            f"the rubric has no part {part!r}{suggest(part, module.WEIGHTS)}; it has {', '.join(module.WEIGHTS)}"
        )
    return lambda question, answer, finished: float(module.part_score(question, answer, finished, part or "total"))


def help_text() -> str:
    """A sentence that names every scorer, for `--help`."""
    return f"How answers are scored, from 0 to 1: one of {', '.join(kind.usage for kind in KINDS.values())}."
