"""What an answer is worth: reward models, verifiers, functions, processes and endpoints, several with weights.

    runs/reward                  a reward model            mean(runs/a,runs/b)   an ensemble (min: the most doubtful)
    exact_match, f1, rubric …    a scorer (evaluation/scoring/scorers.py): the answers of the row
    python:rewards/mine.py:f     f(prompt, answer, answers) → number
    process:./score --fast       a child process           https://host/score    an endpoint

A weight may stand in front: `0.5*exact_match`. The reward is the weighted sum.
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
from tercet.training.load import load_reward_model, reward_model_run
from tercet.training.run import Run
from tercet.training.settings import suggest

LARGEST = 1e30  # of a reward: sums and squares of more than 1e38 are infinite in float32
# A judge is a run, which a reward must name as a parent; a function may give any number as a reward, as a scorer not.
SCORERS = tuple(name for name in SCORER_ENTRIES if name not in ("judge", "python"))
AGGREGATES: dict[str, Callable[[Sequence[float]], float]] = {"mean": lambda s: math.fsum(s) / len(s), "min": min}
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_SPEC = re.compile(rf"\s*(?:({_NUMBER})\s*\*)?\s*(.*?)\s*", re.DOTALL)
_ENSEMBLE = re.compile(r"(\w+)\((.*)\)", re.DOTALL)


@dataclass(frozen=True)
class Answered:
    """One sampled answer as a reward sees it."""

    where: str  # file:line of its prompt
    prompt: Conversation
    text: str  # the decoded answer
    finished: bool  # the model ended it itself
    tokens: tuple[int, ...]  # prompt and answer as sampled: nothing is decoded and encoded again
    task: Question | None = None  # gold answers, where the row has them


Reward = Callable[[Sequence[Answered]], list[float]]


@dataclass(frozen=True)
class RewardSpec:
    """One reward as it was asked for; `name` is unique among those asked for together."""

    name: str
    weight: float
    kind: str  # "run", "python", "process", "http" or "scorer"
    body: str  # what stands behind the kind
    paths: tuple[str, ...] = ()  # of reward-model runs
    aggregate: str = "mean"  # of their scores


def parse_rewards(specs: Sequence[str]) -> list[RewardSpec]:
    """The rewards that `specs` name. Raises ConfigError for none, an unknown one, a run named twice, no weight but 0."""
    if not specs:
        raise ConfigError(f"no reward is named; wanted {_wanted()}")
    found: list[RewardSpec] = []
    for text in specs:
        match = _SPEC.fullmatch(text)
        assert match is not None  # every text has this form, be it with an empty body
        weight, body = float(match[1] or 1.0), match[2]
        if not math.isfinite(weight):
            raise ConfigError(f"reward {text!r}: the weight {match[1]} is not a finite number")
        kind, rest, label = _kind(text, body)
        paths, aggregate = _paths(text, body) if kind == "run" else ((), "mean")
        label = label or (Path(paths[0]).resolve().name if len(paths) == 1 else f"{aggregate}_{len(paths)}")
        taken = {spec.name for spec in found}
        name = next(n for n in (label, *(f"{label}{i}" for i in range(2, len(specs) + 2))) if n not in taken)
        found.append(RewardSpec(name, weight, kind, rest, paths, aggregate))
    every = [str(Path(path).resolve()) for spec in found for path in spec.paths]
    if twice := [path for path in every if every.count(path) > 1]:
        raise ConfigError(f"the reward model {twice[0]} is named twice; give it one weight instead")
    if not any(spec.weight for spec in found):
        raise ConfigError("every reward has the weight 0, so that no answer is better than another")
    return found


def _kind(text: str, body: str) -> tuple[str, str, str]:
    """(kind, what it is given, its name in the log; "" for runs)."""
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
        raise ConfigError(f"reward {text!r} is neither known nor a folder that is there{hint}; wanted {_wanted()}")
    return "run", body, ""


def _wanted() -> str:
    return (
        f"a run of `tercet reward`, mean(run,run), min(run,run), a scorer ({', '.join(SCORERS)}), "
        "python:file.py:function, process:command or http(s)://address, each with a weight in front if you want "
        "one (0.5*exact_match)"
    )


def _paths(text: str, body: str) -> tuple[tuple[str, ...], str]:
    """(paths of the runs, how their scores become one)."""
    match = _ENSEMBLE.fullmatch(body)
    if match is None:
        if "," in body:
            raise ConfigError(
                f"reward {text!r} names several runs; say how they become one: mean({body}) or min({body})"
            )
        return (body,), "mean"
    if match[1] not in AGGREGATES:
        raise ConfigError(
            f"reward {text!r}: unknown aggregate {match[1]!r}; wanted {' or '.join(AGGREGATES)}{suggest(match[1], AGGREGATES)}"
        )
    paths = tuple(path.strip() for path in match[2].split(","))
    if not all(paths):
        raise ConfigError(f"reward {text!r}: a run's path is empty; wanted {match[1]}(runs/a,runs/b)")
    return paths, match[1]


def reward_runs(specs: Sequence[str]) -> dict[str, Run]:
    """The reward-model runs among `specs` by their role as parents: "reward", "reward2", …; loads no weights.

    Raises ConfigError, CheckpointError where a path is no such run.
    """
    paths = [path for spec in parse_rewards(specs) for path in spec.paths]
    return {f"reward{number if number > 1 else ''}": reward_model_run(path) for number, path in enumerate(paths, 1)}


def reward_files(specs: Sequence[str]) -> tuple[str, ...]:
    """The files of code among `specs`, modules and what a command names: inputs, to be pinned by hash like any other."""
    found: list[str] = []
    for spec in parse_rewards(specs):
        if spec.kind == "python":
            found.append(source_of(spec.body.rpartition(":")[0]))
        elif spec.kind == "process":
            found += [word for word in words_of(spec.body) if Path(word).is_file()]
    return tuple(file for file in found if file)


class Rewards:
    """Several rewards with weights. `runs` are the reward models' runs by role, `weights` the weights by name.

    `timeout` (seconds) and `retries` are those of processes and endpoints. Raises ConfigError where a reward cannot be
    had, or a reward model has another tokenizer or a shorter context than the model that answers (`config`).
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
                judges = [_judge(next(remaining), tokenizer, config) for _ in spec.paths]
                self._parts[spec.name] = partial(_model_scores, judges, AGGREGATES[spec.aggregate], tokenizer.pad)
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
        """Raises DataError, naming the row, where a scorer cannot score answers to a (where, task)."""
        for where, task in rows:
            for scorer in self._scorers:
                _need_task(scorer, where, task)

    def __call__(self, answered: Sequence[Answered]) -> tuple[list[float], dict[str, float]]:
        """The weighted sum for each answer; and the mean of each part, without its weight, as "reward/NAME".

        Raises DataError, naming the reward and the prompt, for a reward that fails or is not a finite number.
        """
        totals, means = [0.0] * len(answered), {}
        for spec in self.specs:
            scores = _checked(spec.name, answered, self._parts[spec.name](answered), spec.weight)
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


