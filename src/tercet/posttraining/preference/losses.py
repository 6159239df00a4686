"""Preference losses: functions from the log-probabilities of whole answers to one summed loss.

    logp, reference  [N] log π(y|x), log π_ref(y|x), each summed over the answer's tokens with its end
    lengths          [N] tokens of each answer
    pairs, weights   [P, 2] indices of answers (better, worse); [P] weight of each pair

All return a SUM; the learner divides it. Inputs are float64, as `PackedGroups.logprobs` returns them.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def difference(values: Tensor, pairs: Tensor) -> Tensor:
    """Return the better answer's value minus the worse one's for every pair, [P]."""
    return values[pairs[:, 0]] - values[pairs[:, 1]]


def dpo(
    logp: Tensor, reference: Tensor, pairs: Tensor, weights: Tensor, beta: float, label_smoothing: float = 0.0
) -> Tensor:
    """Return −log σ(β Δ), where Δ is the difference of log(π / π_ref) (Rafailov et al. 2023, equation 7).

    With label smoothing ε it is −(1 − ε) log σ(β Δ) − ε log σ(−β Δ), conservative DPO (Mitchell 2023).
    """
    margin = beta * difference(logp - reference, pairs)
    right, wrong = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -(weights * ((1 - label_smoothing) * right + label_smoothing * wrong)).sum()


def ipo(logp: Tensor, reference: Tensor, pairs: Tensor, weights: Tensor, tau: float) -> Tensor:
    """Return (Δ − 1 / 2τ)² (Azar et al. 2023, equation 17).

    Δ is the difference of log(π / π_ref) summed over tokens, as in the paper; TRL takes the means over tokens.
    """
    return (weights * (difference(logp - reference, pairs) - 1 / (2 * tau)) ** 2).sum()


def simpo(logp: Tensor, lengths: Tensor, pairs: Tensor, weights: Tensor, beta: float, margin: float) -> Tensor:
    """Return −log σ(β Δ − γ), where Δ is the difference of mean log-probabilities (Meng et al. 2024, equation 6)."""
    return -(weights * F.logsigmoid(beta * difference(logp / lengths, pairs) - margin)).sum()


def orpo(logp: Tensor, lengths: Tensor, pairs: Tensor, weights: Tensor, odds_weight: float) -> Tensor:
    """Return −m_w − λ log σ(Δ log odds), with m the mean log-probability per token and odds = e^m / (1 − e^m).

    m_w is that of the better answer. Source: Hong et al. 2024, equations 6 and 7.
    """
    # with probability 1 to the last bit, the odds of an answer would be infinite
    mean = (logp / lengths).clamp(max=-1e-12)
    log_odds = mean - torch.log(-torch.expm1(mean))
    return -(weights * (mean[pairs[:, 0]] + odds_weight * F.logsigmoid(difference(log_odds, pairs)))).sum()


def kto(
    logp: Tensor,
    reference: Tensor,
    desirable: Tensor,
    z0: float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return λ_D (1 − σ(β (ρ − z0))) of desirable plus λ_U (1 − σ(β (z0 − ρ))) of undesirable answers.

    ρ is log(π / π_ref); `desirable` is [N] bool; `z0` comes from `kto_reference_point`. Source: Ethayarajh et al. 2024,
    equation 8.
    """
    gain = beta * (logp - reference - z0)
    good = desirable.to(logp.dtype)  # not torch.where with two numbers, which rounds them to float32
    weights = desirable_weight * good + undesirable_weight * (1 - good)
    return (weights * torch.sigmoid(torch.where(desirable, -gain, gain))).sum()


def kto_reference_point(logp: Tensor, reference: Tensor) -> float:
    """Return z0, an estimate of KL(π ‖ π_ref): max(0, mean of log(π / π_ref)) over mismatched prompts and answers."""
    return max(0.0, float((logp.detach() - reference).mean()))


def implied_rewards(loss: str, logp: Tensor, reference: Tensor, lengths: Tensor, beta: float) -> Tensor:
    """Return the implied reward of each answer, [N]: β log(π / π_ref).

    The losses without a reference take the mean log-probability per token instead: β m for simpo, and m for orpo.
    """
    if loss == "orpo":
        return logp / lengths
    return beta * logp / lengths if loss == "simpo" else beta * (logp - reference)
