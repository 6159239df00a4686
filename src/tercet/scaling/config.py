"""Settings of a ladder of runs, and rules for the shape, batch and learning rate of each run (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.pretraining.stage import CONTEXT_HELP, DATA_HELP, HELDOUT_BYTES_HELP, TOKENIZER_HELP, PretrainConfig
from tercet.training.settings import PRECISION, Settings, setting

AT = 65_536  # number of training tokens for which a ladder's batch and learning rates are given
BATCH_TOKENS = 512  # tokens per step at AT training tokens
RATE_POWER = -0.25
WARMUP = 0.05  # fraction of the steps


def shape_of(width: int) -> dict[str, Any]:
    """Return the model's shape for a width, on which everything else depends, so that a ladder has one dimension.

    Layers are width / 48 and at least 2: the loss hardly depends on this ratio (Kaplan et al. 2020, section 3.1). Heads
    have 16 to 64 dimensions; the feed-forward layer is 8/3 as wide (Shazeer 2020), rounded up to a multiple of 16.
    Raises ConfigError unless the width is a multiple of 16.
    """
    if width < 16 or width % 16:
        raise ConfigError(f"--widths has {width}; wanted multiples of 16")
    head = next(h for h in (64, 32, 16) if width % h == 0 and (width >= 3 * h or h == 16))
    return {
        "hidden_size": width,
        "num_layers": max(2, round(width / 48)),
        "num_heads": width // head,
        "num_kv_heads": width // head,
        "head_dim": head,
        "intermediate_size": -(-width * 8 // 3 // 16) * 16,
    }


def batch_rows(tokens: float, context_length: int) -> int:
    """Return the rows per step of a run: about 512 · √(tokens / 65,536) tokens.

    The critical batch size grows with about the square root of a run's tokens, and not with the size of the model
    (Zhang et al. 2024, "How does critical batch size scale in pre-training?").
    """
    return max(1, round(BATCH_TOKENS * math.sqrt(tokens / AT) / context_length))


def learning_rate(lr: float, tokens: float) -> float:
    """Return the learning rate of a run of `tokens` tokens: `lr` · (tokens / 65,536)^(−1/4), for `batch_rows` rows.

    Longer runs need a lower rate: the power is −0.32 at a fixed batch size (Bjorck et al. 2024, "Scaling optimal LR
    across token horizons"), and the growing batch takes back a part of that. The rate does not depend on the width.
    Muon's updates have a fixed spectral norm, so they change a layer's outputs equally at every width (Yang, Simon and
    Bernstein 2023); Adam's rate for embeddings is also independent of the width (Yang et al. 2022, table 3).
    """
    return float(f"{lr * (tokens / AT) ** RATE_POWER:.4g}")


@dataclass(frozen=True, kw_only=True)
class LadderConfig(Settings):
    """Train a ladder of models, from small to large.

    Each size is a width. It is trained for every number of --tokens, or for every budget of --flops (iso-FLOP: larger
    models get fewer tokens). Finished runs are skipped and interrupted runs are continued. So the same command finishes
    a ladder that was stopped, and a command with more sizes extends it.
    """

    data: tuple[str, ...] = setting(..., DATA_HELP)
    tokenizer: str = setting(..., TOKENIZER_HELP)
    heldout: tuple[str, ...] = setting((), "Held-out text. Without it, a part of the documents is held out.")
    widths: tuple[int, ...] = setting(
        (16, 32, 48, 64), "Sizes of the models, as sizes of the hidden states; multiples of 16."
    )
    tokens: tuple[int, ...] = setting((), "Numbers of training tokens; every size is trained with each.")
    flops: tuple[float, ...] = setting(
        (), "Training FLOPs, instead of --tokens; every size is trained with each (iso-FLOP)."
    )
    max_flops: float = setting(0.0, "Leave out runs with more training FLOPs. 0 means no limit.", minimum=0)
    seeds: tuple[int, ...] = setting((0,), "Seeds; every run is repeated with each.")
    lr: float = setting(
        0.012,
        "Learning rate of AdamW for a run of 65,536 tokens; longer runs get a lower one.",
        minimum=0,
        maximum=1e37,
    )
    muon_lr: float = setting(
        0.04, "Learning rate of Muon for a run of 65,536 tokens; longer runs get a lower one.", minimum=0, maximum=1e37
    )
    context_length: int = setting(128, CONTEXT_HELP, minimum=8)
    heldout_bytes: int = setting(60_000, HELDOUT_BYTES_HELP, minimum=1)
    precision: str = PRECISION
    threads: int = setting(1, "Number of CPU threads of each run.", minimum=1, maximum=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.tokens) == bool(self.flops):
            given = "both" if self.tokens else "neither"
            raise ConfigError(f"a ladder needs either --tokens or --flops, but got {given}; give exactly one")
        for name in ("widths", "tokens", "flops", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not all(v >= (0 if name == "seeds" else 1) for v in values):
                least = "of at least 0" if name == "seeds" else "of at least 1"
                raise ConfigError(
                    f"--{name} has {', '.join(f'{v:g}' for v in values)}; wanted numbers {least}, each once"
                )
        for width in self.widths:
            shape_of(width)

    def points(self, vocab_size: int) -> dict[str, PretrainConfig]:
        """Return the settings of the runs by name, the cheapest first. Raises ConfigError if there is none."""
        out: list[tuple[float, str, PretrainConfig]] = []
        for width in self.widths:
            per_token = ModelConfig(vocab_size, self.context_length, **shape_of(width)).flops_per_token()
            for target in self.tokens or [flops / per_token for flops in self.flops]:
                for seed in self.seeds:
                    config = self.point(width, target, seed)
                    tokens = config.steps * config.batch_size * config.context_length
                    cost = tokens * per_token
                    if not self.max_flops or cost <= self.max_flops:
                        out.append((cost, f"w{width}-t{tokens}-s{seed}", config))
        if not out:
            raise ConfigError(
                f"--max-flops is {self.max_flops:g}, and every run has more; "
                "raise it, or give smaller --widths, --tokens or --flops"
            )
        return {name: config for _, name, config in sorted(out, key=lambda point: point[:2])}

    def point(self, width: int, tokens: float, seed: int) -> PretrainConfig:
        """Return the settings of one run of about `tokens` tokens, rounded to whole steps."""
        rows = batch_rows(tokens, self.context_length)
        steps = max(1, round(tokens / (rows * self.context_length)))
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("data", "tokenizer", "heldout", "context_length", "heldout_bytes", "precision", "threads")
        }
        # not one per line: settings with their values
        return PretrainConfig(
            **shared, **shape_of(width), steps=steps, batch_size=rows, warmup=max(1, round(WARMUP * steps)),
            lr=learning_rate(self.lr, tokens), muon_lr=learning_rate(self.muon_lr, tokens),
            checkpoint_every=1000, keep=1, seed=seed,
        )  # fmt: skip
