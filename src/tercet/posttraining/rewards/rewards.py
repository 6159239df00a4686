"""Rewards for answers: reward models, scorers, functions, processes and endpoints, added up with weights.

    runs/reward                  a reward model
    mean(runs/a,runs/b)          the mean of an ensemble of reward models, or with min(…) its minimum
    exact_match, f1, rubric …    a scorer (evaluation/scoring/scorers.py) that uses the accepted answers of the row
    python:rewards/mine.py:f     a function f(prompt, answer, answers) → number
    process:./score --fast       a child process
    https://host/score           an endpoint

Each may have a weight in front, `0.5*exact_match`. The reward is the weighted sum.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from pathlib import Path
from types import TracebackType
from typing import Any

from tercet.data.formats.conversations import to_messages
from tercet.data.types import Conversation, Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring.functions import error_text, load_function, source_of
from tercet.evaluation.scoring.scorers import SCORER_ENTRIES, Scorer, scorer_of
from tercet.inference.http import HttpScorer
from tercet.inference.reward_scores import score_texts
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.posttraining.rewards.process import ProcessScorer, words_of
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import load_reward_model
from tercet.training.run import Run
from tercet.training.settings import suggest
from tercet.training.stage import reward_model_run

LARGEST_REWARD = 1e30  # largest reward: sums and squares above 1e38 are infinite in float32
# Without "judge": its model would have to be a parent run. "python" is a reward of its own, which may be any number.
SCORERS = tuple(name for name in SCORER_ENTRIES if name not in ("judge", "python"))
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda s: math.fsum(s) / len(s), "min": min}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SPEC = re.compile(rf"\s*(?:({_NUMBER})\s*\*)?\s*(.*?)\s*", re.DOTALL)
_ENSEMBLE = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class SampledAnswer:
    """A sampled answer, with all that a reward may use."""

    where: str  # file:line of its prompt
    prompt: Conversation
    text: str  # the decoded answer
    finished: bool  # whether the model ended it with the end token
    tokens: tuple[int, ...]  # prompt and answer as sampled, never decoded and encoded again
    question: Question | None = None  # accepted answers, if the row has them


Reward = Callable[[Sequence[SampledAnswer]], list[float]]


@dataclass(frozen=True)
class RewardSpec:
    """One reward of --reward; `name` is unique among the rewards of a run."""

    name: str
    weight: float
    kind: str  # "run", "python", "process", "http" or "scorer"
    body: str  # the text without weight and kind
    paths: tuple[str, ...] = ()  # reward-model runs
    aggregate: str = "mean"  # how their scores are combined


def parse_rewards(specs: Sequence[str]) -> list[RewardSpec]:
    """Return the rewards that `specs` name.

    Raises ConfigError if there is none, one is unknown, a run is named twice, or all weights are 0.
    """
    if not specs:
        raise ConfigError(f"--reward is empty; wanted {_expected_rewards()}")
    rewards: list[RewardSpec] = []
    for text in specs:
        match = _SPEC.fullmatch(text)
        assert match is not None  # every text matches, if only with an empty body
        weight, body = float(match[1] or 1.0), match[2]
        if not math.isfinite(weight):
            raise ConfigError(f"reward {text!r}: the weight {match[1]} is too large; wanted a finite number")
        kind, rest, label = _kind(text, body)
        paths, aggregate = _paths(text, body) if kind == "run" else ((), "mean")
        label = label or (Path(paths[0]).resolve().name if len(paths) == 1 else f"{aggregate}_{len(paths)}")
        taken = {spec.name for spec in rewards}
        name = next(n for n in (label, *(f"{label}{i}" for i in range(2, len(specs) + 2))) if n not in taken)
        rewards.append(RewardSpec(name, weight, kind, rest, paths, aggregate))
    every = [str(Path(path).resolve()) for spec in rewards for path in spec.paths]
    if twice := [path for path in every if every.count(path) > 1]:
        raise ConfigError(f"--reward names the reward model {twice[0]} twice; name it once, with one weight")
    if not any(spec.weight for spec in rewards):
        raise ConfigError("--reward: every weight is 0, so all answers are equal; give a reward another weight")
    return rewards


def _kind(text: str, body: str) -> tuple[str, str, str]:
    """Return a reward's kind, the text after the kind, and its name in the log ("" for runs)."""
    if body.partition(":")[0] in SCORERS:
        scorer_of(body, "--reward")
        return "scorer", body, body
    if body.startswith(("http://", "https://")):
        return "http", body, "http"
    for kind in ("python", "process"):
        if body.startswith(f"{kind}:"):
            rest = body.removeprefix(f"{kind}:").strip()
            return kind, rest, rest.rpartition(":")[2] if kind == "python" else kind
    if not body or (not _ENSEMBLE.fullmatch(body) and "," not in body and not Path(body).exists()):
        hint = suggest(body, SCORERS)
        raise ConfigError(
            f"--reward {text!r} is neither a known reward nor a folder{hint}{' Wanted' if hint else '; wanted'} "
            f"{_expected_rewards()}"
        )
    return "run", body, ""


