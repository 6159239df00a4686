"""Settings of evaluation (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.evaluation.scoring.scorers import DEFAULT, check_scorers, help_text
from tercet.training.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Models side by side on the same held-out text and tasks."""

    models: tuple[str, ...] = setting(..., "runs to measure")
    text: tuple[str, ...] = setting((), "held-out text for bits per byte")
    tasks: tuple[str, ...] = setting((), "questions with gold answers")
    scorer: tuple[str, ...] = setting(
        DEFAULT,
        f"{help_text()} A judge is a language model that is asked, a run or NAME@http(s)://…/v1.",
        check=check_scorers,
    )
    suite: tuple[str, ...] = setting((), "microworld, a task, task.json, blimp=PATH or olmo=PATH")
    imports: tuple[str, ...] = setting((), "Python module or file that registers tasks of your own", flag="--import")
    training_text: tuple[str, ...] = setting(
        (), "text the models were trained on: says how much of what is measured stands in it"
    )
    cache: str = setting(
        "",
        "request cache: a file of finished requests, from which a killed command continues (not of scores by --reward)",
    )
    reward: str = setting("", "run of a reward model that scores the answers")
    reference: str = setting("", "run against which KL and win rate are taken")
    heldout_bytes: int = setting(100_000, "at most so many held-out bytes per source", minimum=1)
    limit: int = setting(0, "at most so many tasks, and items of a task in a suite (0: all)", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of the sampled answers", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for needed, names in {
            "suite": ("imports",),
            "tasks": ("reward", "reference"),
        }.items():
            given = [name for name in names if getattr(self, name)]
            if given and not getattr(self, needed):
                raise ConfigError(
                    f"EvalConfig.{given[0]} is {getattr(self, given[0])!r}, but no {needed} is named, which it is for; name --{needed}"
                )
        if self.scorer != DEFAULT and not self.tasks:
            raise ConfigError(
                f"--scorer {' '.join(self.scorer)}: scores the answers to --tasks; name --tasks, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class WinRateConfig(Settings):
    """Models against one another: a judge says which of two answers to the same prompt is better."""

    models: tuple[str, ...] = setting(..., "runs; the first is what the others are compared with")
    tasks: tuple[str, ...] = setting(..., "questions (with accepted answers for a scorer) as JSONL")
    judge: str = setting(
        "exact_match",
        "Which of two answers is better is said by a scorer (the answer with the higher score; see tercet eval "
        "--help), reward:RUN, model:RUN, person, or an OpenAI-compatible address http(s)://…/v1.",
    )
    judge_model: str = setting("", "name of the model at the address")
    limit: int = setting(0, "at most so many questions (0: all)", minimum=0)
    temperature: float = setting(1.0, "of the answers (0: the likeliest)", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    cache: str = setting(
        "", "request cache: a file of judgements by a person, model or address, from which a stopped command continues"
    )
    timeout: float = setting(60.0, "seconds until an address must have answered", minimum=0.001)
    retries: int = setting(3, "further tries after a failure that may pass", minimum=0)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of the answers", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) < 2:
            raise ConfigError(f"WinRateConfig.models is {self.models}; wanted two runs or more")