def _checked(name: str, answered: Sequence[Answered], scores: Sequence[Any], weight: float) -> list[float]:
    if len(scores) != len(answered):
        first = f" (the first to {answered[0].where})" if answered else ""
        raise DataError(f"reward {name}: {len(scores)} scores for {len(answered)} answers{first}; wanted one each")
    for one, score in zip(answered, scores):
        try:
            fits = isinstance(score, Real) and abs(float(score)) <= LARGEST and abs(weight * float(score)) <= LARGEST
        except OverflowError:  # an integer beyond every float
            fits = False
        if not fits:
            huge = isinstance(score, int) and score.bit_length() > 1000  # too long to be printed
            shown = "a number beyond every float" if huge else repr(score)[:80]
            times = f" (its weight is {weight:g})" if weight != 1 else ""
            raise DataError(
                f"{one.where}: reward {name} gave {shown}{times} for the answer {one.text[:80]!r}; wanted a finite number, "
                f"at most {LARGEST:g} with its weight"
            )
    return [float(score) for score in scores]


# -- reward models ---------------------------------------------------------------------------------------------------


def _judge(run: Run, tokenizer: Tokenizer, config: ModelConfig) -> ValueHeadModel:
    if Tokenizer.load(run.path).fingerprint() != tokenizer.fingerprint():
        raise ConfigError(
            f"the reward model {run.path} and the model that answers have different tokenizers; train the reward model from "
            "the same model"
        )
    judge = load_reward_model(run)
    if judge.config.context_length < config.context_length:
        raise ConfigError(
            f"the reward model {run.path} reads {judge.config.context_length} tokens, but answers have up to "
            f"{config.context_length}; train the reward model from a model with as long a context"
        )
    return judge


def _model_scores(
    judges: Sequence[ValueHeadModel],
    aggregate: Callable[[Sequence[float]], float],
    pad: int,
    answered: Sequence[Answered],
) -> list[float]:
    """One model's scores, or an ensemble's: its mean or its minimum (Coste et al. 2023, against over-optimisation)."""
    texts = [one.tokens for one in answered]
    return [aggregate(scores) for scores in zip(*(score_texts(judge, texts, pad) for judge in judges))]


# -- scorers and functions -------------------------------------------------------------------------------------------


def question_of(where: str, prompt: Conversation, task: Question | None) -> Question:
    """The question of a prompt for a scorer: its row's task, or one without accepted answers."""
    return task or Question(prompt, (), "", "", where=where)


def scored(scorer: Scorer, answered: Sequence[Answered]) -> list[float]:
    """Score the answers that this scorer can score: where it needs accepted answers, those of rows that have some."""
    kept = [one for one in answered if one.task is not None or not scorer.needs]
    return scorer.scores([question_of(a.where, a.prompt, a.task) for a in kept], [(a.text, a.finished) for a in kept])


def _need_task(scorer: Scorer, where: str, task: Question | None) -> None:
    """Raises DataError where a row has not what the scorer needs."""
    if scorer.needs and task is None:
        raise DataError(
            f'{where}: the reward {scorer.name} needs gold answers; add "answers" to the row, or choose another reward'
        )
    if task is not None:
        scorer.check(task)


def _score(scorer: Scorer, answered: Sequence[Answered]) -> list[float]:
    for one in answered:
        _need_task(scorer, one.where, one.task)
    return scored(scorer, answered)


def _call(name: str, function: Callable[..., Any], answered: Sequence[Answered]) -> list[Any]:
    out = []
    for one in answered:
        try:
            out.append(function(to_messages(one.prompt), one.text, list(one.task.answers) if one.task else []))
        except (Exception, SystemExit) as error:
            raise DataError(
                f"{one.where}: reward {name} failed on the answer {one.text[:80]!r}: {error_text(error)}"
            ) from error
    return out


def _send(scorer: Callable[[Sequence[dict[str, Any]]], list[Any]], answered: Sequence[Answered]) -> list[Any]:
    """What a process or endpoint says of the answers (docs/reference/formats.md)."""
    return (
        scorer(
            [
                {
                    "prompt": to_messages(one.prompt),
                    "answer": one.text,
                    "finished": one.finished,
                    "answers": list(one.task.answers) if one.task else [],
                    "id": one.task.id if one.task else "",
                }
                for one in answered
            ]
        )
        if answered
        else []
    )
