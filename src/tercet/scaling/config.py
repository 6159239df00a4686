"""Settings of a ladder of runs, and the rules that give a size its shape, batch and learning rate (no torch here)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.training.settings import PRECISION, Settings, setting

AT = 65_536  # training tokens at which a ladder's batch and rates are given
BATCH_TOKENS = 512  # of a step there
RATE_POWER = -0.25
WARMUP = 0.05


def shape_of(width: int) -> dict[str, Any]:
    """The model of a width: everything else grows with it, so that a ladder has one dimension.

    Layers are width / 48 and at least 2: loss hardly depends on the ratio (Kaplan et al. 2020, section 3.1). Heads have 16 to 64
    dimensions; the feed-forward layer is 8/3 as wide (Shazeer 2020), rounded up to 16. Raises ConfigError unless the
    width is a multiple of 16.
    """
    if width < 16 or width % 16:
        raise ConfigError(f"--widths has {width}; wanted a multiple of 16")
    head = next(h for h in (64, 32, 16) if width % h == 0 and (width >= 3 * h or h == 16))
    return {
        "hidden_size": width,
        "num_layers": max(2, round(width / 48)),
        "num_heads": width // head,
        "num_kv_heads": width // head,
        "head_dim": head,
        "intermediate_size": -(-width * 8 // 3 // 16) * 16,
    }


def rows_of(tokens: float, context_length: int) -> int:
    """Rows of a step, near 512 · √(tokens / 65,536) tokens.

    The batch beyond which more rows buy no fewer steps grows with the tokens of a run, by about their square root, and
    not with the size of the model (Zhang et al. 2024, "How does critical batch size scale in pre-training?").
    """
    return max(1, round(BATCH_TOKENS * math.sqrt(tokens / AT) / context_length))


def rate_of(lr: float, tokens: float) -> float:
    """The learning rate of a run of so many tokens: that of 65,536 times (tokens / 65,536)^−1/4, with the batch of `rows_of`.

    Longer runs want a lower rate (Bjorck et al. 2024, "Scaling optimal LR across token horizons": a power −.32 at one batch);
    the batch that grows takes a part of that back. The rate does not depend on the width: Muon's updates have a given spectral
    norm, and the weights' change of what a layer gives is then the same at every width (Yang, Simon and
    Bernstein 2023); Adam's rate for embeddings stays too (Yang et al. 2022, table 3).
    """
    return float(f"{lr * (tokens / AT) ** RATE_POWER:.4g}")


@dataclass(frozen=True, kw_only=True)
class LadderConfig(Settings):
    """Train a ladder of models, from small to large.

    Sizes are widths; each is trained for every number of --tokens, or for every budget of --flops (iso-FLOP: the larger, the
    fewer tokens). Runs that are finished are skipped and interrupted ones go on, so that the same command ends a ladder that was
    stopped, and one with more sizes extends it.
    """

    data: tuple[str, ...] = setting(..., "training text: .txt and .jsonl(.gz) files, folders or globs")
    tokenizer: str = setting(..., "tokenizer.json, or a run or folder that has one")
    heldout: tuple[str, ...] = setting((), "held-out text; where none is named, a part of the documents is kept aside")
    widths: tuple[int, ...] = setting((16, 32, 48, 64), "sizes, as widths of the residual stream")
    tokens: tuple[int, ...] = setting((), "training tokens of each size")
    flops: tuple[float, ...] = setting((), "FLOPs of each size, instead of tokens (iso-FLOP)")
    max_flops: float = setting(0.0, "leave out runs of more FLOPs than this (0: none)", minimum=0)
    seeds: tuple[int, ...] = setting((0,), "each run once with every seed")
    lr: float = setting(0.012, "AdamW learning rate of a run of 65,536 tokens", minimum=0, maximum=1e37)
    muon_lr: float = setting(0.04, "Muon learning rate of a run of 65,536 tokens", minimum=0, maximum=1e37)
    context_length: int = setting(128, "tokens that the models see at once", minimum=8)
    heldout_bytes: int = setting(60_000, "at most so many held-out bytes per source are measured", minimum=1)
    precision: str = PRECISION
    threads: int = setting(1, "CPU threads of each run", minimum=1, maximum=1024)

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.tokens) == bool(self.flops):
            raise ConfigError("a ladder has --tokens or --flops; give one of them")
        for name in ("widths", "tokens", "flops", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values) or not all(v >= (0 if name == "seeds" else 1) for v in values):
                raise ConfigError(
                    f"--{name} has {', '.join(f'{v:g}' for v in values)}; wanted numbers above 0, each once"
                )
        for width in self.widths:
            shape_of(width)

    def rungs(self, vocab_size: int) -> dict[str, PretrainConfig]:
        """The runs by name, the cheapest first. Raises ConfigError where none is left."""
        out: list[tuple[float, str, PretrainConfig]] = []
        for width in self.widths:
            per_token = ModelConfig(vocab_size, self.context_length, **shape_of(width)).flops_per_token()
            for wanted in self.tokens or [flops / per_token for flops in self.flops]:
                for seed in self.seeds:
                    config = self.rung(width, wanted, seed)
                    tokens = config.steps * config.batch_size * config.context_length
                    cost = tokens * per_token
                    if not self.max_flops or cost <= self.max_flops:
                        out.append((cost, f"w{width}-t{tokens}-s{seed}", config))
        if not out:
            raise ConfigError(f"every run has more than --max-flops {self.max_flops:g}; raise it, or ask for less")
        return {name: config for _, name, config in sorted(out, key=lambda rung: rung[:2])}

    def rung(self, width: int, tokens: float, seed: int) -> PretrainConfig:
        """One run of about `tokens` tokens, in whole steps."""
        rows = rows_of(tokens, self.context_length)
        steps = max(1, round(tokens / (rows * self.context_length)))
        shared: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("data", "tokenizer", "heldout", "context_length", "heldout_bytes", "precision", "threads")
        }
        return PretrainConfig(
            **shared, **shape_of(width), steps=steps, batch_size=rows, warmup=max(1, round(WARMUP * steps)),
            lr=rate_of(self.lr, tokens), muon_lr=rate_of(self.muon_lr, tokens),
            checkpoint_every=1000, keep=1, seed=seed,
        )  # fmt: skip
