"""The policy-gradient objective of all methods: (model, rollouts) → summed loss.

Every term is weights · f(ratio, advantage), with ratio = π(action) / π_old(action) at the sampling temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tercet.errors import ConfigError
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.rollouts import Rollouts, pack_rollouts
from tercet.training.losses import token_kl, token_logprobs


@dataclass(frozen=True)
class PolicyObjective:
    """The clipped surrogate loss (Schulman et al. 2017, equation 7) and its variants, summed over actions.

    level "token": one ratio per token (PPO, GRPO, DAPO). "answer": one ratio per answer, the product over its tokens
    (RLOO as in Ahmadian et al. 2024). "answer_mean": the geometric mean over its tokens (GSPO, Zheng et al. 2025,
    equation 7). `stop_gradient`: log π is weighted by the ratio as a constant, clipped at 1 + clip_high (CISPO,
    MiniMax 2025, equation 4).
    """

    temperature: float
    clip_low: float
    clip_high: float
    level: str = "token"
    stop_gradient: bool = False
    kl: str = "reward"
    kl_coef: float = 0.0  # β of the KL in the loss
    reference: Transformer | None = None  # needed for the exact KL

    def __call__(self, model: Transformer, batch: Rollouts) -> tuple[Tensor, dict[str, float]]:
        """Return the summed loss and summed metrics; divide per-token metrics by "actions".

        Raises ConfigError for rollouts without advantages.
        """
        if batch.advantages is None:
            raise ConfigError(
                "the rollouts have no advantages; fill them in first, for example with GroupMethod.prepare"
            )
        packed = pack_rollouts(batch)
        logp, entropy = token_logprobs(model, packed.hidden(model, packed.before), packed.target, self.temperature)
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
            # without a separate π_old the ratio is 1 whatever was sampled, so the ratio to the sampler is logged
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
        """Return the KL term of every action: k2 = ½ (log π − log π_ref)², or the exact KL of the next token."""
        if self.kl == "k2_loss":
            return 0.5 * (logp - batch.at_actions("ref_logp")).square()
        if self.reference is None:
            raise ConfigError("kl='exact_loss' needs the reference model; pass it as `reference`")
        packed = pack_rollouts(batch)
        with torch.no_grad():
            reference_hidden = packed.hidden(self.reference, packed.before)
        hidden = packed.hidden(model, packed.before)
        return token_kl(model, hidden, self.reference, reference_hidden, self.temperature)
