"""The reward-model stage: its settings and its declaration. It does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, PRECISION, REWARD_MODEL, TuneSettings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TuneSettings):
    """Train a reward model on ranked answers.

    The loss is InstructGPT's: all pairs of answers to a prompt, in one forward pass.
    """

    model: str = setting(..., "Run to start from: an instruction-tuned model.", reads=LANGUAGE_MODEL)
    data: tuple[str, ...] = setting(
        ..., "Comparisons: chosen/rejected, HH-RLHF transcripts, or K-way rankings in .jsonl(.gz) files.", reads=FILES
    )
    heldout: tuple[str, ...] = setting(
        (), "Held-out comparisons. Without them, --heldout-share of the data is held out.", reads=FILES
    )
    heldout_share: float = setting(
        0.1, "Fraction of the prompts to hold out (0 to 1); a hash of each decides.", minimum=0
    )
    margin: float = setting(
        0.0,
        "Margin of the loss: this factor times the difference between a pair's scores. "
        "0 means that scores are not used.",
        minimum=0,
    )
    demonstrations: tuple[str, ...] = setting(
        (),
        "Conversations whose answers get a mean reward of 0: all rewards are shifted by the same amount.",
        reads=FILES,
    )
    demonstrations_limit: int = setting(400, "Maximum number of demonstrations to use.", minimum=1)
    steps: int = setting(100, "Optimizer steps.", minimum=1)
    batch_size: int = setting(16, "Prompts per step.", minimum=1)
    micro_batch: int = setting(
        0,
        "Prompts per forward pass; fewer need less memory, with the same result. 0 means about 1,024 tokens.",
        minimum=0,
    )
    lr: float = setting(3e-4, "Peak learning rate of AdamW.", minimum=0, maximum=1e37)
    precision: str = PRECISION


REWARD_MODEL_STAGE = Stage(
    "reward",
    RewardConfig,
    "tercet.posttraining.reward_model.train:reward",
    order=50,
    label="reward model",
    makes=REWARD_MODEL,
    deed="judged by a reward model",
    example="tercet reward --model runs/sft --data rankings.jsonl --demonstrations chats.jsonl --out runs/reward",
    section="tercet.reporting.story:rewarding",
    checks="tercet.diagnostics.supervised:REWARD",
    probe="tercet.diagnostics.probe:probe_reward",
)
