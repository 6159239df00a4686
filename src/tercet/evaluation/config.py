"""Settings of `tercet prompt`, `tercet eval` and `tercet winrate` (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.evaluation.scoring.scorers import DEFAULT, check_scorers, help_text
from tercet.training.settings import Settings, setting, suggest

DEFAULT_MAX_NEW_TOKENS = 24  # of an answer, if neither the command nor the task says
VARY = ("description", "labels", "order", "format")
IMPORTS_HELP = "Python modules or files that register tasks of your own."
SKIP_HELP = "Skip and count wrong rows instead of stopping at the first one."
THREADS_HELP = "Number of CPU threads."


@dataclass(frozen=True, kw_only=True)
class PromptConfig(Settings):
    """Evaluate a model with zero-, one- and few-shot prompts.

    The model only continues the prompts; nothing is trained.
    """

    model: str = setting(..., "Run whose model is prompted.")
    task: tuple[str, ...] = setting((), "Names of registered tasks, or task.json files of your own.")
    questions: tuple[str, ...] = setting((), "JSONL files of questions with accepted answers.")
    examples: tuple[str, ...] = setting(
        (), "JSONL files from which the examples for --questions are drawn. Needed if --shots is above 0."
    )
    imports: tuple[str, ...] = setting((), IMPORTS_HELP, flag="--import")
    shots: tuple[int, ...] = setting((0, 1, 4), "Numbers of examples in the prompt, such as 0,1,2,4.")
    seeds: int = setting(
        1,
        "How many times the examples are drawn. With 2 or more, the interval also covers the choice of examples.",
        minimum=1,
    )
    vary: tuple[str, ...] = setting(
        (),
        "Also evaluate with one thing changed: description (left out), labels (wrong or random in the examples), "
        "order (the same examples in other orders) or format (the task's other formats).",
    )
    orders: int = setting(4, "Number of orders of the same examples, with --vary order.", minimum=2)
    calibrate: bool = setting(
        False, "Divide each label's probability by its mean over empty inputs. Needs a task with fixed labels."
    )
    self_consistency: int = setting(
        1, "Sample this many answers and take the most common one. Needs --temperature above 0.", minimum=1
    )
    temperature: float = setting(0.0, "Sampling temperature of answers. 0 takes the likeliest token.", minimum=0)
    metric: str = setting("", "Metric to use instead of the task's own, such as acc_norm.")
    description: str = setting(
        "",
        "Text before the examples, such as 'Translate English to French:\\n'.  [default: the task's own]",
    )
    template: str = setting(
        "",
        "Template of one example, with {input}, and {output} at the end.  [default: the task's own; "
        "'Q: {input}\\nA: {output}' for --questions]",
    )
    separator: str = setting("", "Text between examples.  [default: the task's own; an empty line for --questions]")
    limit: int = setting(0, "Maximum number of items per task. 0 uses all.", minimum=0)
    max_new_tokens: int = setting(
        0,
        f"Maximum number of tokens in an answer. 0 takes the task's own limit, or {DEFAULT_MAX_NEW_TOKENS}.",
        minimum=0,
    )
    cache: str = setting(
        "", "File that keeps the results of finished requests, so that a stopped command can continue."
    )
    skip_bad_rows: bool = setting(False, SKIP_HELP)
    threads: int = setting(2, THREADS_HELP, minimum=1, maximum=1024)
    seed: int = setting(0, "Seed for drawing examples and for sampling.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template and ("{input}" not in self.template or not self.template.endswith("{output}")):
            raise ConfigError(f"--template is {self.template!r}; it must hold {{input}} and end with {{output}}")
        if not self.shots or min(self.shots) < 0:
            raise ConfigError(f"--shots is {self.shots}; wanted numbers of examples, each 0 or more")
        for name in ("shots", "task"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise ConfigError(f"--{name} is {getattr(self, name)}; wanted each value once")
        if self.questions and any(self.shots) and not self.examples:
            raise ConfigError(
                f"--shots is {','.join(map(str, self.shots))}, but there are no examples to draw from; "
                "name files with --examples, or use --shots 0"
            )
        if unknown := [v for v in self.vary if v not in VARY]:
            raise ConfigError(f"--vary is {unknown[0]!r}; wanted some of {', '.join(VARY)}{suggest(unknown[0], VARY)}")


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Score models on the same text, questions and suites."""

    models: tuple[str, ...] = setting(..., "Runs whose models are evaluated.")
    text: tuple[str, ...] = setting((), "Held-out text files, for bits per byte.")
    questions: tuple[str, ...] = setting((), "JSONL files of questions with accepted answers.")
    scorer: tuple[str, ...] = setting(
        DEFAULT,
        f"{help_text()} A judge is a language model that grades answers: a run, or NAME@http(s)://…/v1.",
        check=check_scorers,
    )
    suite: tuple[str, ...] = setting(
        (), "Suites of tasks: microworld, the name of a task, a task.json file, blimp=PATH or olmo=PATH."
    )
    imports: tuple[str, ...] = setting((), IMPORTS_HELP, flag="--import")
    training_text: tuple[str, ...] = setting(
        (), "Text files that the models were trained on, to find evaluation items that occur in them."
    )
    cache: str = setting(
        "",
        "File that keeps the results of finished requests, so that a stopped command can continue. Scores by "
        "--reward are not kept.",
    )
    reward: str = setting("", "Run of a reward model that scores sampled answers to --questions.")
    reference: str = setting("", "Run to which every model is compared on --questions, by KL and win rate.")
    heldout_bytes: int = setting(100_000, "Maximum number of bytes of --text from each source.", minimum=1)
    limit: int = setting(0, "Maximum number of questions, and of items per task. 0 uses all.", minimum=0)
    max_new_tokens: int = setting(32, "Maximum number of tokens in an answer to --questions.", minimum=1)
    skip_bad_rows: bool = setting(False, SKIP_HELP)
    threads: int = setting(2, THREADS_HELP, minimum=1, maximum=1024)
    seed: int = setting(0, "Seed of the sampled answers and of drawn items.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, option, needed in (
            ("imports", "--import", "suite"),
            ("reward", "--reward", "questions"),
            ("reference", "--reference", "questions"),
        ):
            value = getattr(self, name)
            if value and not getattr(self, needed):
                raise ConfigError(f"{option} is {value!r}, which has no effect without --{needed}; name --{needed}")
        if self.scorer != DEFAULT and not self.questions:
            raise ConfigError(
                f"--scorer {' '.join(self.scorer)}: it scores answers to --questions; name --questions, or leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class WinRateConfig(Settings):
    """Compare the answers of models in pairs.

    A judge decides which of two answers to the same question is better.
    """

    models: tuple[str, ...] = setting(..., "Two runs or more. The others are compared with the first.")
    questions: tuple[str, ...] = setting(
        ..., "JSONL files of questions. A scorer as the judge needs accepted answers in them."
    )
    judge: str = setting(
        "exact_match",
        "The judge of two answers: a scorer, which prefers the answer with the higher score (see tercet eval --help), "
        "reward:RUN, model:RUN, person, or an OpenAI-compatible address http(s)://…/v1.",
    )
    judge_model: str = setting("", "Name of the model at the judge's address.")
    limit: int = setting(0, "Maximum number of questions. 0 uses all.", minimum=0)
    temperature: float = setting(1.0, "Sampling temperature of answers. 0 takes the likeliest token.", minimum=0)
    max_new_tokens: int = setting(32, "Maximum number of tokens in an answer.", minimum=1)
    cache: str = setting(
        "",
        "File that keeps the judgements of a person, model or address, so that a stopped command can continue.",
    )
    timeout: float = setting(60.0, "Seconds within which an address must answer.", minimum=0.001)
    retries: int = setting(3, "Number of retries after a failed request to an address.", minimum=0)
    skip_bad_rows: bool = setting(False, SKIP_HELP)
    threads: int = setting(2, THREADS_HELP, minimum=1, maximum=1024)
    seed: int = setting(0, "Seed of the sampled answers.", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.models) < 2:
            raise ConfigError(f"one run, {', '.join(self.models)}; wanted two runs or more, separated by spaces")
