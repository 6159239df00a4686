"""Who judges which of two answers is better: a scorer, a reward model, a language model, an endpoint, a person.

A judge is given pairs and says of each 1 where the first answer is better, 0 where the second is, 1/2 for a tie. Models
and endpoints judge both orders, since many prefer the first of two answers; a person sees the two in a random order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows
from tercet.data.types import Conversation, Message, Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.config import WinRateConfig
from tercet.evaluation.scoring.judge_scorer import logprobs_of, verdict
from tercet.evaluation.scoring.scorers import KINDS, Scorer, scorer_of
from tercet.inference.http import ChatEndpoint
from tercet.inference.language_model import LanguageModel, RequestProgress, open_model
from tercet.inference.request_cache import RequestCache
from tercet.inference.reward_scores import score_texts
from tercet.statistics.intervals import win_rate
from tercet.statistics.pairwise import Game, both_orders, bradley_terry_ratings, difficulties, length_controlled
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import prompt_fitting
from tercet.training.load import language_model_run, load_reward_model, reward_model_run
from tercet.training.run import threads
from tercet.training.settings import suggest

PROMPT = """\
Which answer to the question is better: right, clear and to the point? Length does not matter.

Question: {question}
Answer A: {a}
Answer B: {b}

Say A, B or TIE.
Better:"""
VERDICT_TOKENS = 8  # at most, of an answer to it
VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}


@dataclass(frozen=True)
class Pair:
    """Two answers to one question; `finished` says which of them the model ended itself."""

    task: Question
    answers: tuple[str, str]
    finished: tuple[bool, bool]

    def turned(self) -> Pair:
        """The same pair in the other order."""
        return Pair(self.task, (self.answers[1], self.answers[0]), (self.finished[1], self.finished[0]))

    def asked(self) -> str:
        """The question that a model or a person is asked."""
        question = "\n".join(m.content for m in self.task.prompt)
        return PROMPT.format(question=question, a=self.answers[0], b=self.answers[1])


Judge = Callable[[Sequence[Pair]], Iterable[float]]


def _by_scores(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in pairs]


def scorer_judge(scorer: Scorer) -> Judge:
    """By which answer the scorer gives more."""

    def judge(pairs: Sequence[Pair]) -> list[float]:
        tasks = [p.task for p in pairs]
        found = [scorer.scores(tasks, [(p.answers[k], p.finished[k]) for p in pairs]) for k in (0, 1)]
        return _by_scores(list(zip(*found)))

    return judge


def reward_judge(path: str) -> Judge:
    """By the score of a reward model's run. Raises ConfigError where the run is of another kind."""
    run = reward_model_run(path)
    model, tokenizer = load_reward_model(run), Tokenizer.load(run.path)

    def ids(prompt: Conversation, answer: str, finished: bool) -> list[int]:
        said = [*tokenizer.encode(answer), *([tokenizer.im_end] if finished else [])]
        return [*prompt_fitting(tokenizer, prompt, model.config.context_length - len(said))[0], *said]

    def judge(pairs: Sequence[Pair]) -> list[float]:
        texts = [ids(p.task.prompt, p.answers[k], p.finished[k]) for p in pairs for k in (0, 1)]
        found = score_texts(model, texts, tokenizer.pad)
        return _by_scores(list(zip(found[::2], found[1::2])))

    return judge


def model_judge(lm: LanguageModel) -> Judge:
    """By which of " A" and " B" a language model finds likelier after `PROMPT`.

    Raises ContextError where a prompt does not fit the model's context: cut, it would be judged without its question.
    """

    def judge(pairs: Sequence[Pair]) -> list[float]:
        prompts = [(p.task.where or p.task.id, p.asked()) for p in pairs]
        return _by_scores(logprobs_of(lm, prompts, (" A", " B")))

    return judge


def spoken_judge(lm: LanguageModel) -> Judge:
    """By the answer of a language model to `PROMPT`, in chat form. Raises DataError where an answer has no `verdict`."""

    def one(pair: Pair) -> float:
        said = lm.chat([(pair.task.where or pair.task.id, (Message("user", pair.asked()),))], VERDICT_TOKENS)[0].text
        if (value := verdict(said, VERDICTS, "BETTER")) is None:
            raise DataError(
                f'judge {lm.name}: it said {said[:200]!r}; wanted A, B or TIE and no more, or a line "Better: A": name another '
                "--judge-model (with --cache, what it has judged is kept)"
            )
        return value

    return lambda pairs: map(one, pairs)


def person_judge(seed: int, read: Callable[[str], str] = input, write: Callable[[str], object] = print) -> Judge:
    """By what a person types: 1, 2 or = for a tie. The two answers stand in a random order, without the models' names."""

    def judge(pairs: Sequence[Pair]) -> Iterator[float]:
        for number, pair in enumerate(pairs):
            turned = random.Random(f"{seed}/{number}").random() < 0.5
            shown = pair.turned() if turned else pair
            write(f"\n{number + 1} of {len(pairs)}: " + "\n".join(m.content for m in pair.task.prompt))
            write(f"  1: {shown.answers[0]}\n  2: {shown.answers[1]}")
            try:
                while (said := read("better (1, 2, =): ").strip()) not in ("1", "2", "="):
                    write("type 1, 2 or =")
            except EOFError:
                raise DataError(
                    f"the input ended after {number} of {len(pairs)} judgements; judge all, fewer with --limit, or go on later with "
                    "--cache"
                ) from None
            value = {"1": 1.0, "2": 0.0, "=": 0.5}[said]
            yield 1 - value if turned else value

    return judge