def _expected_rewards() -> str:
    return (
        f"a run of `tercet reward`, mean(run,run), min(run,run), a scorer ({', '.join(SCORERS)}), "
        "python:file.py:function, process:command or http(s)://address, with or without a weight in front "
        "(0.5*exact_match)"
    )


def _paths(text: str, body: str) -> tuple[tuple[str, ...], str]:
    """Return the paths of a reward's runs, and how their scores are combined."""
    match = _ENSEMBLE.fullmatch(body)
    if match is None:
        if "," in body:
            raise ConfigError(
                f"reward {text!r} names several runs; wanted mean({body}) or min({body}) to combine their scores"
            )
        return (body,), "mean"
    if match[1] not in AGGREGATES:
        raise ConfigError(
            f"reward {text!r}: unknown aggregate {match[1]!r}; wanted "
            f"{' or '.join(AGGREGATES)}{suggest(match[1], AGGREGATES)}"
        )
    paths = tuple(path.strip() for path in match[2].split(","))
    if not all(paths):
        raise ConfigError(f"reward {text!r}: a run's path is empty; wanted {match[1]}(runs/a,runs/b)")
    return paths, match[1]


def reward_runs(specs: Sequence[str]) -> dict[str, Run]:
    """Return the reward-model runs among `specs` by their role as parents: "reward", "reward2", …; loads no weights.

    Raises ConfigError or CheckpointError if a path is not the run of a reward model.
    """
    paths = [path for spec in parse_rewards(specs) for path in spec.paths]
    return {f"reward{number if number > 1 else ''}": reward_model_run(path) for number, path in enumerate(paths, 1)}


