"""Asking a model tasks by completion: likelihoods of choices or generated answers, with any number of examples.

All ways of asking are gathered before the model is asked once: what two ways have in common is computed once, and
a prefix that prompts share is computed once (`TransformerLM`).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from tercet.data.text_matching import normalise
from tercet.errors import ConfigError, ContextError
from tercet.evaluation.scoring.scorers import last_number, scorer_of
from tercet.evaluation.task import Item, PromptTemplate, Task, question_of
from tercet.inference.language_model import LanguageModel, Loglikelihood

CHOICE_METRICS = ("acc", "acc_norm", "acc_bytes")
TARGET_METRICS = ("greedy", "bits_per_byte")
CONTENT_FREE = ("N/A", "[MASK]", "")  # inputs of Zhao et al. 2021 that should not favour any label


@dataclass(frozen=True)
class FewShotSetting:
    """One way to ask a task: how many examples, which (by `seed`), in what order, with what labels and in what form.

    `order` 0 is the order in which they were drawn; another number is a permutation of the same examples. `calibrate`
    is contextual calibration (Zhao et al. 2021), `votes` above 1 self-consistency (Wang et al. 2022).
    """

    form: PromptTemplate
    shots: int = 0
    seed: int = 0
    labels: str = "gold"
    order: int = 0
    calibrate: bool = False
    votes: int = 1
    temperature: float = 0.0
    max_new_tokens: int = 0
    """longest answer (0: the task's own)"""


@dataclass(frozen=True)
class Reply:
    """What a model made of one item: its scores from 0 to 1 by metric, its answer, and the prompt."""

    scores: dict[str, float]
    text: str
    prompt: str


@dataclass
class _Batch:
    """Distinct requests in the order in which they came."""

    places: dict[tuple[str, object], int] = field(default_factory=dict)

    def add(self, first: str, second: object) -> int:
        return self.places.setdefault((first, second), len(self.places))


def prompt_of(task: Task, item: Item, way: FewShotSetting, text: str | None = None) -> str:
    """The prompt of one item; `text` stands in for its input. Raises ConfigError where examples are too few."""
    examples = task.draw(way.shots, way.seed, item)
    shown = task.shown(examples, way.labels, way.seed)
    if way.order:
        shown = random.Random(f"order/{task.name}/{way.seed}/{way.order}").sample(shown, len(shown))
    return way.form.prompt(item.input if text is None else text, shown)


def answer(lm: LanguageModel, task: Task, ways: Sequence[FewShotSetting]) -> list[list[Reply]]:
    """Ask every item of the task in every way: replies [ways][items].

    Raises ConfigError for what the task's kind cannot do, ContextError from `lm`.
    """
    if task.kind == "choice":
        return _choices(lm, task, ways)
    if task.kind == "target":
        return _targets(lm, task, ways)
    if any(way.calibrate for way in ways):
        raise ConfigError(f"task {task.name!r} has free answers; calibration needs choices: leave out --calibrate")
    return _generated(lm, task, ways)


# -- choices -------------------------------------------------------------------------------------------------------------


def _choices(lm: LanguageModel, task: Task, ways: Sequence[FewShotSetting]) -> list[list[Reply]]:
    if task.metric not in CHOICE_METRICS:
        raise ConfigError(f"task {task.name!r}: metric {task.metric!r}; a choice has {', '.join(CHOICE_METRICS)}")
    if any(way.votes > 1 for way in ways):
        raise ConfigError(f"task {task.name!r} has choices; self-consistency votes over free answers: leave it out")
    batch, asked = _Batch(), []
    for way in ways:
        for item in task.items:
            prompts = item.contexts or (prompt_of(task, item, way),) * len(item.choices)
            continuations = item.choices if item.contexts else [way.form.answer(c) for c in item.choices]
            own = [batch.add(p, c) for p, c in zip(prompts, continuations)]
            blank: list[list[int]] = []
            if way.calibrate:
                if not task.labels:
                    raise ConfigError(
                        f"task {task.name!r} has no labels that all items share; calibration needs them: leave out --calibrate"
                    )
                for text in CONTENT_FREE:
                    empty = prompt_of(task, item, way, text)
                    blank.append([batch.add(empty, c) for c in continuations])
            asked.append((item, prompts[0], own, blank))
    found = lm.loglikelihood([(p, str(c)) for p, c in batch.places])
    replies = [_choose(item, prompt, own, blank, found) for item, prompt, own, blank in asked]
    n = len(task.items)
    return [replies[a : a + n] for a in range(0, len(replies), n)]


def _choose(
    item: Item, prompt: str, own: Sequence[int], blank: Sequence[Sequence[int]], found: Sequence[Loglikelihood]
) -> Reply:
    """acc by log p, acc_norm by log p per character, acc_bytes per byte of the choice (as lm-eval); the first of equals."""
    logp = [found[i].logprob for i in own]
    if blank:
        logp = [a - b for a, b in zip(logp, content_free([[found[i].logprob for i in row] for row in blank]))]
    texts = [c.removeprefix(" ") for c in item.choices] if item.contexts else item.choices
    by = {
        "acc": logp,
        "acc_norm": [v / len(c) for v, c in zip(logp, texts)],
        "acc_bytes": [v / len(c.encode()) for v, c in zip(logp, texts)],
    }
    best = {name: max(range(len(values)), key=values.__getitem__) for name, values in by.items()}
    scores = {name: float(chosen in item.rights) for name, chosen in best.items()}
    return Reply(scores, item.choices[best["acc"]], prompt)


def content_free(logprobs: Sequence[Sequence[float]]) -> list[float]:
    """log of the mean over content-free inputs [F, C] of p(label), each made to sum to 1 over the labels.

    Subtracting it is Zhao et al.'s affine map with W = diag(p_cf)⁻¹ and b = 0 before the argmax.
    """
    total = [0.0] * len(logprobs[0])
    for row in logprobs:
        top = max(row)
        weights = [math.exp(v - top) for v in row]
        total = [t + w / sum(weights) / len(logprobs) for t, w in zip(total, weights)]
    return [math.log(t) if t > 0 else -math.inf for t in total]


# -- one right answer ------------------------------------------------------------------------------------------------------


def _targets(lm: LanguageModel, task: Task, ways: Sequence[FewShotSetting]) -> list[list[Reply]]:
    """greedy: whether the likeliest tokens spell the answer; bits_per_byte: −log2 p of it per byte (lower is better)."""
    if task.metric not in TARGET_METRICS:
        raise ConfigError(f"task {task.name!r}: metric {task.metric!r}; a target has {', '.join(TARGET_METRICS)}")
    if any(way.calibrate or way.votes > 1 for way in ways):
        raise ConfigError(f"task {task.name!r} has one answer an item; leave out --calibrate and --self-consistency")
    batch, asked = _Batch(), []
    for way in ways:
        for item in task.items:
            prompt = item.contexts[0] if item.contexts else prompt_of(task, item, way)
            text = item.answers[0] if item.contexts else way.form.answer(item.answers[0])
            asked.append((item, prompt, batch.add(prompt, text)))
    found = lm.loglikelihood([(p, str(c)) for p, c in batch.places])
    replies = []
    for item, prompt, place in asked:
        bits = -found[place].logprob / math.log(2) / found[place].bytes
        scores = {"greedy": float(found[place].greedy), "bits_per_byte": bits}
        replies.append(Reply(scores, item.answers[0], prompt))
    n = len(task.items)
    return [replies[a : a + n] for a in range(0, len(replies), n)]


# -- generated answers ---------------------------------------------------------------------------------------------------


def _generated(lm: LanguageModel, task: Task, ways: Sequence[FewShotSetting]) -> list[list[Reply]]:
    score = scorer_of(task.metric, f"task {task.name!r}")
    # what is drawn with the same settings is asked in one call: {(temperature, longest, seed): prompts}
    batches: dict[tuple[float, int, int], _Batch] = {}
    asked = []
    for way in ways:
        if way.votes > 1 and way.temperature == 0:
            raise ConfigError("self-consistency needs answers that differ: give --temperature, for example 0.7")
        key = (way.temperature, way.max_new_tokens or task.max_new_tokens, way.seed if way.temperature else 0)
        batch = batches.setdefault(key, _Batch())
        for item in task.items:
            prompt = prompt_of(task, item, way)
            asked.append((key, item, prompt, [batch.add(prompt, vote) for vote in range(way.votes)]))
    found = {
        (t, longest, seed): lm.generate_until([(p, task.stops) for p, _ in batch.places], longest, t, seed)
        for (t, longest, seed), batch in batches.items()
    }
    replies = []
    known: dict[tuple[Item, str], float] = {}  # running code takes a process: the same answer is run once
    for key, item, prompt, places in asked:
        text = vote([found[key][i] for i in places], task.metric)
        if (item, text) not in known:
            known[item, text] = score(question_of(item), text)
        replies.append(Reply({task.metric: known[item, text]}, text, prompt))
    n = len(task.items)
    return [replies[a : a + n] for a in range(0, len(replies), n)]


def vote(answers: Sequence[str], metric: str = "exact_match") -> str:
    """The answer that most agree on; of equals the one that came first.

    Agreeing is by what the metric looks at: the last number where that is all that counts (the reasoning before it may
    differ), else the text with case and outer punctuation folded.
    """
    if len(answers) == 1:
        return answers[0]
    by_number = metric.partition(":")[0] == "numeric"
    keys = [last_number(a) if by_number else normalise(a) or None for a in answers]
    counts = Counter(key for key in keys if key is not None)  # who says nothing has no vote
    best = max(counts.values(), default=0)
    return next((a for a, key in zip(answers, keys) if key is not None and counts[key] == best), answers[0])


def check_room(lm: LanguageModel, task: Task, replies: Sequence[Reply], longest: int, refuse: bool) -> int:
    """How many prompts do not fit the model's context whole, beside an answer of `longest` tokens.

    0 where the model does not say how long its context is. Raises ContextError where `refuse`.
    """
    if lm.context_length is None:
        return 0
    room = lm.context_length - longest
    lengths = lm.count_tokens(list({r.prompt for r in replies}))
    over: int = sum(n > room for n in lengths)
    if over and refuse:
        raise ContextError(
            f"task {task.name!r}: {over} of {len(lengths)} prompts do not fit, the longest has {max(lengths)} tokens; the context of "
            f"{lm.context_length} leaves room for {room} beside the answer: ask with fewer --shots or --max-new-tokens, or a model with a longer context"
        )
    return over
