"""Settings of the post-training stages (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.training.settings import MICRO_BATCH, PRECISION, Settings, TrainSettings, setting, shares


@dataclass(frozen=True, kw_only=True)
class SFTConfig(TrainSettings):
    """Instruction tuning: next-token prediction on conversations, weighted on the assistant's tokens only."""

    model: str = setting(..., "run to start from: a base model")
    data: tuple[str, ...] = setting(
        ..., "conversations: messages, Alpaca or ShareGPT rows in .jsonl(.gz) files, folders or globs"
    )
    heldout: tuple[str, ...] = setting((), "held-out conversations; where none are named, heldout_share is kept aside")
    heldout_share: float = setting(0.05, "share of conversations kept aside, by a hash", minimum=0)
    tasks: tuple[str, ...] = setting((), "questions with gold answers, asked before and after")
    long_conversations: str = setting(
        "truncate", "longer than the context: cut on a message border, or refuse", choices=("truncate", "refuse")
    )
    max_new_tokens: int = setting(32, "longest answer when the tasks are asked", minimum=1)
    steps: int = setting(300, "optimizer steps", minimum=1)
    lr: float = setting(1e-3, "AdamW learning rate", minimum=0, maximum=1e37)
    muon_lr: float = setting(
        0.01, "Muon learning rate of the hidden matrices (0: AdamW for all)", minimum=0, maximum=1e37
    )
    micro_batch: int = MICRO_BATCH
    precision: str = PRECISION


@dataclass(frozen=True, kw_only=True)
class RankConfig(Settings):
    """Rankings by a SIMULATED annotator: K sampled answers to each task, scored by the stated rubric with noise."""

    model: str = setting(..., "run that answers: an instruction-tuned model")
    tasks: tuple[str, ...] = setting(..., "questions with gold answers")
    answers: int = setting(4, "answers to each prompt (K)", minimum=2)
    noise: float = setting(0.05, "standard deviation of the annotator's error on the 0-to-1 rubric score", minimum=0)
    tie_width: float = setting(0.1, "scores in the same step of this width are a tie", minimum=1e-6)
    heldout_share: float = setting(0.25, "share of the prompts kept aside, by a hash", minimum=0)
    temperature: float = setting(1.0, "of sampling", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of samples and noise", minimum=0, maximum=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class RewardConfig(TrainSettings):
    """A reward model from rankings: all pairs of a prompt, one forward pass per answer (InstructGPT's loss)."""

    model: str = setting(..., "run to start from: an instruction-tuned model")
    data: tuple[str, ...] = setting(
        ..., "comparisons: chosen/rejected, HH-RLHF transcripts, or K-way rankings in .jsonl(.gz)"
    )
    heldout: tuple[str, ...] = setting((), "held-out comparisons; where none are named, heldout_share is kept aside")
    heldout_share: float = setting(0.1, "share of prompts kept aside, by a hash", minimum=0)
    demonstrations: tuple[str, ...] = setting((), "conversations whose answers shall score 0 on average")
    demonstrations_limit: int = setting(400, "at most so many of them", minimum=1)
    steps: int = setting(100, "optimizer steps", minimum=1)
    batch_size: int = setting(16, "prompts per step", minimum=1)
    micro_batch: int = setting(
        0, "prompts per forward pass (0: the whole batch); changes memory, not the result", minimum=0
    )
    lr: float = setting(3e-4, "AdamW learning rate", minimum=0, maximum=1e37)
    precision: str = PRECISION


@dataclass(frozen=True, kw_only=True)
class PPOConfig(TrainSettings):
    """PPO on r(x, y) − beta · log(π(y|x) / π_SFT(y|x)), plus gamma · E_pretrain[log π(x)]."""

    model: str = setting(
        ..., "run of the policy to start from, which is also the reference: an instruction-tuned model"
    )
    reward: str = setting(..., "run of the reward model")
    prompts: tuple[str, ...] = setting(
        ..., "rows with prompt or messages; rows with answers are also scored by the gold rubric"
    )
    pretrain_data: tuple[str, ...] = setting((), "text for the pretraining term (needed where gamma is above 0)")
    pretrain_mixture: tuple[str, ...] = setting((), "shares of its sources as name=share; default: by size")
    pretrain_rows: int = setting(8, "rows of text per step for the pretraining term", minimum=1)
    heldout_text: tuple[str, ...] = setting((), "held-out text on which bits per byte are measured before and after")
    heldout_bytes: int = setting(40_000, "at most so many held-out bytes per source", minimum=1)
    beta: float = setting(0.05, "weight of the KL penalty, in reward units per nat", minimum=0)
    gamma: float = setting(
        1.0, "weight of the pretraining loss (mean nats per token) beside the policy loss (mean per token)", minimum=0
    )
    steps: int = setting(60, "rollout-and-update steps", minimum=1)
    batch_size: int = setting(64, "prompts (one answer each) per step", minimum=1)
    minibatches: int = setting(1, "optimizer steps per epoch over a step's rollouts", minimum=1)
    epochs: int = setting(1, "passes over a step's rollouts", minimum=1)
    micro_batch: int = setting(0, "rollouts per forward pass when learning (0: the whole minibatch)", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    temperature: float = setting(1.0, "of sampling; log-probabilities are taken at it too", minimum=1e-3)
    clip: float = setting(0.2, "the probability ratio is clipped to 1 ± clip", minimum=0)
    discount: float = setting(1.0, "reward discount per token", minimum=0)
    gae_lambda: float = setting(0.95, "λ of generalised advantage estimation", minimum=0)
    missing_eos_score: float = setting(-1.0, "replaces the score of an answer that the model did not end itself")
    whiten_advantages: bool = setting(True, "mean 0 and variance 1 over the step's actions")
    critic_lr: float = setting(5e-4, "AdamW learning rate of the critic", minimum=0, maximum=1e37)
    lr: float = setting(2e-4, "AdamW learning rate of the policy", minimum=0, maximum=1e37)
    warmup: int = setting(3, "steps of linear warm-up", minimum=0)
    checkpoint_every: int = setting(20, "steps between checkpoints (0: at the end only)", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(self.pretrain_mixture, "PPOConfig.pretrain_mixture")
        if self.gamma > 0 and not self.pretrain_data:
            raise ConfigError(
                f"PPOConfig.gamma is {self.gamma}, but no pretrain_data is named; name text, or set gamma to 0"
            )
        if self.batch_size % self.minibatches:
            raise ConfigError(
                f"PPOConfig.batch_size ({self.batch_size}) must be a multiple of minibatches ({self.minibatches})"
            )


@dataclass(frozen=True, kw_only=True)
class EvalConfig(Settings):
    """Models side by side on the same held-out text and tasks."""

    models: tuple[str, ...] = setting(..., "runs to measure")
    text: tuple[str, ...] = setting((), "held-out text for bits per byte")
    tasks: tuple[str, ...] = setting((), "questions with gold answers")
    reward: str = setting("", "run of a reward model that scores the answers")
    reference: str = setting("", "run against which KL and win rate are taken")
    heldout_bytes: int = setting(100_000, "at most so many held-out bytes per source", minimum=1)
    limit: int = setting(0, "at most so many tasks (0: all)", minimum=0)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of the sampled answers", minimum=0, maximum=2**31 - 1)
