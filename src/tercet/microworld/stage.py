"""The simulated annotator as a stage: its settings and its declaration, without torch."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, Settings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class AnnotateConfig(Settings):
    """Rank sampled answers with a SIMULATED annotator.

    The model gives K answers to each question; the annotator ranks them by a published rubric plus noise.
    """

    model: str = setting(..., "Run of the model that answers, normally instruction-tuned.", reads=LANGUAGE_MODEL)
    questions: tuple[str, ...] = setting(..., "Questions with gold answers (.jsonl or .jsonl.gz).", reads=FILES)
    answers: int = setting(4, "Answers sampled for each question (K).", minimum=2)
    noise: float = setting(0.05, "Standard deviation of the noise on the rubric score, which is 0 to 1.", minimum=0)
    tie_width: float = setting(
        0.1, "Step width to which noisy scores are rounded; equal rounded scores tie.", minimum=1e-6
    )
    heldout_share: float = setting(
        0.25, "Share of the questions whose rankings are held out (0 to 1); a hash of the prompt decides.", minimum=0
    )
    temperature: float = setting(1.0, "Sampling temperature of the answers; 0 means greedy decoding.", minimum=0)
    max_new_tokens: int = setting(32, "Maximum length of an answer, in tokens.", minimum=1)
    skip_bad_rows: bool = setting(False, "Skip and count malformed rows instead of stopping at the first one.")
    threads: int = setting(2, "Number of CPU threads.", minimum=1, maximum=1024)
    seed: int = setting(0, "Random seed of the sampled answers and of the noise.", minimum=0, maximum=2**31 - 1)


ANNOTATE = Stage(
    "annotate",
    AnnotateConfig,
    "tercet.microworld.annotator:annotate",
    order=40,
    label="rankings",
    deed="ranked by a simulated annotator",
    example="tercet annotate --model runs/sft --questions questions.jsonl --out runs/rankings",
    section="tercet.reporting.story:ranking",
)
