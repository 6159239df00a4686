"""The study of in-context learning: its settings and what is compared (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.studies.study import Study
from tercet.training.settings import Settings, setting

SHOTS = (0, 1, 2, 4, 8, 16, 32)
TUNED_SHOTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 100
# The most examples before a question. It is as long as the longest documents; a longer one has new positions.
MOST = (CONTEXT - 3) // 2
# Tokens of a document and its share of the text. With a token before and after each, five, two or one of them fill a
# row exactly. Long documents alone take much longer to be learned (docs/log.md).
LENGTHS = {18: 0.5, 48: 0.25, 98: 0.25}


@dataclass(frozen=True)
class Size:
    """The shape of one of the models that are compared."""

    name: str
    layers: int
    width: int

    def shape(self) -> dict[str, Any]:
        """Return it as settings of `tercet pretrain`: heads of 32, and a small feed-forward layer, half the width."""
        heads = self.width // 32
        return {
            "num_layers": self.layers,
            "hidden_size": self.width,
            "num_heads": heads,
            "num_kv_heads": heads,
            "head_dim": 32,
            "intermediate_size": self.width // 2,
            "context_length": CONTEXT,
        }


SIZES = (Size("1 layer, width 64", 1, 64), Size("2 layers, width 64", 2, 64))


@dataclass(frozen=True, kw_only=True)
class InContextLearningConfig(Settings):
    """Train models on text in which only context helps.

    The models are trained on text in which only the context helps, and what they learn from a prompt is measured. Every
    document has a mapping of its own from words to words. The models are then tested on mappings that no weight
    can know: with more and more examples in the prompt, at every checkpoint, without single attention heads, and
    against training on the same examples.
    """

    minutes: float = setting(
        10.0, "Wall time in minutes for all trainings together; measuring adds about a third.", minimum=0.01
    )
    seeds: int = setting(
        3, "Number of seeds, each with its own words, mappings and weights. Intervals need at least 2.", minimum=2
    )
    steps: int = setting(0, "Optimizer steps of each training (0: as many as the minutes allow).", minimum=0)
    batch_size: int = setting(30, "Rows of 100 tokens per step.", minimum=1)
    lr: float = setting(5e-3, "AdamW learning rate.", minimum=0, maximum=1e37)
    muon_lr: float = setting(0.02, "Muon learning rate of the hidden matrices.", minimum=0, maximum=1e37)
    questions: int = setting(256, "Held-out questions for each number of examples.", minimum=8)
    checkpoints: int = setting(14, "Number of measurements during training.", minimum=2)
    tuning_steps: int = setting(
        40, "Gradient steps on the examples, where tuning is compared with prompting.", minimum=1
    )
    tuning_lr: float = setting(5e-3, "Learning rate of AdamW for --tuning-steps.", minimum=0, maximum=1e37)
    tuning_mappings: int = setting(4, "Held-out mappings on which tuning is compared, for each seed.", minimum=1)
    threads: int = setting(
        2, "Number of CPU threads. Results are bit-identical only with the same number.", minimum=1, maximum=1024
    )
    seed: int = setting(0, "The first seed.", minimum=0, maximum=2**30)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.steps < self.checkpoints:
            raise ConfigError(
                f"--steps is {self.steps}; wanted at least {self.checkpoints}, one for each of the --checkpoints"
            )


MODULE = "tercet.studies.in_context_learning"
IN_CONTEXT_LEARNING = Study(
    name="in-context-learning",
    question="How does a model learn from its prompt, and when does it start to?",
    settings=InContextLearningConfig,
    body=f"{MODULE}.experiment:in_context_learning",
    claims=f"{MODULE}.summary:claims",
    tables=f"{MODULE}.summary:tables",
    figures=f"{MODULE}.figures:figures",
    example="tercet study in-context-learning --minutes 15 --seeds 3 --out runs/icl",
)
