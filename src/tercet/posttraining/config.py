"""Settings of the post-training stages (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.evaluation.scorers import DEFAULT, check_scorers, help_text
from tercet.training.settings import MICRO_BATCH, PRECISION, Settings, TuneSettings, setting


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuneSettings):
    """Instruction tuning: next-token prediction on conversations, weighted on the assistant's tokens only."""

    model: str = setting(..., "run to start from: a base model")
    data: tuple[str, ...] = setting(
        ..., "conversations: messages, Alpaca or ShareGPT rows in .jsonl(.gz) files, folders or globs"
    )
    heldout: tuple[str, ...] = setting((), "held-out conversations; where none are named, heldout_share is kept aside")
    heldout_share: float = setting(0.05, "share of conversations kept aside, by a hash", minimum=0)
    tasks: tuple[str, ...] = setting((), "questions with gold answers, asked before and after")
    long_conversations: str = setting(
        "truncate", "longer than the context: cut on a message border, or refuse", choices=("truncate", "refuse")
    )
    neftune_alpha: float = setting(
        0.0, "NEFTune: noise on the embeddings while training, 5 to 15 in its paper (0: none)", minimum=0
    )
    max_new_tokens: int = setting(32, "longest answer when the tasks are asked", minimum=1)
    steps: int = setting(300, "optimizer steps", minimum=1)
    lr: float = setting(1e-3, "AdamW learning rate", minimum=0, maximum=1e37)
    muon_lr: float = setting(
        0.01, "Muon learning rate of the hidden matrices (0: AdamW for all)", minimum=0, maximum=1e37
    )
    micro_batch: int = MICRO_BATCH
    precision: str = PRECISION


@dataclass(frozen=True, kw_only=True)
class MergeConfig(Settings):
    """Add a run's adapters (LoRA) to its weights: a run with a plain model."""

    model: str = setting(..., "run that was trained with adapters")


@dataclass(frozen=True, kw_only=True)
class RankConfig(Settings):
    """Rankings by a SIMULATED annotator: K sampled answers to each task, scored by the stated rubric with noise."""

    model: str = setting(..., "run that answers: an instruction-tuned model")
    tasks: tuple[str, ...] = setting(..., "questions with gold answers")
    answers: int = setting(4, "answers to each prompt (K)", minimum=2)
    noise: float = setting(0.05, "standard deviation of the annotator's error on the 0-to-1 rubric score", minimum=0)
    tie_width: float = setting(0.1, "scores in the same step of this width are a tie", minimum=1e-6)
    heldout_share: float = setting(0.25, "share of the prompts kept aside, by a hash", minimum=0)
    temperature: float = setting(1.0, "of sampling", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of samples and noise", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuneSettings):
    """A reward model from rankings: all pairs of a prompt from one forward pass over it (InstructGPT's loss)."""

    model: str = setting(..., "run to start from: an instruction-tuned model")
    data: tuple[str, ...] = setting(
        ..., "comparisons: chosen/rejected, HH-RLHF transcripts, or K-way rankings in .jsonl(.gz)"
    )
    heldout: tuple[str, ...] = setting((), "held-out comparisons; where none are named, heldout_share is kept aside")
    heldout_share: float = setting(0.1, "share of prompts kept aside, by a hash", minimum=0)
    margin: float = setting(
        0.0, "a pair's rewards shall differ by this times the difference of its scores (0: scores not used)", minimum=0
    )
    demonstrations: tuple[str, ...] = setting((), "conversations whose answers shall score 0 on average")
    demonstrations_limit: int = setting(400, "at most so many of them", minimum=1)
    steps: int = setting(100, "optimizer steps", minimum=1)
    batch_size: int = setting(16, "prompts per step", minimum=1)
    micro_batch: int = setting(
        0, "prompts per forward pass (0: about 1,024 tokens); changes memory, not the result", minimum=0
    )
    lr: float = setting(3e-4, "AdamW learning rate", minimum=0, maximum=1e37)
    precision: str = PRECISION


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
    journal: str = setting(
        "", "file in which finished requests are kept, so that a killed command goes on (scores by --reward are not)"
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
    journal: str = setting(
        "", "file in which judgements of a person, model or address are kept, so that a stopped command goes on"
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
