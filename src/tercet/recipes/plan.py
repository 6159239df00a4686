"""Plan the demo: measure the speed of the machine, then choose the model's size and the steps that fit the time."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig
from tercet.training.progress import clock
from tercet.training.step_time import step_time

ROWS, CONTEXT, VOCABULARY = 8, 256, 2048

# the share of the remaining time that a stage may take when it starts
SHARE = {"pretrain": 0.44, "sft": 0.24, "reward": 0.12, "ppo": 0.53}
# the work of a step, and of everything else in a stage (loading, measuring), in tokens of float32 training; measured on
# 2 cores
STEP = {"pretrain": ROWS * CONTEXT, "sft": ROWS * CONTEXT, "reward": 4_400, "ppo": 22_000}
BESIDES = {"pretrain": 60_000, "sft": 40_000, "reward": 50_000, "ppo": 60_000}
LIMITS = {"pretrain": (60, 40_000), "sft": (50, 1_200), "reward": (20, 120), "ppo": (9, 300)}
FAST = ("pretrain", "sft")  # stages that run in the faster precision
SAFETY = 0.87  # the share of the wall time that is planned, since machines slow down
MEASURING = 180_000  # the work of the scores and the report at the end, in tokens of training


@dataclass
class DemoPlan:
    """The clock and the speed of a demo.

    `speed` is training tokens per second in float32, `fast_speed` in `precision`, the faster one of float32 and
    bfloat16.
    """

    minutes: float
    threads: int
    began: float = field(default_factory=time.monotonic)
    speed: float = 0.0
    fast_speed: float = 0.0
    precision: str = "float32"

    def clock(self) -> str:
        """Return the time since the start, as m:ss."""
        return clock(time.monotonic() - self.began)

    def left(self) -> float:
        """Return the seconds of planned time that remain for the stages."""
        return self.minutes * 60 * SAFETY - MEASURING / max(self.speed, 1.0) - (time.monotonic() - self.began)

    def shape(self) -> dict[str, Any]:
        """Return the sizes of the model for this much time; about 20 tokens per parameter would be best, a few fit."""
        layers, width, heads = next(
            s
            for limit, s in ((6, (4, 128, 2)), (25, (5, 192, 3)), (60, (6, 256, 4)), (1e9, (8, 320, 5)))
            if self.minutes < limit
        )
        return {
            "hidden_size": width,
            "num_layers": layers,
            "num_heads": heads,
            "num_kv_heads": heads,
            "head_dim": 64,
            "intermediate_size": width * 8 // 3 // 64 * 64,
            "context_length": CONTEXT,
        }

    def measure(self) -> None:
        """Time a few training steps in both precisions, and choose bfloat16 where it is a tenth faster."""
        sizes = ModelConfig(VOCABULARY, **self.shape())
        speeds = {}
        for precision in ("float32", "bfloat16"):
            row, update = step_time(Learner(Transformer(sizes), OptimizerConfig(), precision), ROWS, repeats=3)
            speeds[precision] = ROWS * CONTEXT / (ROWS * row + update)
        self.speed = speeds["float32"]
        self.precision = "bfloat16" if speeds["bfloat16"] > 1.1 * speeds["float32"] else "float32"
        self.fast_speed = speeds[self.precision]

    def steps(self, stage: str) -> int:
        """Return the steps of `stage` that fit into its share of the remaining time."""
        speed = self.fast_speed if stage in FAST else self.speed
        seconds = SHARE[stage] * self.left() - BESIDES[stage] / self.speed
        low, high = LIMITS[stage]
        return max(low, min(high, int(seconds * speed / STEP[stage])))

    def correct(self, tokens_per_s: float) -> None:
        """Replace the speeds by those of a stage in the faster precision, since the machine may have become slower."""
        self.speed, self.fast_speed = self.speed * tokens_per_s / self.fast_speed, tokens_per_s


def check_minutes(minutes: float) -> None:
    """Raise ConfigError where the time for the demo is out of range."""
    if not 2 <= minutes <= 120:
        raise ConfigError(f"--minutes is {minutes:g}; wanted a number from 2 to 120")
