"""Settings of asking and of suites (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.evaluation.scoring.scorers import DEFAULT, check_scorers, help_text
from tercet.training.settings import Settings, setting, suggest

LONGEST = 24  # tokens of an answer where nothing else is said
VARY = ("description", "labels", "order", "format")


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """Evaluate a model with zero-, one- and few-shot prompts.

    The model only continues the prompts; nothing is trained.
    """

    model: str = setting(..., "run to ask")
    task: tuple[str, ...] = setting((), "registered task, or task.json of your own")
    questions: tuple[str, ...] = setting((), "questions with gold answers, as JSONL")
    examples: tuple[str, ...] = setting(
        (), "questions with gold answers from which the shots are drawn (with --questions, needed above 0 shots)"
    )
    imports: tuple[str, ...] = setting((), "Python module or file that registers tasks of your own", flag="--import")
    shots: tuple[int, ...] = setting((0, 1, 4), "numbers of examples in the prompt, such as 0,1,2,4")
    seeds: int = setting(1, "draws of the examples; the interval is over draws and items", minimum=1)
    vary: tuple[str, ...] = setting(
        (),
        "also ask: without the description, with wrong and random labels in the examples, with the same examples in other orders, in "
        f"the task's other formats ({', '.join(VARY)})",
    )
    orders: int = setting(4, "orders of the same examples, with --vary order", minimum=2)
    calibrate: bool = setting(False, "contextual calibration, for tasks with labels")
    self_consistency: int = setting(1, "answers that vote (needs --temperature above 0)", minimum=1)
    temperature: float = setting(
        0.0, "of sampling an answer, or a continuation of --text (0: the likeliest)", minimum=0
    )
    metric: str = setting("", "instead of the task's own, such as acc_norm")
    description: str = setting(
        "", "text before the examples, such as 'Translate English to French:\\n' (of --task: its own)"
    )
    template: str = setting(
        "", "one example; must end with {output}  [default: the task's own, of --questions 'Q: {input}\\nA: {output}']"
    )
    separator: str = setting("", "between examples  [default: the task's own, of --questions an empty line]")
    limit: int = setting(0, "at most so many items of a task (0: all)", minimum=0)
    max_new_tokens: int = setting(0, "longest answer (0: the task's own, else 24)", minimum=0)
    cache: str = setting("", "request cache: a file of finished requests, from which a killed command continues")
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed by which examples are drawn", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template and ("{input}" not in self.template or not self.template.endswith("{output}")):
            raise ConfigError(f"--template is {self.template!r}; it must hold {{input}} and end with {{output}}")
        if not self.shots or min(self.shots) < 0:
            raise ConfigError(f"--shots is {self.shots}; wanted numbers of examples, each 0 or more")
        for name in ("shots", "task"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"--{name} is {getattr(self, name)}; wanted each once")
        if self.questions and any(self.shots) and not self.examples:
            raise ConfigError(
                f"--shots is {self.shots}, but no examples are named to draw them from; name them with --examples, or ask with --shots 0"
            )
        if unknown := [v for v in self.vary if v not in VARY]:
            raise ConfigError(f"--vary is {unknown[0]!r}; wanted some of {', '.join(VARY)}{suggest(unknown[0], VARY)}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Score models on the same text, questions and suites."""

    models: tuple[str, ...] = setting(..., "runs to measure")
    text: tuple[str, ...] = setting((), "held-out text for bits per byte")
    questions: tuple[str, ...] = setting((), "questions with gold answers")
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
            "questions": ("reward", "reference"),
        }.items():
            given = [name for name in names if getattr(self, name)]
            if given and not getattr(self, needed):
                raise ConfigError(
                    f"--{given[0].removesuffix('s') if given[0] == 'imports' else given[0]} is {getattr(self, given[0])!r}, but no {needed} is named, which it is for; name --{needed}"
                )
        if self.scorer != DEFAULT and not self.questions:
            raise ConfigError(
                f"--scorer {' '.join(self.scorer)}: scores the answers to --questions; name --questions, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class WinRateConfig(Settings):
    """Compare the answers of models in pairs.

    A judge decides which of two answers to the same question is better.
    """

    models: tuple[str, ...] = setting(..., "runs; the first is what the others are compared with")
    questions: tuple[str, ...] = setting(..., "questions (with accepted answers for a scorer) as JSONL")
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
            raise ConfigError(f"--models is {self.models}; wanted two runs or more")
