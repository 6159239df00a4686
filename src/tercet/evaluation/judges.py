"""Judges of two answers: a scorer, a reward model, a language model, an endpoint or a person.

A judge is given pairs. For each it returns 1 if the first answer is better, 0 if the second is, and 1/2 for a tie.
Models and endpoints judge both orders, since many prefer the first of two answers; a person sees the two in a random
order.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows
from tercet.data.types import Conversation, Message, Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.config import WinRateConfig
from tercet.evaluation.scoring.judge_scorer import logprobs_of, read_verdict
from tercet.evaluation.scoring.scorers import SCORER_ENTRIES, Scorer, scorer_of
from tercet.inference.http import ChatEndpoint
from tercet.inference.language_model import LanguageModel, RequestProgress, open_model
from tercet.inference.request_cache import RequestCache
from tercet.inference.reward_scores import score_texts
from tercet.statistics.intervals import win_rate
from tercet.statistics.pairwise import Game, both_orders, bradley_terry_ratings, difficulties, length_controlled
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import prompt_fitting
from tercet.training.load import load_reward_model
from tercet.training.run import threads
from tercet.training.settings import suggest
from tercet.training.stage import language_model_run, reward_model_run

PROMPT = """\
Which answer to the question is better: right, clear and to the point? Length does not matter.

Question: {question}
Answer A: {a}
Answer B: {b}

