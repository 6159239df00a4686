"""The reward model as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, PRECISION, REWARD_MODEL, TuneSettings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuneSettings):
    """Train a reward model on ranked answers.

    The loss is InstructGPT's: all pairs of answers to a prompt, in one forward pass.
    """

    model: str = setting(..., "run to start from: an instruction-tuned model", reads=LANGUAGE_MODEL)
    data: tuple[str, ...] = setting(
        ..., "comparisons: chosen/rejected, HH-RLHF transcripts, or K-way rankings in .jsonl(.gz)", reads=FILES
    )
    heldout: tuple[str, ...] = setting(
        (), "held-out comparisons; where none are named, heldout_share is kept aside", reads=FILES
    )
    heldout_share: float = setting(0.1, "share of prompts kept aside, by a hash", minimum=0)
    margin: float = setting(
        0.0, "a pair's rewards shall differ by this times the difference of its scores (0: scores not used)", minimum=0
    )
    demonstrations: tuple[str, ...] = setting((), "conversations whose answers shall score 0 on average", reads=FILES)
    demonstrations_limit: int = setting(400, "at most so many of them", minimum=1)
    steps: int = setting(100, "optimizer steps", minimum=1)
    batch_size: int = setting(16, "prompts per step", minimum=1)
    micro_batch: int = setting(
        0, "prompts per forward pass (0: about 1,024 tokens); changes memory, not the result", minimum=0
    )
    lr: float = setting(3e-4, "AdamW learning rate", minimum=0, maximum=1e37)
    precision: str = PRECISION


REWARD_MODEL_STAGE = Stage(
    "reward", RewardConfig, "tercet.posttraining.reward_model.train:reward", order=50, label="reward model", makes=REWARD_MODEL,
    deed="judged by a reward model",
    example="tercet reward --model runs/sft --data rankings.jsonl --demonstrations chats.jsonl --out runs/reward",
    section="tercet.reporting.story:rewarding",
    checks="tercet.diagnostics.supervised:REWARD",
    probe="tercet.diagnostics.probe:probe_reward",
)  # fmt: skip
