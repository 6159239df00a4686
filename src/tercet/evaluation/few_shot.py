"""Zero-, one- and few-shot evaluation of tasks: likelihoods of choices and targets, or generated answers.

All prompts of all settings are collected first, so that each distinct request is computed once. `TransformerLM` also
computes a prefix that prompts share only once.
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
CONTENT_FREE = ("N/A", "[MASK]", "")  # inputs that should not favour any label (Zhao et al. 2021)


@dataclass(frozen=True)
class FewShotSetting:
    """How a task is prompted: its template, and the number, draw (`seed`), order and labels of its examples.

    `order` 0 is the order in which examples were drawn; another number is a permutation of the same examples.
    `calibrate` is contextual calibration (Zhao et al. 2021), `votes` above 1 self-consistency (Wang et al. 2022).
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
    """most tokens of an answer (0: the task's own limit)"""


@dataclass(frozen=True)
class Reply:
    """A model's answer to one item, its scores by metric, and the prompt."""

    scores: dict[str, float]
    text: str
    prompt: str


@dataclass
class _Batch:
    """Distinct requests, each with its index in the order in which they came."""

    index: dict[tuple[str, object], int] = field(default_factory=dict)

    def add(self, first: str, second: object) -> int:
        return self.index.setdefault((first, second), len(self.index))


def prompt_of(task: Task, item: Item, setting: FewShotSetting, text: str | None = None) -> str:
    """Return the prompt of one item; `text` replaces its input. Raises ConfigError if there are too few examples."""
    pairs = task.labelled(task.draw(setting.shots, setting.seed, item), setting.labels, setting.seed)
    if setting.order:
        pairs = random.Random(f"order/{task.name}/{setting.seed}/{setting.order}").sample(pairs, len(pairs))
    return setting.form.prompt(item.input if text is None else text, pairs)


def answer(lm: LanguageModel, task: Task, settings: Sequence[FewShotSetting]) -> list[list[Reply]]:
    """Return the model's replies [settings][items] to every item of the task with every setting.

    Raises ConfigError for a setting that the task's kind does not have, ContextError if a prompt does not fit `lm`.
    """
    if task.kind == "choice":
        replies = _choices(lm, task, settings)
    elif task.kind == "target":
        replies = _targets(lm, task, settings)
    elif any(s.calibrate for s in settings):
        raise ConfigError(f"task {task.name!r} has no fixed labels, which --calibrate needs; leave out --calibrate")
    else:
        replies = _generated(lm, task, settings)
    n = len(task.items)
    return [replies[a : a + n] for a in range(0, len(replies), n)]


# -- choices ----------------------------------------------------------------------------------------------------------


def _choices(lm: LanguageModel, task: Task, settings: Sequence[FewShotSetting]) -> list[Reply]:
    if task.metric not in CHOICE_METRICS:
        raise ConfigError(
            f"task {task.name!r}: found the metric {task.metric!r}; a task of choices has {', '.join(CHOICE_METRICS)}"
        )
    if any(s.votes > 1 for s in settings):
        raise ConfigError(
            f"task {task.name!r} has choices; --self-consistency is for free answers: leave out --self-consistency"
        )
    if any(s.calibrate for s in settings) and not task.labels:
        raise ConfigError(f"task {task.name!r} has no fixed labels, which --calibrate needs; leave out --calibrate")
    batch, prompted = _Batch(), []
    for setting in settings:
        for item in task.items:
            prompts = item.contexts or (prompt_of(task, item, setting),) * len(item.choices)
            continuations = item.choices if item.contexts else [setting.form.answer(c) for c in item.choices]
            own = [batch.add(p, c) for p, c in zip(prompts, continuations)]
            blank: list[list[int]] = []
            for text in CONTENT_FREE if setting.calibrate else ():
                empty = prompt_of(task, item, setting, text)
                blank.append([batch.add(empty, c) for c in continuations])
            prompted.append((item, prompts[0], own, blank))
    results = lm.loglikelihood([(p, str(c)) for p, c in batch.index])
    return [_choose(item, prompt, own, blank, results) for item, prompt, own, blank in prompted]


def _choose(
    item: Item, prompt: str, own: Sequence[int], blank: Sequence[Sequence[int]], results: Sequence[Loglikelihood]
) -> Reply:
    """Return the likeliest choice, by log p (acc), per character (acc_norm) and per byte (acc_bytes), as lm-eval does.

    Of equally likely choices the first is taken.
    """
    logp = [results[i].logprob for i in own]
    if blank:
        logp = [a - b for a, b in zip(logp, content_free([[results[i].logprob for i in row] for row in blank]))]
    texts = [c.removeprefix(" ") for c in item.choices] if item.contexts else item.choices
    by = {
        "acc": logp,
        "acc_norm": [v / len(c) for v, c in zip(logp, texts)],
        "acc_bytes": [v / len(c.encode()) for v, c in zip(logp, texts)],
    }
    best = {name: max(range(len(values)), key=values.__getitem__) for name, values in by.items()}
    scores = {name: float(number in item.rights) for name, number in best.items()}
    return Reply(scores, item.choices[best["acc"]], prompt)


