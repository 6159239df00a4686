"""What an answer to a task is worth, from 0 to 1: one function a metric, and users' own by `metric`. No torch here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from tercet.data.microworld.rubric import exact_match, normalise
from tercet.data.types import Task as Question
from tercet.errors import ConfigError
from tercet.evaluation.task import Item
from tercet.training.settings import suggest

Metric = Callable[[Item, str], float]
METRICS: dict[str, Metric] = {}
CHRF_ORDER, CHRF_BETA = 6, 2.0
_WORD = re.compile(r"[^\W_]+")
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")


def metric(function: Metric) -> Metric:
    """Make a function (item, answer) → 0 … 1 known by its name."""
    METRICS[function.__name__] = function
    return function


def metric_of(name: str, where: str) -> Metric:
    """The metric of that name. Raises ConfigError, which begins with `where`, where there is none."""
    if name not in METRICS:
        raise ConfigError(f"{where}: no metric {name!r}{suggest(name, METRICS)}; there are {', '.join(METRICS)}")
    return METRICS[name]


@metric
def exact(item: Item, answer: str) -> float:
    """1 where the answer equals an accepted one; case, spaces and punctuation around it do not matter."""
    return float(exact_match(Question((), item.answers, item.ability, item.id), answer))


@metric
def verbatim(item: Item, answer: str) -> float:
    """1 where the answer is an accepted one, letter by letter, but for spaces around it."""
    return float(answer.strip() in {a.strip() for a in item.answers})


@metric
def contains(item: Item, answer: str) -> float:
    """1 where an accepted answer stands in the answer as whole words, case folded."""
    said = _words(answer)
    return float(any(_words(a) in said for a in item.answers))


def _words(text: str) -> str:
    return f" {' '.join(_WORD.findall(text.casefold()))} "


@metric
def number(item: Item, answer: str) -> float:
    """1 where the last number of the answer is the last one of an accepted answer (GSM8K's rule)."""
    found = last_number(answer)
    return float(bool(found) and found in {last_number(a) for a in item.answers})


def last_number(text: str) -> str:
    """The last number of a text in one spelling ("1,234.0" and "1234" are the same); "" where there is none."""
    found = _NUMBER.findall(text)
    return repr(float(found[-1].replace(",", ""))) if found else ""


@metric
def f1(item: Item, answer: str) -> float:
    """The best F1 over words shared with an accepted answer (Rajpurkar et al. 2016), case and outer punctuation folded."""
    given = Counter(normalise(answer).split())
    best = 0.0
    for gold in item.answers:
        wanted = Counter(normalise(gold).split())
        shared = sum((given & wanted).values())
        if shared:
            best = max(best, 2 * shared / (sum(given.values()) + sum(wanted.values())))
    return best


@metric
def chrf(item: Item, answer: str) -> float:
    """Character n-gram F-score, n = 1 … 6, β = 2 (Popović 2015), the best over accepted answers; spaces do not count.

    Precision and recall are means over the orders at which both texts have n-grams.
    """
    return max(_chrf(answer, gold) for gold in item.answers)


def _chrf(answer: str, gold: str) -> float:
    given, wanted = "".join(answer.split()), "".join(gold.split())
    precision = recall = orders = 0.0
    for n in range(1, CHRF_ORDER + 1):
        a = Counter(given[i : i + n] for i in range(len(given) - n + 1))
        b = Counter(wanted[i : i + n] for i in range(len(wanted) - n + 1))
        if not a or not b:
            continue
        shared = sum((a & b).values())
        precision, recall, orders = precision + shared / sum(a.values()), recall + shared / sum(b.values()), orders + 1
    if not precision or not recall:
        return 0.0
    p, r, square = precision / orders, recall / orders, CHRF_BETA**2
    return (1 + square) * p * r / (square * p + r)


@metric
def sentence_with(item: Item, answer: str) -> float:
    """1 where the answer is one sentence of 3 to 20 words that uses the item's input as a word."""
    words = answer.split()
    shaped = answer.strip()[:1].isupper() and answer.strip().endswith((".", "!", "?")) and 3 <= len(words) <= 20
    return float(shaped and re.search(rf"\b{re.escape(item.input)}\b", answer, re.IGNORECASE) is not None)


@metric
def runs(item: Item, answer: str) -> float:
    """1 where the input, the answer and the item's test run without an error in the sandbox."""
    from tercet.evaluation.sandbox import run_code

    return float(run_code(f"{item.input}\n{answer}\n\n{item.test}\n").ok)
