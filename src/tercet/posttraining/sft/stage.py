"""Instruction tuning as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, MICRO_BATCH, PRECISION, TuneSettings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuneSettings):
    """Tune a base model on conversations (SFT).

    The loss is next-token prediction on the assistant's tokens only.
    """

    model: str = setting(..., "run to start from: a base model", reads=LANGUAGE_MODEL)
    data: tuple[str, ...] = setting(
        ..., "conversations: messages, Alpaca or ShareGPT rows in .jsonl(.gz) files, folders or globs", reads=FILES
    )
    heldout: tuple[str, ...] = setting(
        (), "held-out conversations; where none are named, heldout_share is kept aside", reads=FILES
    )
    heldout_share: float = setting(0.05, "share of conversations kept aside, by a hash", minimum=0)
    questions: tuple[str, ...] = setting((), "questions with gold answers, asked before and after", reads=FILES)
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


SFT = Stage(
    "sft", SFTConfig, "tercet.posttraining.sft.tune:sft", order=30, label="SFT", makes=LANGUAGE_MODEL,
    deed="tuned on conversations",
    example="tercet sft --model runs/base --data chats.jsonl --out runs/sft",
    section="tercet.reporting.story:tuning",
    checks="tercet.diagnostics.supervised:SFT",
    probe="tercet.diagnostics.probe:probe_sft",
)  # fmt: skip