def content_free(logprobs: Sequence[Sequence[float]]) -> list[float]:
    """Return for each label the log of its mean probability over content-free inputs, [C].

    `logprobs` is [F, C]: inputs by labels; each row is normalised to sum to 1. To subtract the result is the affine map
    of Zhao et al. 2021 with W = diag(p_cf)⁻¹ and b = 0, before the argmax.
    """
    total = [0.0] * len(logprobs[0])
    for row in logprobs:
        top = max(row)
        weights = [math.exp(v - top) for v in row]
        total = [t + w / sum(weights) / len(logprobs) for t, w in zip(total, weights)]
    return [math.log(t) if t > 0 else -math.inf for t in total]


# -- one right answer -------------------------------------------------------------------------------------------------


def _targets(lm: LanguageModel, task: Task, settings: Sequence[FewShotSetting]) -> list[Reply]:
    """Score the right answer: whether it is the greedy continuation, and its −log2 p per byte (lower is better)."""
    if task.metric not in TARGET_METRICS:
        raise ConfigError(
            f"task {task.name!r}: found the metric {task.metric!r}; a target has {', '.join(TARGET_METRICS)}"
        )
    if any(s.calibrate or s.votes > 1 for s in settings):
        raise ConfigError(f"task {task.name!r} measures one given answer; leave out --calibrate and --self-consistency")
    batch, prompted = _Batch(), []
    for setting in settings:
        for item in task.items:
            prompt = item.contexts[0] if item.contexts else prompt_of(task, item, setting)
            text = item.answers[0] if item.contexts else setting.form.answer(item.answers[0])
            prompted.append((item, prompt, batch.add(prompt, text)))
    results = lm.loglikelihood([(p, str(c)) for p, c in batch.index])
    replies = []
    for item, prompt, number in prompted:
        result = results[number]
        bits = -result.logprob / math.log(2) / result.bytes
        replies.append(Reply({"greedy": float(result.greedy), "bits_per_byte": bits}, item.answers[0], prompt))
    return replies


# -- generated answers ------------------------------------------------------------------------------------------------


def _generated(lm: LanguageModel, task: Task, settings: Sequence[FewShotSetting]) -> list[Reply]:
    score = scorer_of(task.metric, f"task {task.name!r}")
    # answers sampled in the same way are generated in one call: {(temperature, longest, seed): prompts}
    batches: dict[tuple[float, int, int], _Batch] = {}
    prompted = []
    for setting in settings:
        if setting.votes > 1 and setting.temperature == 0:
            raise ConfigError("--self-consistency needs answers that differ; give --temperature, for example 0.7")
        longest = setting.max_new_tokens or task.max_new_tokens
        key = (setting.temperature, longest, setting.seed if setting.temperature else 0)
        batch = batches.setdefault(key, _Batch())
        for item in task.items:
            prompt = prompt_of(task, item, setting)
            prompted.append((key, item, prompt, [batch.add(prompt, number) for number in range(setting.votes)]))
    answers = {
        (t, longest, seed): lm.generate_until([(p, task.stops) for p, _ in batch.index], longest, t, seed)
        for (t, longest, seed), batch in batches.items()
    }
    replies = []
    known: dict[tuple[Item, str], float] = {}  # code is run in a process, so equal answers are scored once
    for key, item, prompt, numbers in prompted:
        text = vote([answers[key][i] for i in numbers], task.metric)
        if (item, text) not in known:
            known[item, text] = score(question_of(item), text)
        replies.append(Reply({task.metric: known[item, text]}, text, prompt))
    return replies


def vote(answers: Sequence[str], metric: str = "exact_match") -> str:
    """Return the most common answer; of equally common ones the first.

    For the metric `numeric`, answers agree if their last numbers are equal, whatever the reasoning before. Otherwise
    they agree if they are equal without case and outer punctuation. Empty answers have no vote.
    """
    if len(answers) == 1:
        return answers[0]
    by_number = metric.partition(":")[0] == "numeric"
    keys = [last_number(a) if by_number else normalise(a) or None for a in answers]
    counts = Counter(key for key in keys if key is not None)
    best = max(counts.values(), default=0)
    return next((a for a, key in zip(answers, keys) if key is not None and counts[key] == best), answers[0])


def check_room(lm: LanguageModel, task: Task, replies: Sequence[Reply], longest: int, refuse: bool) -> int:
    """Return the number of prompts that do not fit the model's context together with an answer of `longest` tokens.

    It is 0 if the model does not tell the length of its context. With `refuse`, raises ContextError if it is above 0.
    """
    if lm.context_length is None:
        return 0
    room = lm.context_length - longest
    lengths = lm.count_tokens(list({r.prompt for r in replies}))
    over: int = sum(n > room for n in lengths)
    if over and refuse:
        raise ContextError(
            f"task {task.name!r}: {over} of {len(lengths)} prompts do not fit; the longest has {max(lengths)} tokens, "
            f"and the context of {lm.context_length} has room for {room} beside the answer: use fewer --shots or "
            "--max-new-tokens, or a model with a longer context"
        )
    return over
