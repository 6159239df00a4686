"""Pretraining as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import (
    COOLDOWN_HELP,
    FILES,
    LANGUAGE_MODEL,
    MICRO_BATCH,
    MUON_HELP,
    PRECISION,
    TOKENIZER,
    WARMUP_HELP,
    TrainSettings,
    setting,
    shares,
)
from tercet.training.stage import Stage

DATA_HELP = "Training text: .txt and .jsonl(.gz) files, folders or globs."
TOKENIZER_HELP = "A tokenizer.json, or a run or folder that contains one."
HELDOUT_BYTES_HELP = "Largest number of held-out bytes to evaluate, per source."
CONTEXT_HELP = "Context length of the model, in tokens."


@dataclass(frozen=True, kw_only=True)
class PretrainConfig(TrainSettings):
    """Train a base model on raw text.

    The model starts with random weights and learns to predict the next token.
    """

    data: tuple[str, ...] = setting(..., DATA_HELP, reads=FILES)
    tokenizer: str = setting(..., TOKENIZER_HELP, reads=TOKENIZER)
    heldout: tuple[str, ...] = setting(
        (), "Held-out text. Without it, a part of the documents is held out: see --heldout-share.", reads=FILES
    )
    heldout_share: float = setting(
        0.02, "Fraction of the documents to hold out (0 to 1); a hash of a document's id decides.", minimum=0
    )
    heldout_bytes: int = setting(200_000, HELDOUT_BYTES_HELP, minimum=1)
    mixture: tuple[str, ...] = setting(
        (), "Share of each source in the training rows, as name=share: code=0.3,text=0.7. Default: by size."
    )
    context_length: int = setting(256, CONTEXT_HELP, minimum=8)
    hidden_size: int = setting(192, "Size of the hidden states between layers.", minimum=8)
    num_layers: int = setting(5, "Number of transformer layers.", minimum=1)
    num_heads: int = setting(3, "Attention heads per layer.", minimum=1)
    num_kv_heads: int = setting(3, "Key/value heads per layer; --num-heads must be a multiple of it.", minimum=1)
    head_dim: int = setting(64, "Size of each attention head; an even number.", minimum=2)
    intermediate_size: int = setting(512, "Size of the feed-forward layer's hidden states.", minimum=8)
    micro_batch: int = MICRO_BATCH
    muon_lr: float = setting(0.02, MUON_HELP, minimum=0, maximum=1e37)
    warmup: int = setting(20, WARMUP_HELP, minimum=0)
    cooldown: float = setting(0.6, COOLDOWN_HELP, minimum=0, maximum=1)
    minutes: float = setting(
        0.0,
        "Train for this many minutes of wall time, instead of --steps. 0 means to use --steps.",
        minimum=0,
        maximum=1e6,
    )
    sample_prompts: tuple[str, ...] = setting(
        (), "Texts that the model continues at every held-out evaluation.", whole=True
    )
    precision: str = PRECISION

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(self.mixture, "--mixture")


PRETRAIN = Stage(
    "pretrain",
    PretrainConfig,
    "tercet.pretraining.causal:pretrain",
    order=20,
    label="base",
    makes=LANGUAGE_MODEL,
    deed="pretrained on raw text",
    example="tercet pretrain --data books/ --tokenizer tokenizer.json --steps 2000 --out runs/base",
    section="tercet.reporting.story:pretraining",
    checks="tercet.diagnostics.supervised:SUPERVISED",
    probe="tercet.diagnostics.probe:probe_pretrain",
)
