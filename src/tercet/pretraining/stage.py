"""Pretraining as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import (
    FILES,
    LANGUAGE_MODEL,
    MICRO_BATCH,
    PRECISION,
    TOKENIZER,
    TrainSettings,
    setting,
    shares,
)
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainSettings):
    """Train a base model on raw text.

    The model starts with random weights and learns to predict the next token.
    """

    data: tuple[str, ...] = setting(..., "training text: .txt and .jsonl(.gz) files, folders or globs", reads=FILES)
    tokenizer: str = setting(..., "tokenizer.json, or a run or folder that has one", reads=TOKENIZER)
    heldout: tuple[str, ...] = setting(
        (), "held-out text; where none is named, heldout_share of the documents is kept aside", reads=FILES
    )
    heldout_share: float = setting(0.02, "share of documents kept aside, by a hash of their id", minimum=0)
    heldout_bytes: int = setting(200_000, "at most so many held-out bytes per source are measured", minimum=1)
    mixture: tuple[str, ...] = setting((), "shares of the sources as name=share (code=0.3 text=0.7); default: by size")
    context_length: int = setting(256, "tokens that the model sees at once", minimum=8)
    hidden_size: int = setting(192, "width of the residual stream", minimum=8)
    num_layers: int = setting(5, "transformer layers", minimum=1)
    num_heads: int = setting(3, "attention heads", minimum=1)
    num_kv_heads: int = setting(3, "key/value heads (num_heads must be a multiple)", minimum=1)
    head_dim: int = setting(64, "size of a head", minimum=2)
    intermediate_size: int = setting(512, "width of the feed-forward layer", minimum=8)
    micro_batch: int = MICRO_BATCH
    muon_lr: float = setting(
        0.02, "Muon learning rate of the hidden matrices (0: AdamW for all)", minimum=0, maximum=1e37
    )
    warmup: int = setting(20, "steps of linear warm-up", minimum=0)
    cooldown: float = setting(
        0.6, "share of the steps, at the end, in which the learning rate falls linearly to 0", minimum=0, maximum=1
    )
    minutes: float = setting(
        0.0, "wall time to fill: as many steps as fit, whatever --steps says (0: --steps)", minimum=0, maximum=1e6
    )
    sample_prompts: tuple[str, ...] = setting((), "texts to continue at every measurement", whole=True)
    precision: str = PRECISION

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(self.mixture, "--mixture")


PRETRAIN = Stage(
    "pretrain", PretrainConfig, "tercet.pretraining.causal:pretrain", order=20, label="base", makes=LANGUAGE_MODEL,
    deed="pretrained on raw text",
    example="tercet pretrain --data books/ --tokenizer tokenizer.json --steps 2000 --out runs/base",
    section="tercet.reporting.story:pretraining",
    checks="tercet.diagnostics.supervised:SUPERVISED",
    probe="tercet.diagnostics.probe:probe_pretrain",
)  # fmt: skip
