"""The two RL stages, PPO and the group methods: their settings and declarations. It does not import torch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

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
from tercet.training.settings import FILES, LANGUAGE_MODEL, WARMUP_HELP, TuneSettings, setting, shares
from tercet.training.stage import Stage

# KL estimators with the wrong gradient (arXiv 2506.09477); proofs/test_kl.py shows that each is wrong.
REFUSED = {
    "k3_reward": "its gradient is ∇KL(π‖ref) − ∇KL(ref‖π), which vanishes near the reference: there it does not pull",
    "k1_loss": "its expected gradient is zero: E[∇ (log π − log π_ref)] over samples of π does not pull",
    "k3_loss": "its gradient is that of the forward KL, KL(ref‖π), not of KL(π‖ref)",
    "max0_reward": "max(KL, 0) per token is biased: the negative terms are part of the expectation",
}
KL_PLACES = ("reward", "k2_loss", "exact_loss")


@dataclass(frozen=True, kw_only=True)
class PolicyConfig(RewardedSettings, TuneSettings):
    """The settings of all RL stages, on r(x, y) − beta · log(π(y|x) / π_SFT(y|x)) + gamma · E_pretrain[log π(x)]."""

    model: str = setting(
        ...,
        "Run of the policy to start from, which is also the reference: an instruction-tuned model.",
        reads=LANGUAGE_MODEL,
    )
    reward: tuple[str, ...] = REWARD
    reward_timeout: float = REWARD_TIMEOUT
    reward_retries: int = REWARD_RETRIES
    prompts: tuple[str, ...] = PROMPTS
    scorer: tuple[str, ...] = SCORER
    pretrain_data: tuple[str, ...] = setting(
        (), "Text for the pretraining term; required if --gamma is above 0.", reads=FILES
    )
    pretrain_mixture: tuple[str, ...] = setting(
        (), "Shares of the sources of --pretrain-data, as name=share; by default, sources count by size."
    )
    pretrain_rows: int = setting(8, "Rows of text per optimizer step for the pretraining term.", minimum=1)
    heldout_text: tuple[str, ...] = setting(
        (), "Held-out text; its bits per byte are measured before and after training.", reads=FILES
    )
    heldout_bytes: int = setting(40_000, "Maximum number of held-out bytes per source.", minimum=1)
    beta: float = setting(0.05, "Weight of the KL penalty, in reward units per nat.", minimum=0)
    log_kl: bool = setting(True, "Log the KL to the reference even if --beta is 0.")
    target_kl: float = setting(
        0.0,
        "Target KL to the reference, in nats per answer; beta is adapted to reach it. 0 keeps beta fixed.",
        minimum=0,
    )
    kl_horizon: int = setting(
        10_000,
        "With --target-kl: number of answers over which beta changes by a factor of at most about e^0.2.",
        minimum=1,
    )
    gamma: float = setting(
        0.0, "Weight of the pretraining loss (mean nats per token), added to the policy loss. 0 means none.", minimum=0
    )
    steps: int = setting(60, "Training steps; each generates rollouts and then updates the policy.", minimum=1)
    batch_size: int = setting(64, "Prompts per step.", minimum=1)
    group_size: int = setting(1, "Answers to each prompt.", minimum=1)
    minibatches: int = setting(
        1,
        "Parts of a step's rollouts, each used for one optimizer step; --batch-size must be a multiple of it.",
        minimum=1,
    )
    epochs: int = setting(1, "Passes over the rollouts of each training step.", minimum=1)
    micro_batch: int = setting(
        0, "Answers per forward pass of an update; fewer need less memory. 0 means about 1,024 tokens.", minimum=0
    )
    sync_every: int = setting(
        1,
        "Steps between copies of the policy's weights to the sampler. Above 1, an older policy makes some rollouts.",
        minimum=1,
    )
    importance_cap: float = setting(
        2.0,
        "With --sync-every above 1: rollouts are weighted by π_old / π_sampler, truncated at this value.",
        minimum=1,
    )
    max_new_tokens: int = setting(32, "Longest answer, in tokens.", minimum=1)
    temperature: float = setting(
        1.0, "Temperature of sampling and of all log-probabilities; it must be above 0.", minimum=1e-3
    )
    missing_eos_score: float = MISSING_EOS_SCORE
    ema: float = setting(
        0.0,
        "Decay of a moving average of the weights (EMA), which the run then saves; such as 0.99. 0 means no average.",
        minimum=0,
    )
    lr: float = setting(2e-4, "Peak learning rate of AdamW for the policy.", minimum=0, maximum=1e37)
    warmup: int = setting(3, WARMUP_HELP, minimum=0)
    checkpoint_every: int = setting(20, "Steps between checkpoints. 0 means only after the last step.", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        shares(self.pretrain_mixture, "--pretrain-mixture")
        if self.gamma > 0 and not self.pretrain_data:
            raise ConfigError(
                f"--gamma is {self.gamma}, but there is no pretraining text; "
                "name it with --pretrain-data, or set --gamma 0"
            )
        if self.batch_size % self.minibatches:
            raise ConfigError(
                f"--batch-size ({self.batch_size}) must be a multiple of --minibatches ({self.minibatches})"
            )
        if self.ema >= 1:
            raise ConfigError(f"--ema is {self.ema}; wanted a decay below 1, for example 0.99")
        if self.target_kl > 0 and self.beta == 0:
            raise ConfigError(
                f"--target-kl is {self.target_kl} and --beta is 0; wanted a beta above 0 to start from, such as 0.05"
            )


@dataclass(frozen=True, kw_only=True)
class PPOConfig(PolicyConfig):
    """Improve answers by a reward with PPO (RLHF).

    The objective to maximise is r(x, y) − beta · log(π(y|x) / π_SFT(y|x)) + gamma · E_pretrain[log π(x)].
    """

    gamma: float = setting(
        1.0,
        "Weight of the pretraining loss, added to the policy loss; both are means per token. 0 means none.",
        minimum=0,
    )
    clip: float = setting(0.2, "The probability ratio is clipped to 1 ± this value.", minimum=0)
    discount: float = setting(1.0, "Reward discount per token.", minimum=0)
    gae_lambda: float = setting(0.95, "λ of generalised advantage estimation (GAE).", minimum=0)
    whiten_advantages: bool = setting(True, "Shift and scale the advantages of a step to mean 0 and variance 1.")
    whiten_rewards: bool = setting(
        False, "Scale the rewards, with their KL penalty, to variance 1. It changes the meaning of --beta."
    )
    clip_reward: float = setting(
        0.0, "Clip scores to ± this value, which changes which policy is optimal. 0 means no clipping.", minimum=0
    )
    critic: str = setting(
        "separate",
        "Critic: separate, a model that starts as the reward model; or shared, a value head on the policy's layers.",
        choices=("separate", "shared"),
    )
    critic_lr: float = setting(5e-4, "Peak learning rate of AdamW for a separate critic.", minimum=0, maximum=1e37)
    value_coef: float = setting(0.1, "Weight of the value loss with a shared critic.", minimum=0)


METHODS = ("grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce++", "online_dpo", "expert_iteration")


@dataclass(frozen=True, kw_only=True)
class GRPOConfig(PolicyConfig):
    """Improve answers by a reward with GRPO, RLOO and others.

    In these group methods, the answers to a prompt are each other's baseline, and there is no critic.
    """

    method: str = setting(
        "grpo", "Method that turns the scores of a group into advantages and a loss.", choices=METHODS
    )
    kl: str = setting(
        "reward", "Place of the KL penalty: in the reward (k1), or in the loss (k2 or exact).", choices=KL_PLACES
    )
    group_size: int = setting(8, "Answers to each prompt.", minimum=1)
    batch_size: int = setting(16, "Prompts per step.", minimum=1)
    clip_low: float | None = setting(
        None, "The probability ratio is clipped below at 1 − this value. Default: the method's own.", minimum=0
    )
    clip_high: float | None = setting(
        None, "The probability ratio is clipped above at 1 + this value. Default: the method's own.", minimum=0
    )
    dpo_beta: float = setting(0.1, "online_dpo: β of the DPO loss.", minimum=0)
    resample: int = setting(
        3,
        "dapo: extra rounds of prompts to replace groups whose answers all have the same score. "
        "0 means no replacement.",
        minimum=0,
    )

    def __post_init__(self) -> None:
        if self.kl in REFUSED:
            raise ConfigError(f"--kl is {self.kl!r}, but {REFUSED[self.kl]}; wanted one of {', '.join(KL_PLACES)}")
        super().__post_init__()
        if self.method != "reinforce++" and self.group_size < 2:
            raise ConfigError(
                f"--group-size is {self.group_size}; wanted at least 2, because {self.method} compares answers "
                "to the same prompt"
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
                    f"--{name.replace('_', '-')} is {getattr(self, name)!r}, but --method {self.method} does not "
                    "use it; leave it out"
                )
        if self.method == "online_dpo" and self.dpo_beta == 0:
            raise ConfigError("--dpo-beta is 0, which makes the loss constant; wanted above 0, for example 0.1")
        if imitates and self.kl != "reward":
            raise ConfigError(
                f"--kl is {self.kl!r}, but --method {self.method} has no policy loss to add the KL to; leave --kl out"
            )
        if self.method == "online_dpo" and self.micro_batch % self.group_size:
            raise ConfigError(
                f"--micro-batch ({self.micro_batch}) must be a multiple of --group-size ({self.group_size}): "
                "online_dpo compares the answers of a group"
            )
        if self.method == "online_dpo" and not (self.log_kl or self.beta > 0):
            raise ConfigError("--no-log-kl is set, but online_dpo needs the reference; leave --no-log-kl out")


PPO_STAGE = Stage(
    "ppo",
    PPOConfig,
    "tercet.posttraining.rl.train:reinforce",
    order=80,
    label="RLHF",
    makes=LANGUAGE_MODEL,
    deed="trained with reinforcement learning from that feedback (RLHF)",
    variants={"gamma": "γ = 0"},
    example=(
        "tercet ppo --model runs/sft --reward runs/reward --prompts prompts.jsonl --pretrain-data books/ "
        "--out runs/rlhf"
    ),
    section="tercet.reporting.story:rlhf",
    checks="tercet.diagnostics.rl:CHECKS",
    probe="tercet.diagnostics.probe:probe_policy",
)
GRPO_STAGE = dataclasses.replace(
    PPO_STAGE,
    verb="grpo",
    settings=GRPOConfig,
    order=90,
    label="RL",
    deed="trained with reinforcement learning",
    variants={},
    example=(
        "tercet grpo --model runs/sft --reward exact_match --prompts questions.jsonl --method dr_grpo --out runs/grpo"
    ),
)
