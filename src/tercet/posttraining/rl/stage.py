"""Reinforcement learning as two stages: what PPO and the group methods share, and each one's own settings (no torch here)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from tercet.errors import ConfigError
from tercet.posttraining.rewards.stage import (
    MISSING_EOS_SCORE,
    PROMPTS,
    REWARD,
    REWARD_RETRIES,
    REWARD_TIMEOUT,
    SCORER,
    RewardedSettings,
)
from tercet.training.settings import FILES, LANGUAGE_MODEL, TuneSettings, setting, shares
from tercet.training.stage import Stage

# KL estimators with the wrong gradient (arXiv 2506.09477); proofs/ shows each of them wrong.
REFUSED = {
    "k3_reward": "its gradient is ∇KL(π‖ref) − ∇KL(ref‖π), which vanishes near the reference: no leash at all",
    "k1_loss": "its expected gradient is zero: ∇ E[log π − log π_ref] with fixed samples pulls nowhere",
    "k3_loss": "its gradient is that of the forward KL, KL(ref‖π), not of the KL that was asked for",
    "max0_reward": "max(KL, 0) per token is biased: the negative terms belong to the expectation",
}
KL_PLACES = ("reward", "k2_loss", "exact_loss")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RewardedSettings, TuneSettings):
    """A policy on r(x, y) − beta · log(π(y|x) / π_SFT(y|x)), plus gamma · E_pretrain[log π(x)]."""

    model: str = setting(
        ...,
        "run of the policy to start from, which is also the reference: an instruction-tuned model",
        reads=LANGUAGE_MODEL,
    )
    reward: tuple[str, ...] = REWARD
    reward_timeout: float = REWARD_TIMEOUT
    reward_retries: int = REWARD_RETRIES
    prompts: tuple[str, ...] = PROMPTS
    scorer: tuple[str, ...] = SCORER
    pretrain_data: tuple[str, ...] = setting(
        (), "text for the pretraining term (needed where gamma is above 0)", reads=FILES
    )
    pretrain_mixture: tuple[str, ...] = setting((), "shares of its sources as name=share; default: by size")
    pretrain_rows: int = setting(8, "rows of text per step for the pretraining term", minimum=1)
    heldout_text: tuple[str, ...] = setting(
        (), "held-out text on which bits per byte are measured before and after", reads=FILES
    )
    heldout_bytes: int = setting(40_000, "at most so many held-out bytes per source", minimum=1)
    beta: float = setting(0.05, "weight of the KL penalty, in reward units per nat", minimum=0)
    log_kl: bool = setting(True, "evaluate the reference for the log even where beta is 0")
    target_kl: float = setting(0.0, "nats per answer that beta is adapted to reach (0: beta stays)", minimum=0)
    kl_horizon: int = setting(10_000, "answers in which beta can change by a factor of about e^0.2", minimum=1)
    gamma: float = setting(
        0.0, "weight of the pretraining loss (mean nats per token) beside the policy loss", minimum=0
    )
    steps: int = setting(60, "rollout-and-update steps", minimum=1)
    batch_size: int = setting(64, "prompts per step", minimum=1)
    group_size: int = setting(1, "answers to each prompt", minimum=1)
    minibatches: int = setting(1, "optimizer steps per epoch over a step's rollouts", minimum=1)
    epochs: int = setting(1, "passes over a step's rollouts", minimum=1)
    micro_batch: int = setting(0, "answers per forward pass when learning (0: about 1,024 tokens)", minimum=0)
    sync_every: int = setting(1, "steps between handing new weights to the sampler; above 1 it lags behind", minimum=1)
    importance_cap: float = setting(2.0, "stale rollouts count by π_old/π_sampler, cut at this value", minimum=1)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    temperature: float = setting(1.0, "of sampling; log-probabilities are taken at it too", minimum=1e-3)
    missing_eos_score: float = MISSING_EOS_SCORE
    ema: float = setting(
        0.0, "decay of an average of the weights, which is what is kept in the end (0: off)", minimum=0
    )
    lr: float = setting(2e-4, "AdamW learning rate of the policy", minimum=0, maximum=1e37)
    warmup: int = setting(3, "steps of linear warm-up", minimum=0)
    checkpoint_every: int = setting(20, "steps between checkpoints (0: at the end only)", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(self.pretrain_mixture, "--pretrain-mixture")
        if self.gamma > 0 and not self.pretrain_data:
            raise ConfigError(
                f"--gamma is {self.gamma}, but no text is named; name it with --pretrain-data, or set --gamma 0"
            )
        if self.batch_size % self.minibatches:
            raise ConfigError(
                f"--batch-size ({self.batch_size}) must be a multiple of --minibatches ({self.minibatches})"
            )
        if self.ema >= 1:
            raise ConfigError(f"--ema is {self.ema}; wanted a decay below 1, for example 0.99")
        if self.target_kl > 0 and self.beta == 0:
            raise ConfigError("--target-kl needs a beta above 0 to begin with")


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PolicyConfig):
    """Improve answers by a reward with PPO (RLHF).

    The objective is r(x, y) − beta · log(π(y|x) / π_SFT(y|x)) + gamma · E_pretrain[log π(x)].
    """

    gamma: float = setting(
        1.0, "weight of the pretraining loss (mean nats per token) beside the policy loss (mean per token)", minimum=0
    )
    clip: float = setting(0.2, "the probability ratio is clipped to 1 ± clip", minimum=0)
    discount: float = setting(1.0, "reward discount per token", minimum=0)
    gae_lambda: float = setting(0.95, "λ of generalised advantage estimation", minimum=0)
    whiten_advantages: bool = setting(True, "mean 0 and variance 1 over the step's actions")
    whiten_rewards: bool = setting(False, "scale the penalised rewards to variance 1 (it changes what beta means)")
    clip_reward: float = setting(0.0, "scores are cut to ± this value (0: never; it changes the optimum)", minimum=0)
    critic: str = setting(
        "separate", "a model of its own that starts as the reward model, or a head on the policy's trunk",
        choices=("separate", "shared"),
    )  # fmt: skip
    critic_lr: float = setting(5e-4, "AdamW learning rate of a separate critic", minimum=0, maximum=1e37)
    value_coef: float = setting(0.1, "weight of the value loss where the trunk is shared", minimum=0)


METHODS = (
    "grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "online_dpo", "expert_iteration",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(PolicyConfig):
    """Improve answers by a reward with GRPO, RLOO and others.

    In these group methods, the answers to a prompt are each other's baseline, and there is no critic.
    """

    method: str = setting("grpo", "how scores become a gradient", choices=METHODS)
    kl: str = setting("reward", "where the KL penalty goes: into the reward (k1), or into the loss", choices=KL_PLACES)
    group_size: int = setting(8, "answers to each prompt", minimum=1)
    batch_size: int = setting(16, "prompts per step", minimum=1)
    clip_low: float | None = setting(None, "the ratio is cut below at 1 − this; default: the method's", minimum=0)
    clip_high: float | None = setting(None, "the ratio is cut above at 1 + this; default: the method's", minimum=0)
    dpo_beta: float = setting(0.1, "β of the DPO loss (online_dpo)", minimum=0)
    resample: int = setting(
        3, "rounds of further prompts in place of groups whose answers score all alike (dapo)", minimum=0
    )

    def __post_init__(self) -> None:
        if self.kl in REFUSED:
            raise ConfigError(
                f"--kl is {self.kl!r}: refused, because {REFUSED[self.kl]}; wanted one of {', '.join(KL_PLACES)}"
            )
        super().__post_init__()
        if self.method != "reinforce++" and self.group_size < 2:
            raise ConfigError(
                f"--group-size is {self.group_size}; {self.method} compares answers to one prompt: at least 2"
            )
        imitates = self.method in ("online_dpo", "expert_iteration")
        fields = {f.name: f.default for f in dataclasses.fields(self)}
        useless = {
            "dpo_beta": self.method != "online_dpo",
            "resample": self.method != "dapo",
            "clip_low": imitates or self.method == "cispo",
            "clip_high": imitates,
            "beta": self.method == "online_dpo",
            "target_kl": self.method == "online_dpo",
        }
        for name, without in useless.items():
            if without and getattr(self, name) not in (fields[name], 0):
                raise ConfigError(
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}, but {self.method} has no use for it; leave it out"
                )
        if self.method == "online_dpo" and self.dpo_beta == 0:
            raise ConfigError("--dpo-beta is 0, with which the loss is constant; wanted above 0, for example 0.1")
        if imitates and self.kl != "reward":
            raise ConfigError(f"--kl is {self.kl!r}; {self.method} has no policy loss that it could be added to")
        if self.method == "online_dpo" and self.micro_batch % self.group_size:
            raise ConfigError(
                f"--micro-batch ({self.micro_batch}) must be a multiple of --group-size ({self.group_size}): "
                "online_dpo compares answers of one group"
            )
        if self.method == "online_dpo" and not (self.log_kl or self.beta > 0):
            raise ConfigError("--log-kl is off, but online_dpo compares with the reference; leave it on")


_SHARED: dict[str, Any] = {
    "makes": LANGUAGE_MODEL, "section": "tercet.reporting.story:rlhf", "checks": "tercet.diagnostics.rl:CHECKS",
    "probe": "tercet.diagnostics.probe:probe_policy",
}  # fmt: skip
PPO_STAGE = Stage(
    "ppo", PPOConfig, "tercet.posttraining.rl.train:reinforce", order=80, label="RLHF",
    deed="trained with reinforcement learning from that feedback (RLHF)", variants={"gamma": "γ = 0"},
    example="tercet ppo --model runs/sft --reward runs/reward --prompts prompts.jsonl --pretrain-data books/ --out runs/rlhf",
    **_SHARED,
)  # fmt: skip
GRPO_STAGE = Stage(
    "grpo", GRPOConfig, "tercet.posttraining.rl.train:reinforce", order=90, label="RL",
    deed="trained with reinforcement learning",
    example="tercet grpo --model runs/sft --reward exact_match --prompts questions.jsonl --method dr_grpo --out runs/grpo",
    **_SHARED,
)  # fmt: skip