def kept(judge: Judge, cache: RequestCache, name: str) -> Judge:
    """The same judge; its judgement of a pair is written to the request cache at once, and not asked for again."""

    def judged_once(pairs: Sequence[Pair]) -> list[float]:
        keys = [cache.key("judge", name, p.asked()) for p in pairs]
        left = [n for n, key in enumerate(keys) if cache.get(key) is None]
        found = {}
        for n, value in zip(left, judge([pairs[n] for n in left])):
            found[n] = value
            cache.put({keys[n]: value})
        return [found[n] if n in found else float(cache.get(key) or 0.0) for n, key in enumerate(keys)]

    return judged_once


def open_judge(config: WinRateConfig, progress: RequestProgress | None = None) -> tuple[Judge, bool]:
    """(the judge that the settings name, whether it judges both orders). Raises ConfigError."""
    name, _, rest = config.judge.partition(":")
    if config.cache and (name in KINDS or name == "reward"):
        raise ConfigError(
            f"--cache is not needed with --judge {config.judge}: its scores are recomputed in seconds; leave out --cache"
        )
    if name in KINDS:
        return scorer_judge(scorer_of(config.judge, "--judge")), False
    if name == "reward" and rest:
        return reward_judge(rest), False
    if name == "model" and rest:
        return model_judge(open_model(rest, cache=config.cache or None, progress=progress)), True
    if config.judge == "person":
        return kept(person_judge(config.seed), RequestCache(config.cache or None), "person"), False
    if name in ("http", "https"):
        if not config.judge_model:
            raise ConfigError("a judge at an address needs the name of its model: give --judge-model")
        lm = ChatEndpoint(config.judge, config.judge_model, config.timeout, config.retries, "judge")
        return kept(spoken_judge(lm), RequestCache(config.cache or None), f"{config.judge} {config.judge_model}"), True
    raise ConfigError(
        f"--judge {config.judge!r}; wanted a scorer such as exact_match, or reward:RUN, model:RUN, person, or an "
        f"address http(s)://…/v1{suggest(name, KINDS)}"
    )


def judged(judge: Judge, pairs: Sequence[Pair], both: bool) -> tuple[list[float], float | None]:
    """(a judgement of every pair, share of pairs whose winner changed with the order: None where only one was asked)."""
    if not both:
        return list(judge(pairs)), None
    found = list(judge([*pairs, *(p.turned() for p in pairs)]))
    wins, changed = both_orders(found[: len(pairs)], found[len(pairs) :])
    return [float(w) for w in wins], changed


def win_rates(
    config: WinRateConfig,
    judge: tuple[Judge, bool] | None = None,
    progress: RequestProgress | None = None,
) -> dict[str, Any]:
    """Every model's win rate against the first, plain and length-controlled, and the strengths of all.

    Raises ConfigError for a run or judge that cannot be had, DataError for questions that are not what they must be,
    ContextError for what does not fit a model or judge.
    """
    questions = [q for _, q in read_questions(config.questions, BadRows(skip=config.skip_bad_rows))][
        : config.limit or None
    ]
    prompts = [(q.where or q.id, q.prompt) for q in questions]
    runs = [language_model_run(path) for path in config.models]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"winrate: a run is named twice in {', '.join(config.models)}; name each once")
    with threads(config.threads):
        decide, both = judge or open_judge(config, progress)
        said = []
        for run in runs:
            answers = open_model(run.path).chat(prompts, config.max_new_tokens, config.temperature, config.seed)
            said.append([(a.text, a.finished) for a in answers])
        met = list(combinations(range(len(said)), 2))
        games, found = list[Game](), list[tuple[list[float], float | None]]()
        for a, b in met:
            pairs = [
                Pair(q, (y[0], x[0]), (y[1], x[1])) for q, x, y in zip(questions, said[a], said[b])
            ]  # the later model stands first: it is what is measured
            found.append(judged(decide, pairs, both))
            games += [Game(b, a, w, n) for n, w in enumerate(found[-1][0])]
        lengths = np.array([[len(t) for t, _ in answers] for answers in said], dtype=np.float64)
        gamma = (
            difficulties(np.array([w for w, _ in found]), np.array([lengths[b] - lengths[a] for a, b in met]))
            if len(met) > 2 else [None] * len(met)
        )  # fmt: skip
        out = list[dict[str, Any]]()
        for (a, b), (wins, changed), hard in zip(met, found, gamma):
            out.append(
                {
                    "model": config.models[b], "against": config.models[a], "prompts": len(wins),
                    "win_rate": win_rate(wins, [1 - w for w in wins]).to_json(), "ties": sum(w == 0.5 for w in wins) / len(wins),
                    "length_controlled": length_controlled(wins, lengths[b], lengths[a], config.seed, difficulty=hard).to_json(),
                    "mean_length": [float(lengths[k].mean()) for k in (b, a)], "changed_with_order": changed, "wins": wins,
                }
            )  # fmt: skip
        table = bradley_terry_ratings(games, len(said), config.seed)
    return {
        "config": config.to_json(),
        "pairs": out,
        "strengths": {path: e.to_json() for path, e in zip(config.models, table)},
    }