Say A, B or TIE.
Better:"""
VERDICT_TOKENS = 8  # most tokens of a judge's answer
VERDICTS = {"A": 1.0, "B": 0.0, "TIE": 0.5}


@dataclass(frozen=True)
class Pair:
    """Two answers to one question; `finished` says which of them their model ended itself."""

    question: Question
    answers: tuple[str, str]
    finished: tuple[bool, bool]

    def turned(self) -> Pair:
        """Return the same pair in the other order."""
        return Pair(self.question, (self.answers[1], self.answers[0]), (self.finished[1], self.finished[0]))

    def prompt(self) -> str:
        """Return the prompt for a model that judges the pair."""
        question = "\n".join(m.content for m in self.question.prompt)
        return PROMPT.format(question=question, a=self.answers[0], b=self.answers[1])


Judge = Callable[[Sequence[Pair]], Iterable[float]]


def _by_scores(pairs: Sequence[tuple[float, float]]) -> list[float]:
    return [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in pairs]


def scorer_judge(scorer: Scorer) -> Judge:
    """Return a judge that prefers the answer with the higher score."""

    def judge(pairs: Sequence[Pair]) -> list[float]:
        questions = [p.question for p in pairs]
        scores = [scorer.scores(questions, [(p.answers[k], p.finished[k]) for p in pairs]) for k in (0, 1)]
        return _by_scores(list(zip(*scores)))

    return judge


def reward_judge(path: str) -> Judge:
    """Return a judge that prefers the answer with the higher reward. Raises ConfigError for another kind of run."""
    run = reward_model_run(path)
    model, tokenizer = load_reward_model(run), Tokenizer.load(run.path)

    def ids(prompt: Conversation, answer: str, finished: bool) -> list[int]:
        tokens = [*tokenizer.encode(answer), *([tokenizer.im_end] if finished else [])]
        return [*prompt_fitting(tokenizer, prompt, model.config.context_length - len(tokens))[0], *tokens]

    def judge(pairs: Sequence[Pair]) -> list[float]:
        texts = [ids(p.question.prompt, p.answers[k], p.finished[k]) for p in pairs for k in (0, 1)]
        scores = score_texts(model, texts, tokenizer.pad)
        return _by_scores(list(zip(scores[::2], scores[1::2])))

    return judge


def model_judge(lm: LanguageModel) -> Judge:
    """Return a judge that takes the likelier one of " A" and " B" after `PROMPT` by a language model.

    It raises ContextError if a prompt does not fit the model's context, because a cut prompt would lose its question.
    """

    def judge(pairs: Sequence[Pair]) -> list[float]:
        prompts = [(p.question.where or p.question.id, p.prompt()) for p in pairs]
        return _by_scores(logprobs_of(lm, prompts, (" A", " B")))

    return judge


def spoken_judge(lm: LanguageModel) -> Judge:
    """Return a judge that reads the answer of a language model to `PROMPT`, in chat form.

    It raises DataError if an answer is neither A, B nor TIE.
    """

    def one(pair: Pair) -> float:
        place, prompt = pair.question.where or pair.question.id, (Message("user", pair.prompt()),)
        reply = lm.chat([(place, prompt)], VERDICT_TOKENS)[0].text
        if (value := read_verdict(reply, VERDICTS, "BETTER")) is None:
            raise DataError(
                f"judge {lm.name}: it said {reply[:200]!r}; wanted A, B or TIE and nothing else, or the line 'Better: "
                "A'; name another --judge-model (with --cache, earlier judgements are kept)"
            )
        return value

    return lambda pairs: map(one, pairs)


def person_judge(seed: int, read: Callable[[str], str] = input, write: Callable[[str], object] = print) -> Judge:
    """Return a judge that shows pairs to a person, who types 1, 2 or = for a tie.

    The two answers are shown in a random order, without their models' names.
    """

    def judge(pairs: Sequence[Pair]) -> Iterator[float]:
        for number, pair in enumerate(pairs):
            turned = random.Random(f"{seed}/{number}").random() < 0.5
            first, second = (pair.turned() if turned else pair).answers
            write(f"\n{number + 1} of {len(pairs)}: " + "\n".join(m.content for m in pair.question.prompt))
            write(f"  1: {first}\n  2: {second}")
            try:
                while (typed := read("Which is better (1, 2, = for a tie)? ").strip()) not in ("1", "2", "="):
                    write("Please type 1, 2 or =.")
            except EOFError:
                raise DataError(
                    f"the input ended after {number} of {len(pairs)} judgements; judge all of them, fewer with "
                    "--limit, or use --cache, so that you can continue later"
                ) from None
            value = {"1": 1.0, "2": 0.0, "=": 0.5}[typed]
            yield 1 - value if turned else value

    return judge


def cached(judge: Judge, cache: RequestCache, name: str) -> Judge:
    """Return the same judge with a cache: each judgement is written to it at once, and not made again."""

    def judge_new(pairs: Sequence[Pair]) -> list[float]:
        keys = [cache.key("judge", name, p.prompt()) for p in pairs]
        left = [n for n, key in enumerate(keys) if cache.get(key) is None]
        new = {}
        for n, value in zip(left, judge([pairs[n] for n in left])):
            new[n] = value
            cache.put({keys[n]: value})
        return [new[n] if n in new else float(cache.get(key) or 0.0) for n, key in enumerate(keys)]

    return judge_new


def open_judge(config: WinRateConfig, progress: RequestProgress | None = None) -> tuple[Judge, bool]:
    """Return the judge that --judge names, and whether it judges both orders. Raises ConfigError if there is none."""
    name, _, rest = config.judge.partition(":")
    if config.cache and (name in SCORER_ENTRIES or name == "reward"):
        raise ConfigError(
            f"--cache is not needed with --judge {config.judge}: its scores are recomputed in seconds; leave out "
            "--cache"
        )
    if name in SCORER_ENTRIES:
        return scorer_judge(scorer_of(config.judge, "--judge")), False
    if name == "reward" and rest:
        return reward_judge(rest), False
    if name == "model" and rest:
        return model_judge(open_model(rest, cache=config.cache or None, progress=progress)), True
    if config.judge == "person":
        return cached(person_judge(config.seed), RequestCache(config.cache or None), "person"), False
    if name in ("http", "https"):
        if not config.judge_model:
            raise ConfigError("--judge: an address needs the name of its model; give it with --judge-model")
        lm = ChatEndpoint(config.judge, config.judge_model, config.timeout, config.retries, "judge")
        return cached(
            spoken_judge(lm), RequestCache(config.cache or None), f"{config.judge} {config.judge_model}"
        ), True
    raise ConfigError(
        f"--judge {config.judge!r}; wanted a scorer such as exact_match, or reward:RUN, model:RUN, person, or an "
        f"address http(s)://…/v1{suggest(name, SCORER_ENTRIES)}"
    )


def judge_pairs(judge: Judge, pairs: Sequence[Pair], both: bool) -> tuple[list[float], float | None]:
    """Return a judgement of every pair, and the share of pairs whose winner changes with the order.

    With `both`, every pair is judged in both orders; otherwise in one, and the share is None.
    """
    if not both:
        return list(judge(pairs)), None
    values = list(judge([*pairs, *(p.turned() for p in pairs)]))
    wins, changed = both_orders(values[: len(pairs)], values[len(pairs) :])
    return [float(w) for w in wins], changed


def win_rates(
    config: WinRateConfig,
    judge: tuple[Judge, bool] | None = None,
    progress: RequestProgress | None = None,
) -> dict[str, Any]:
    """Return the win rate of each pair of models, plain and length-controlled, and the Bradley–Terry ratings of all.

    Raises ConfigError for a run or judge that cannot be used, DataError for wrong questions, ContextError if a prompt
    does not fit a model or judge.
    """
    questions = [q for _, q in read_questions(config.questions, BadRows(skip=config.skip_bad_rows))]
    questions = questions[: config.limit or None]
    prompts = [(q.where or q.id, q.prompt) for q in questions]
    runs = [language_model_run(path) for path in config.models]
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise ConfigError(f"winrate: a run is named twice in {', '.join(config.models)}; name each once")
    with threads(config.threads):
        decide, both = judge or open_judge(config, progress)
        answers = [
            open_model(run.path).chat(prompts, config.max_new_tokens, config.temperature, config.seed) for run in runs
        ]
        met = list(combinations(range(len(runs)), 2))
        games, results = list[Game](), list[tuple[list[float], float | None]]()
        for a, b in met:
            # the win rate is that of the later model, so its answer stands first
            pairs = [
                Pair(q, (y.text, x.text), (y.finished, x.finished))
                for q, x, y in zip(questions, answers[a], answers[b])
            ]
            results.append(judge_pairs(decide, pairs, both))
            games += [Game(b, a, w, n) for n, w in enumerate(results[-1][0])]
        lengths = np.array([[len(a.text) for a in of_model] for of_model in answers], dtype=np.float64)
        difficulty: Sequence[NDArray[np.float64] | None] = [None] * len(met)
        if len(met) > 2:
            longer = np.array([lengths[b] - lengths[a] for a, b in met])
            difficulty = list(difficulties(np.array([wins for wins, _ in results]), longer))
        out = list[dict[str, Any]]()
        for (a, b), (wins, changed), hard in zip(met, results, difficulty):
            controlled = length_controlled(wins, lengths[b], lengths[a], config.seed, difficulty=hard)
            out.append(
                {
                    "model": config.models[b],
                    "against": config.models[a],
                    "prompts": len(wins),
                    "win_rate": win_rate(wins, [1 - w for w in wins]).to_json(),
                    "ties": sum(w == 0.5 for w in wins) / len(wins),
                    "length_controlled": controlled.to_json(),
                    "mean_length": [float(lengths[k].mean()) for k in (b, a)],
                    "changed_with_order": changed,
                    "wins": wins,
                }
            )
        ratings = bradley_terry_ratings(games, len(runs), config.seed)
    return {
        "config": config.to_json(),
        "pairs": out,
        "strengths": {path: e.to_json() for path, e in zip(config.models, ratings)},
    }
