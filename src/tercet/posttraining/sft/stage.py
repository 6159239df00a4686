"""The SFT stage: its settings and its declaration. It does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, MICRO_BATCH, PRECISION, TuneSettings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TuneSettings):
    """Tune a base model on conversations (SFT).

    The loss is next-token prediction on the assistant's tokens only.
    """

    model: str = setting(..., "Run to start from: a base model.", reads=LANGUAGE_MODEL)
    data: tuple[str, ...] = setting(
        ...,
        "Conversations: .jsonl(.gz) files, folders or globs with messages, Alpaca or ShareGPT rows.",
        reads=FILES,
    )
    heldout: tuple[str, ...] = setting(
        (), "Held-out conversations. Without them, --heldout-share of the data is held out.", reads=FILES
    )
    heldout_share: float = setting(
        0.05, "Fraction of the conversations to hold out (0 to 1); a hash of each decides.", minimum=0
    )
    questions: tuple[str, ...] = setting(
        (), "Questions with gold answers; the model answers them before and after training.", reads=FILES
    )
    long_conversations: str = setting(
        "truncate",
        "For conversations longer than the context: truncate ends them after a whole message; "
        "refuse stops with an error.",
        choices=("truncate", "refuse"),
    )
    neftune_alpha: float = setting(
        0.0,
        "NEFTune: scale of the noise added to the embeddings in training; its paper uses 5 to 15. 0 means no noise.",
        minimum=0,
    )
    max_new_tokens: int = setting(32, "Longest answer to a question of --questions, in tokens.", minimum=1)
    steps: int = setting(300, "Optimizer steps.", minimum=1)
    lr: float = setting(1e-3, "Peak learning rate of AdamW.", minimum=0, maximum=1e37)
    muon_lr: float = setting(
        0.01,
        "Learning rate of Muon for the hidden weight matrices. 0 means that AdamW updates all weights.",
        minimum=0,
        maximum=1e37,
    )
    micro_batch: int = MICRO_BATCH
    precision: str = PRECISION


SFT = Stage(
    "sft",
    SFTConfig,
    "tercet.posttraining.sft.tune:sft",
    order=30,
    label="SFT",
    makes=LANGUAGE_MODEL,
    deed="tuned on conversations",
    example="tercet sft --model runs/base --data chats.jsonl --out runs/sft",
    section="tercet.reporting.story:tuning",
    checks="tercet.diagnostics.supervised:SFT",
    probe="tercet.diagnostics.probe:probe_sft",
)
