"""Settings of the recipe that shows in-context learning (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.training.settings import Settings, setting

SHOTS = (0, 1, 2, 4, 8, 16, 32)
TUNED_SHOTS = (1, 2, 4, 8, 16, 32, 64)
CONTEXT = 100
MOST = (CONTEXT - 3) // 2  # examples beside a question, as long as the longest documents: beyond, positions are new
# Tokens of a document and its share of the text. With a mark before and behind each, five, two or one of them fill a row
# exactly. Long ones alone take much longer to be learnt (docs/log.md).
LENGTHS = {18: 0.5, 48: 0.25, 98: 0.25}


@dataclass(frozen=True)
class Size:
    """The shape of one of the models that are compared."""

    name: str
    layers: int
    width: int

    def shape(self) -> dict[str, Any]:
        """As settings of `tercet pretrain`. Heads of 32; a feed-forward layer of half the width, as nothing is to be known."""
        return {
            "num_layers": self.layers, "hidden_size": self.width, "num_heads": self.width // 32, "num_kv_heads": self.width // 32,
            "head_dim": 32, "intermediate_size": self.width // 2, "context_length": CONTEXT,
        }  # fmt: skip


SIZES = (Size("1 layer, width 64", 1, 64), Size("2 layers, width 64", 2, 64))


@dataclass(frozen=True, kw_only=True)
class InContextLearningConfig(Settings):
    """Study in-context learning with small models.

    The models are trained on mappings that are drawn anew for every document, and then tested on new ones.
    """

    minutes: float = setting(
        10.0, "wall time for all trainings together, about; measuring takes a third more", minimum=0.01
    )
    seeds: int = setting(
        3, "seeds, each with its own words, mappings and weights (2 at least, for intervals)", minimum=2
    )
    steps: int = setting(0, "optimizer steps of each training (0: as many as the minutes allow)", minimum=0)
    batch_size: int = setting(30, "rows per step", minimum=1)
    lr: float = setting(5e-3, "AdamW learning rate", minimum=0, maximum=1e37)
    muon_lr: float = setting(0.02, "Muon learning rate of the hidden matrices", minimum=0, maximum=1e37)
    questions: int = setting(256, "held-out questions for each number of examples", minimum=8)
    checkpoints: int = setting(14, "measurements during training", minimum=2)
    tuning_steps: int = setting(40, "gradient steps on the examples, where tuning is compared with asking", minimum=1)
    tuning_lr: float = setting(5e-3, "AdamW learning rate of that tuning", minimum=0, maximum=1e37)
    tuning_mappings: int = setting(4, "held-out mappings that tuning is compared on, for each seed", minimum=1)
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "the first seed", minimum=0, maximum=2**30)

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 < self.steps < self.checkpoints:
            raise ConfigError(
                f"--steps is {self.steps}; wanted at least one for each of {self.checkpoints} checkpoints"
            )
