"""Policy-gradient objectives: (model, rollouts) → summed loss. A method is its advantages, its weights and one of these.

Every term is weights · f(ratio, advantage), ratio = π(action) / π_old(action), at the temperature that was sampled at.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.rollouts import Rollouts, grouped
from tercet.training.losses import token_kl, token_logprobs


@dataclass(frozen=True)
class PolicyObjective:
    """The clipped surrogate (Schulman et al. 2017, equation 7) and its kin, summed over actions, as a loss.

    level "token": a ratio for each token (PPO, GRPO, DAPO). "answer": one ratio for the whole answer, Π over its tokens
    (RLOO as in Ahmadian et al. 2024). "answer_mean": its geometric mean per token (GSPO, Zheng et al. 2025, equation 7).
    `stop_gradient` weights log π by the ratio, cut at 1 + clip_high, as a constant (CISPO, MiniMax 2025, equation 4).
    """

    temperature: float
    clip_low: float
    clip_high: float
    level: str = "token"
    stop_gradient: bool = False
    kl: str = "reward"
    kl_coef: float = 0.0  # β of a KL inside the loss
    reference: Transformer | None = None  # needed for the exact KL

    def __call__(self, model: Transformer, batch: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """The summed loss, and summed metrics ("actions" is what the per-token ones must be divided by)."""
        if batch.advantages is None:
            raise ConfigError("the rollouts have no advantages yet: a method fills them in")
        rows = grouped(batch)
        logp, entropy = token_logprobs(model, rows.hidden(model, rows.before), rows.target, self.temperature)
        old = logp.detach() if batch.logp is None else batch.at_actions("logp")
        advantage = batch.at_actions("advantages")
        weights = torch.ones_like(advantage) if batch.weights is None else batch.at_actions("weights")
        ratio = self._log_ratio(logp - old, batch).exp()
        if self.stop_gradient:
            terms = -ratio.detach().clamp(max=1 + self.clip_high) * advantage * logp
        else:
            clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
            terms = -torch.minimum(ratio * advantage, clipped * advantage)
        loss = (weights * terms).double().sum()
        with torch.no_grad():
            outside = (ratio < 1 - self.clip_low) | (ratio > 1 + self.clip_high)
            drift = logp - batch.at_actions("behaviour")
            # where the policy is its own π_old the ratio is 1 whatever was sampled: the log has the one to the sampler
            logged = drift.exp() if batch.logp is None else ratio.detach()
        metrics = {
            "policy_loss": float(loss.detach()),
            "actions": float(len(logp)),
            "entropy": float(entropy.double().sum()),
            "clip_fraction": float(outside.double().sum()),
            "ratio": float(logged.double().sum()),
            "sampler_gap": float(drift.abs().double().sum()),
        }
        if self.kl_coef > 0 and self.kl != "reward":
            loss = loss + self.kl_coef * (weights * self._kl(model, batch, logp)).double().sum()
        return loss, metrics

    def _log_ratio(self, difference: Tensor, batch: Rollouts) -> Tensor:
        if self.level == "token":
            return difference
        owner = batch.action_mask.nonzero()[:, 0]
        summed = difference.new_zeros(len(batch.tokens)).index_add(0, owner, difference)
        if self.level == "answer_mean":
            summed = summed / batch.lengths()
        return summed[owner]

    def _kl(self, model: Transformer, batch: Rollouts, logp: Tensor) -> Tensor:
        """Per action: ½ (log π − log π_ref)², right per token though blind to the future; or the exact KL there."""
        if self.kl == "k2_loss":
            return 0.5 * (logp - batch.at_actions("ref_logp")).square()
        if self.reference is None:
            raise ConfigError("the exact KL needs the reference model")
        rows = grouped(batch)
        with torch.no_grad():
            towards = rows.hidden(self.reference, rows.before)
        return token_kl(model, rows.hidden(model, rows.before), self.reference, towards, self.temperature)
