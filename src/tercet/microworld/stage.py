"""The simulated annotator as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, Settings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig(Settings):
    """Rank sampled answers with a SIMULATED annotator.

    The model gives K answers to each question; the annotator ranks them by a published rubric plus noise.
    """

    model: str = setting(..., "run that answers: an instruction-tuned model", reads=LANGUAGE_MODEL)
    questions: tuple[str, ...] = setting(..., "questions with gold answers", reads=FILES)
    answers: int = setting(4, "answers to each prompt (K)", minimum=2)
    noise: float = setting(0.05, "standard deviation of the annotator's error on the 0-to-1 rubric score", minimum=0)
    tie_width: float = setting(0.1, "scores in the same step of this width are a tie", minimum=1e-6)
    heldout_share: float = setting(0.25, "share of the prompts kept aside, by a hash", minimum=0)
    temperature: float = setting(1.0, "of sampling", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of samples and noise", minimum=0, maximum=2**31 - 1)


ANNOTATE = Stage(
    "annotate", AnnotateConfig, "tercet.microworld.annotator:annotate", order=40, label="rankings",
    deed="ranked by a simulated annotator",
    example="tercet annotate --model runs/sft --questions questions.jsonl --out runs/rankings",
    section="tercet.reporting.story:ranking",
)  # fmt: skip
