"""RLHF: PPO on E[r(x,y)] − β log(π(y|x)/π_SFT(y|x)) + γ E_pretrain[log π(x)] (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.advantages import advantages_and_returns, place_rewards, whiten
from tercet.posttraining.rl.policy import Policy
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.rollouts import Rollouts, action_values, values
from tercet.posttraining.rl.stage import PPOConfig
from tercet.training.learner import Learner
from tercet.training.loader import BatchLoader
from tercet.training.optim import OptimizerConfig


def value_objective(critic: ValueHeadModel, batch: Rollouts) -> tuple[Tensor, dict[str, float]]:
    """Return ½ (V − return)², summed over actions, and its metrics."""
    loss = 0.5 * (action_values(critic, batch) - batch.at_actions("returns")).double().square().sum()
    return loss, {"value_loss": float(loss.detach())}


class PPO:
    """Proximal policy optimisation (Schulman et al. 2017) with a critic that starts as the reward model."""

    resample = 0

    def __init__(
        self,
        config: PPOConfig,
        reference: Transformer,
        reward_model: ValueHeadModel | None,
        text: BatchLoader | None = None,
    ) -> None:
        """Without a `reward_model`, a separate critic starts as the reference with a new value head."""
        self.config = config
        if config.critic == "shared":
            self.policy = Policy(config, reference, text, ValueHeadModel(copy.deepcopy(reference), config.seed))
            self.critic: Learner[Any] | None = None
        else:
            self.policy = Policy(config, reference, text)
            critic = copy.deepcopy(reward_model) or ValueHeadModel(copy.deepcopy(reference), config.seed)
            optimizer = OptimizerConfig(config.critic_lr, 0.0, eps=1e-5, clip_norm=config.clip_norm)
            self.critic = Learner(critic.to(reference.output_weight.dtype), optimizer)

    @property
    def value_model(self) -> ValueHeadModel:
        """The critic: a separate model, or the value head on the policy's layers."""
        model = self.policy.module if self.critic is None else self.critic.model
        assert isinstance(model, ValueHeadModel)
        return model

    def credit(self, rollouts: Rollouts, beta: float) -> tuple[Rollouts, dict[str, float]]:
        """Fill in values, advantages (GAE) and returns, and return metrics.

        The reward of a token is its KL penalty, plus the score on the last token.
        """
        config, mask = self.config, rollouts.action_mask
        scores = rollouts.rewards
        if config.clip_reward > 0:
            scores = scores.clamp(-config.clip_reward, config.clip_reward)
        penalty = rollouts.kl() if beta > 0 else rollouts.behaviour.new_zeros(mask.shape)
        rewards = place_rewards(scores, penalty, mask, beta)
        if config.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        estimates = values(self.value_model, rollouts)
        advantages, returns = advantages_and_returns(rewards, estimates, mask, config.discount, config.gae_lambda)
        residual, targets = (returns - estimates)[mask], returns[mask]
        metrics = {
            "explained_variance": 1.0 - float(residual.var(correction=0) / targets.var(correction=0).clamp(min=1e-8)),
            "advantage_mean": float(advantages[mask].mean()),
            "advantage_std": float(advantages[mask].std(correction=0)),
        }
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        return replace(rollouts, values=estimates, advantages=advantages, returns=returns), metrics

    def update(self, step: int, rollouts: Rollouts, beta: float) -> dict[str, float]:
        """Take one optimizer step, pretraining term included, for every minibatch of every epoch; returns metrics."""
        policy, config = self.policy, self.config
        rollouts, metrics = self.credit(policy.with_old(rollouts), beta)
        objective = policy.on_policy(PolicyObjective(config.temperature, config.clip, config.clip))
        for batches in policy.minibatches(step, rollouts):
            done = policy.per_action(policy.learner.forward_backward(batches, objective))
            done |= policy.read_text()
            done |= self.learn_values(batches, policy.scale(step))
            metrics = policy.step(step, done, metrics)
        return metrics

    def learn_values(self, batches: Sequence[Rollouts], scale: float) -> dict[str, float]:
        """Add the gradients of the value loss; a separate critic also takes its optimizer step. Returns metrics."""
        if self.critic is None:
            return self.policy.learner.forward_backward(batches, value_objective, coef=self.config.value_coef)
        done = self.critic.forward_backward(batches, value_objective)
        return done | {"critic_grad_norm": self.critic.optim_step(scale)}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of policy, critic and both optimizers."""
        out = self.policy.state()
        if self.critic is not None:
            critic = self.critic.state()
            out |= {"critic": critic["model"], "critic_optimizer": critic["optimizer"]}
        return out

    def load(self, tensors: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Restore what `state` returned."""
        self.policy.load(tensors, updates)
        if self.critic is not None:
            state = {"model": tensors["critic"], "optimizer": tensors["critic_optimizer"]}
            self.critic.load(state, {"step": updates})