def reward_files(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the code files among `specs`: Python modules, and files in command lines. A run pins them by hash."""
    files: list[str] = []
    for spec in parse_rewards(specs):
        if spec.kind == "python":
            files.append(source_of(spec.body.rpartition(":")[0]))
        elif spec.kind == "process":
            files += [word for word in words_of(spec.body) if Path(word).is_file()]
    return tuple(file for file in files if file)


class Rewards:
    """Several rewards with weights. `runs` are the reward models' runs by role, `weights` the weights by name.

    `timeout` (seconds) and `retries` apply to processes and endpoints. Raises ConfigError if a reward cannot be loaded,
    or if a reward model has another tokenizer or a shorter context than the model that answers (`config`).
    """

    def __init__(
        self, specs: Sequence[str], tokenizer: Tokenizer, config: ModelConfig, timeout: float = 30.0, retries: int = 2
    ) -> None:
        self.specs = parse_rewards(specs)
        self.weights = {spec.name: spec.weight for spec in self.specs}
        self.runs = reward_runs(specs)
        self._closing: list[Callable[[], None]] = []
        remaining = iter(self.runs.values())
        self._parts: dict[str, Reward] = {}
        self._scorers: list[Scorer] = []
        for spec in self.specs:
            if spec.kind == "run":
                models = [_reward_model(next(remaining), tokenizer, config) for _ in spec.paths]
                self._parts[spec.name] = partial(_model_scores, models, AGGREGATES[spec.aggregate], tokenizer.pad)
            elif spec.kind == "scorer":
                self._scorers.append(scorer_of(spec.body, "--reward"))
                self._parts[spec.name] = partial(_score, self._scorers[-1])
            elif spec.kind == "python":
                self._parts[spec.name] = partial(_call, spec.name, load_function(f"reward {spec.name}", spec.body))
            else:
                scorer = (ProcessScorer if spec.kind == "process" else HttpScorer)(
                    f"reward {spec.name}", spec.body, timeout, retries
                )
                self._closing.append(scorer.close)
                self._parts[spec.name] = partial(_send, scorer)

    def check(self, rows: Iterable[tuple[str, Question | None]]) -> None:
        """Raise DataError if a scorer cannot score answers to one of the (where, question)."""
        for where, question in rows:
            for scorer in self._scorers:
                _check_question(scorer, where, question)

    def __call__(self, answers: Sequence[SampledAnswer]) -> tuple[list[float], dict[str, float]]:
        """Return the weighted sum for each answer, and the mean of each part, without its weight, as "reward/NAME".

        Raises DataError, naming the reward and the prompt, if a reward fails or is not a finite number.
        """
        totals, means = [0.0] * len(answers), {}
        for spec in self.specs:
            scores = _checked(spec.name, answers, self._parts[spec.name](answers), spec.weight)
            totals = [total + spec.weight * score for total, score in zip(totals, scores)]
            means[f"reward/{spec.name}"] = math.fsum(scores) / max(len(scores), 1)
        return totals, means

    def close(self) -> None:
        """End the child processes."""
        for close in self._closing:
            close()

    def __enter__(self) -> Rewards:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked(name: str, answers: Sequence[SampledAnswer], scores: Sequence[Any], weight: float) -> list[float]:
    if len(scores) != len(answers):
        first = f" (the first to {answers[0].where})" if answers else ""
        raise DataError(f"reward {name}: {len(scores)} scores for {len(answers)} answers{first}; wanted one each")
    for one, score in zip(answers, scores):
        try:
            fits = (
                isinstance(score, Real)
                and abs(float(score)) <= LARGEST_REWARD
                and abs(weight * float(score)) <= LARGEST_REWARD
            )
        except OverflowError:  # an integer too large for a float
            fits = False
        if not fits:
            huge = isinstance(score, int) and score.bit_length() > 1000  # too long to print
            printed = "an integer too large for a float" if huge else repr(score)[:80]
            times = f" (its weight is {weight:g})" if weight != 1 else ""
            raise DataError(
                f"{one.where}: reward {name} returned {printed}{times} for the answer {one.text[:80]!r}; wanted a "
                f"finite number, at most {LARGEST_REWARD:g} with its weight"
            )
    return [float(score) for score in scores]


# -- reward models ---------------------------------------------------------------------------------------------------


def _reward_model(run: Run, tokenizer: Tokenizer, config: ModelConfig) -> ValueHeadModel:
    if Tokenizer.load(run.path).fingerprint() != tokenizer.fingerprint():
        raise ConfigError(
            f"the reward model {run.path} and the model that answers have different tokenizers; train the reward model "
            "from the same model"
        )
    model = load_reward_model(run)
    if model.config.context_length < config.context_length:
        raise ConfigError(
            f"the reward model {run.path} has a context of {model.config.context_length} tokens, but prompt and answer "
            f"can have {config.context_length}; train the reward model from a model with at least that context"
        )
    return model


def _model_scores(
    models: Sequence[ValueHeadModel],
    aggregate: Callable[[Sequence[float]], float],
    pad: int,
    answers: Sequence[SampledAnswer],
) -> list[float]:
    """Return a model's scores, or an ensemble's mean or minimum (Coste et al. 2023, against over-optimisation)."""
    texts = [one.tokens for one in answers]
    return [aggregate(scores) for scores in zip(*(score_texts(model, texts, pad) for model in models))]


# -- scorers and functions -------------------------------------------------------------------------------------------


def as_question(where: str, prompt: Conversation, question: Question | None) -> Question:
    """Return the question of a row for a scorer; if the row has none, one without accepted answers."""
    return question or Question(prompt, (), "", "", where=where)


def apply_scorer(scorer: Scorer, answers: Sequence[SampledAnswer]) -> list[float]:
    """Score the answers that this scorer can score; if it needs accepted answers, those of rows that have some."""
    rated = [one for one in answers if one.question is not None or not scorer.needs]
    questions = [as_question(one.where, one.prompt, one.question) for one in rated]
    return scorer.scores(questions, [(one.text, one.finished) for one in rated])


def _check_question(scorer: Scorer, where: str, question: Question | None) -> None:
    """Raise DataError if a row lacks the accepted answers that the scorer needs."""
    if scorer.needs and question is None:
        raise DataError(
            f'{where}: the reward {scorer.name} needs gold answers; add "answers" to the row, or choose another reward'
        )
    if question is not None:
        scorer.check(question)


def _score(scorer: Scorer, answers: Sequence[SampledAnswer]) -> list[float]:
    for one in answers:
        _check_question(scorer, one.where, one.question)
    return apply_scorer(scorer, answers)


def _call(name: str, function: Callable[..., Any], answers: Sequence[SampledAnswer]) -> list[Any]:
    out = []
    for one in answers:
        try:
            out.append(function(to_messages(one.prompt), one.text, list(one.question.answers) if one.question else []))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{one.where}: reward {name} failed on the answer {one.text[:80]!r}: {error_text(error)}"
            ) from error
    return out


def _send(scorer: Callable[[Sequence[dict[str, Any]]], list[Any]], answers: Sequence[SampledAnswer]) -> list[Any]:
    """Return the scores of a process or endpoint (docs/reference/formats.md)."""
    items = [
        {
            "prompt": to_messages(one.prompt),
            "answer": one.text,
            "finished": one.finished,
            "answers": list(one.question.answers) if one.question else [],
            "id": one.question.id if one.question else "",
        }
        for one in answers
    ]
    return scorer(items) if items else []
