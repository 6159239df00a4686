"""Which KL estimators have the gradient of the KL: each offered one against autograd through the enumerated KL.

The expectation is over all 121 answers, so that nothing is left to chance. What tercet refuses is shown to be wrong.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from enumerated import ANSWERS, PROMPT, logprobs, policy
from torch import Tensor

from tercet.inference.generate import Completion
from tercet.model.transformer import Transformer
from tercet.posttraining.rl import rollouts as ro
from tercet.posttraining.rl.advantages import by_group, leave_one_out, totals
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.rollouts import Rollouts, assemble
from tercet.posttraining.rl.stage import KL_PLACES, REFUSED

F64 = torch.float64


def gradient(model: Transformer) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def setting() -> tuple[Transformer, Transformer, Rollouts, Tensor]:
    """(policy, reference, every answer once, its probability)."""
    model, reference = policy(1).double(), policy(2).double()
    tokens, mask = assemble([PROMPT] * len(ANSWERS), [Completion(list(a)) for a in ANSWERS], pad=0)
    zeros = torch.zeros(mask.shape, dtype=F64)
    r = Rollouts(
        tokens, mask, zeros, torch.zeros(len(ANSWERS)), torch.zeros(len(ANSWERS), dtype=torch.long), zeros[:, 0]
    )
    r = replace(r, behaviour=ro.logprobs(model, r, 1.0), ref_logp=ro.logprobs(reference, r, 1.0))
    with torch.no_grad():
        return model, reference, r, logprobs(model).exp()


def true_gradient(model: Transformer, reference: Transformer) -> Tensor:
    """∇ Σ π (log π − log π_ref)."""
    logp, ref = logprobs(model), logprobs(reference).detach()
    (logp.exp() * (logp - ref)).sum().backward()
    return gradient(model)


def per_token_gradient(model: Transformer, reference: Transformer, p: Tensor) -> Tensor:
    """Σ over prefixes of their probability, held fixed, times ∇ KL of the next token there: blind to the future."""
    loss = torch.zeros((), dtype=F64)
    for answer, chance in zip(ANSWERS, p.tolist()):
        tokens = torch.tensor([[*PROMPT, *answer]])
        here = model(tokens)[0].log_softmax(-1)
        there = reference(tokens)[0].log_softmax(-1).detach()
        for t in range(len(PROMPT) - 1, len(PROMPT) - 1 + len(answer)):
            loss = loss + chance * (here[t].exp() * (here[t] - there[t])).sum()
    loss.backward()
    return gradient(model)


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def as_advantages(r: Rollouts, penalty: Tensor, p: Tensor) -> Rollouts:
    """Each answer's penalty as a negative advantage of all its actions, counted as often as the answer comes."""
    return replace(
        r, advantages=-penalty[:, None] * r.action_mask, weights=p[:, None] * r.action_mask, shares=torch.ones(len(p))
    )


def test_k1_in_the_reward_has_the_gradient_of_the_kl() -> None:
    model, reference, r, p = setting()
    wanted = true_gradient(model, reference)
    PolicyObjective(1.0, 0.2, 0.2)(model, as_advantages(r, -totals(r, 1.0), p))[0].backward()
    assert far(gradient(model), wanted) < 1e-9


def test_so_it_has_with_a_baseline_of_the_group() -> None:
    """Leave-one-out over all pairs of answers, weighted by how often a pair comes."""
    model, reference, r, p = setting()
    wanted = true_gradient(model, reference)
    n = len(p)
    rows = torch.cartesian_prod(torch.arange(n), torch.arange(n)).flatten()
    advantage = leave_one_out(by_group(totals(r, 1.0)[rows], torch.arange(n * n).repeat_interleave(2)))
    chance = p[rows].view(-1, 2).prod(1, keepdim=True)
    per_answer = torch.zeros(n, dtype=F64).index_add(0, rows, (advantage * chance).flatten() / 2)
    PolicyObjective(1.0, 0.2, 0.2)(model, as_advantages(r, -per_answer / p, p))[0].backward()
    assert far(gradient(model), wanted) < 1e-9


@pytest.mark.parametrize("kl", ["k2_loss", "exact_loss"])
def test_in_the_loss_it_is_right_for_each_token(kl: str) -> None:
    """It is blind to the future: it is not the gradient of the KL of whole answers, so it is not the default."""
    model, reference, r, p = setting()
    wanted, whole = per_token_gradient(model, reference, p), true_gradient(model, reference)
    objective = PolicyObjective(1.0, 0.2, 0.2, kl=kl, kl_coef=1.0, reference=reference)
    objective(model, as_advantages(r, torch.zeros_like(p), p))[0].backward()
    found = gradient(model)
    assert far(found, wanted) < 1e-9
    assert far(found, whole) > 0.05


def test_the_refused_are_wrong() -> None:
    model, reference, r, p = setting()
    wanted, x = true_gradient(model, reference), -r.kl()
    k3 = (x.exp() - 1 - x) * r.action_mask
    found = {}
    for name, penalty in (("k3_reward", k3), ("max0_reward", r.kl().clamp(min=0))):
        PolicyObjective(1.0, 0.2, 0.2)(model, as_advantages(r, penalty.sum(1), p))[0].backward()
        found[name] = gradient(model)
    for name in ("k1_loss", "k3_loss"):
        logp = ro.action_logprobs(model, r, 1.0)[0]
        towards = r.at_actions("ref_logp") - logp
        terms = -towards if name == "k1_loss" else towards.exp() - 1 - towards
        (p[r.action_mask.nonzero()[:, 0]] * terms).sum().backward()
        found[name] = gradient(model)
    assert found.keys() == REFUSED.keys()
    assert not REFUSED.keys() & set(KL_PLACES)
    assert float(found["k1_loss"].norm() / wanted.norm()) < 1e-9  # no gradient at all
    assert far(found["k3_reward"], wanted) > 0.3
    assert far(found["max0_reward"], wanted) > 0.05
    assert far(found["k3_loss"], wanted) > 0.3


def test_what_the_refused_are_instead() -> None:
    """For one token: k3 as a loss has ∇KL(ref‖π); k3 in the reward has ∇KL(π‖ref) − ∇KL(ref‖π)."""
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(6, generator=g, dtype=F64, requires_grad=True)
    ref = torch.randn(6, generator=g, dtype=F64).log_softmax(0)

    def grad(of: Tensor) -> Tensor:
        return torch.autograd.grad(of, logits)[0]

    logp = logits.log_softmax(0)
    p = logp.detach().exp()
    reverse = grad((logp.exp() * (logp - ref)).sum())
    logp = logits.log_softmax(0)
    forward = grad((ref.exp() * (ref - logp)).sum())
    logp = logits.log_softmax(0)
    x = ref - logp
    torch.testing.assert_close(grad((p * (x.exp() - 1 - x)).sum()), forward, atol=1e-12, rtol=0)
    logp = logits.log_softmax(0)
    x = (ref - logp).detach()
    torch.testing.assert_close(grad((p * (x.exp() - 1 - x) * logp).sum()), reverse - forward, atol=1e-12, rtol=0)
