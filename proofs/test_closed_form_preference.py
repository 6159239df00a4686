"""DPO, IPO and KTO reach their own optima: a Transformer, trained by the stage's own loss on a whole population.

The population can be enumerated: four tokens, one of which ends an answer, at most four tokens, so 121 answers with
those that are cut off. Where an optimum has a closed form it is written out here; KTO's is solved for by bisection.
What is wrong on purpose is written here alone and must end far from the optimum.

The prompt begins with the end token, which no answer goes on from: after a prompt of token 1 alone, the contexts 1, 11,
111 and 1111 would be the same to a model whose values carry no position (rotary attention over equal tokens), and no
training could part them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from enumerated import ANSWERS, END
from enumerated import FINISHED as ENDS
from torch import Tensor

from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.posttraining.preference.data import LabelledBatch, PairBatch
from tercet.posttraining.preference.losses import kto_reference_point
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.preference.train import kto_objective, pair_objective
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig, schedule
from tercet.training.shared_prompts import PackedGroups, pack_groups

SEEDS = range(4)
RIGHT, WRONG = 0.01, 0.1  # total variation to the optimum
STEPS = 300
N = len(ANSWERS)
ROWS = pack_groups([[END, 1]], [ANSWERS])
PAIRS = torch.tensor(list(itertools.permutations(range(N), 2)))
F64 = torch.float64
BETA, TAU = 0.5, 0.1
DESIRABLE_WEIGHT = 4.0


def policy(seed: int) -> Transformer:
    """A random model whose weights are large enough that its distribution is far from uniform."""
    model = Transformer(
        ModelConfig(
            vocab_size=4, context_length=8, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=16,
            intermediate_size=64,
        )
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.copy_(0.12 * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def logprobs(model: Transformer, rows: PackedGroups = ROWS) -> Tensor:
    return rows.logprobs(model)


def distance(model: Transformer, optimum: Tensor) -> float:
    """Total variation between the model's distribution over all answers and the optimum."""
    return 0.5 * float((logprobs(model).exp() - optimum).abs().sum())


def train(model: Transformer, batch: Callable[[], Any], objective: Any) -> None:
    learner = Learner(model, OptimizerConfig(lr=0.01, muon_lr=0.0))
    for step in range(STEPS):
        learner.forward_backward([batch()], objective)
        learner.optim_step(schedule(step, STEPS, 10, 0.8))


def settings(loss: str, **values: float) -> DPOConfig:
    return DPOConfig(model="m", data=("d",), loss=loss, **values)  # type: ignore[arg-type]


def rewards(seed: int) -> Tensor:
    return torch.randn(N, generator=torch.Generator().manual_seed(100 + seed), dtype=F64)


def test_the_answers_are_all_there_are() -> None:
    assert N == 121
    assert int(ENDS.sum()) == 40
    for seed in SEEDS:
        assert logprobs(policy(seed)).exp().sum().item() == pytest.approx(1, abs=1e-5)


# -- comparisons: DPO and IPO ---------------------------------------------------------------------------------------


def bradley_terry(r: Tensor) -> Tensor:
    """[N, N]: with what probability answer i is preferred to j."""
    return torch.sigmoid(r[:, None] - r[None, :])


def all_pairs(reference: Tensor, r: Tensor) -> PairBatch:
    """Every ordered pair, as often as people would prefer its first answer."""
    weights = bradley_terry(r)[PAIRS[:, 0], PAIRS[:, 1]]
    weights = weights / weights.sum()
    return PairBatch(ROWS, reference, PAIRS, weights, weights, 1.0)


def dpo_optimum(reference: Tensor, r: Tensor) -> Tensor:
    """π* ∝ π_ref exp(r / β) (Rafailov et al. 2023, equation 4)."""
    return (reference + r / BETA).softmax(0)


def ipo_optimum(reference: Tensor, r: Tensor) -> Tensor:
    """π* ∝ π_ref exp(p*(y ≻ μ) / τ), μ uniform (Azar et al. 2023, Ψ the identity)."""
    return (reference + bradley_terry(r).mean(1) / TAU).softmax(0)


OPTIMA = {"dpo": (dpo_optimum, BETA), "ipo": (ipo_optimum, TAU)}


@pytest.mark.parametrize("loss", OPTIMA)
@pytest.mark.parametrize("seed", SEEDS)
def test_comparisons_lead_to_the_closed_form(loss: str, seed: int) -> None:
    optimum_of, beta = OPTIMA[loss]
    model, r = policy(seed), rewards(seed)
    reference = logprobs(model)
    optimum, batch = optimum_of(reference, r), all_pairs(reference, r)
    assert 0.35 < distance(model, optimum) < 0.85
    train(model, lambda: batch, pair_objective(settings(loss, beta=beta)))
    print(loss, seed, found := distance(model, optimum))
    assert found < RIGHT


def without_end(x: Tensor) -> Tensor:
    """Sums over tokens, the end left out."""
    return ROWS.sum(x * (ROWS.target != END))


# From log π and log π_ref of every answer token [A] to what the loss sees of each answer [N].
WRONG_SUMS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "averaged over the tokens": lambda logp, ref: ROWS.sum(logp - ref) / ROWS.lengths(),
    "no reference": lambda logp, ref: ROWS.sum(logp),
    "the end left out": lambda logp, ref: without_end(logp - ref),
    "the end left out of the reference": lambda logp, ref: ROWS.sum(logp) - without_end(ref),
}


@pytest.mark.parametrize(
    ("loss", "wrong"), [*(("dpo", wrong) for wrong in WRONG_SUMS), ("ipo", "averaged over the tokens")]
)
def test_wrong_sums_do_not(loss: str, wrong: str) -> None:
    optimum_of, beta = OPTIMA[loss]
    model, r = policy(0), rewards(0)
    with torch.no_grad():
        per_token = ROWS.token_logprobs(model)[0]
    optimum, batch = optimum_of(ROWS.sum(per_token), r), all_pairs(ROWS.sum(per_token), r)

    def objective(model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        h = WRONG_SUMS[wrong](ROWS.token_logprobs(model)[0], per_token)
        delta = h[PAIRS[:, 0]] - h[PAIRS[:, 1]]
        each = -torch.sigmoid(beta * delta).log() if loss == "dpo" else (delta - 1 / (2 * beta)) ** 2
        return (batch.weights * each).sum(), {}

    train(model, lambda: batch, objective)
    print(loss, wrong, found := distance(model, optimum))
    assert found > WRONG


def test_ipo_with_twice_its_target_does_not() -> None:
    """(Δ − 1/τ)² for (Δ − 1/2τ)²: what doubling τ would give."""
    model, r = policy(0), rewards(0)
    reference = logprobs(model)
    batch = all_pairs(reference, r)
    train(model, lambda: batch, pair_objective(settings("ipo", beta=TAU / 2)))
    print(found := distance(model, ipo_optimum(reference, r)))
    assert found > WRONG


# -- labels: KTO ----------------------------------------------------------------------------------------------------


def votes(seed: int) -> tuple[Tensor, Tensor]:
    """How many people found each answer good, and how many bad: at least one good."""
    generator = torch.Generator().manual_seed(200 + seed)
    return tuple(torch.randint(low, high, (N,), generator=generator) for low, high in ((1, 5), (0, 4)))  # type: ignore[return-value]


def copies(of: Tensor) -> PackedGroups:
    """The rows with answer i as often as of[i] says; hidden states are still computed once."""
    index = torch.repeat_interleave(torch.arange(N), of)
    places = [(ROWS.answer == i).nonzero()[:, 0] for i in range(N)]
    tokens = torch.cat([places[i] for i in index.tolist()])
    answer = torch.repeat_interleave(torch.arange(len(index)), ROWS.lengths()[index])
    return replace(ROWS, before=ROWS.before[tokens], target=ROWS.target[tokens], answer=answer, last=ROWS.last[index])


def kto_optimum(reference: Tensor, good: Tensor, bad: Tensor) -> tuple[Tensor, float]:
    """The policy that no other beats at the z0 that it has itself, and this z0.

    With x = log(π/π_ref) − z0 and w = λ_D good − λ_U bad > 0 the loss is −Σ w σ(βx) and a constant. Under Σ π = 1 it is
    stationary where w β σ'(βx) = κ π_ref e^x with one κ for all answers; for β < 1 one x solves this, falling with κ.
    z0, the mean of log(π/π_ref) over the votes, makes the mean of x 0: bisection for x within bisection for κ.
    """
    w, votes = DESIRABLE_WEIGHT * good - bad, (good + bad).double()
    assert (w > 0).all()

    def bisect(low: Tensor, high: Tensor, too_low: Callable[[Tensor], Tensor]) -> Tensor:
        for _ in range(60):
            middle = (low + high) / 2
            low, high = torch.where(too_low(middle), middle, low), torch.where(too_low(middle), high, middle)
        return low

    def x_at(log_kappa: Tensor) -> Tensor:
        def too_low(x: Tensor) -> Tensor:
            slope = F.logsigmoid(BETA * x) + F.logsigmoid(-BETA * x)
            return (w * BETA).log() + slope > log_kappa + reference + x

        return bisect(torch.full((N,), -60.0, dtype=F64), torch.full((N,), 60.0, dtype=F64), too_low)

    ends = (torch.tensor(end, dtype=F64) for end in (-40.0, 40.0))
    x = x_at(bisect(*ends, lambda log_kappa: (votes * x_at(log_kappa)).sum() > 0))
    z0 = -torch.logsumexp(reference + x, 0)
    return (reference + x + z0).exp(), float(z0)


def kto_case(seed: int) -> tuple[Transformer, Tensor, Tensor, Tensor]:
    """(model, good votes, bad votes, optimum)."""
    model, (good, bad) = policy(seed), votes(seed)
    optimum, z0 = kto_optimum(logprobs(model), good, bad)
    assert 0.3 < distance(model, optimum) < 0.85
    assert z0 > 0.5, "clamped at 0, z0 would not matter"
    return model, good, bad, optimum


@pytest.mark.parametrize("seed", SEEDS)
def test_labels_lead_to_ktos_optimum(seed: int) -> None:
    """With one prompt, the answers that z0 is measured on are the population's own."""
    model, good, bad, optimum = kto_case(seed)
    index = torch.repeat_interleave(torch.arange(N), good + bad)
    rows, desirable = copies(good + bad), torch.cat([torch.arange(int(g + b)) < g for g, b in zip(good, bad)])
    reference, shares = logprobs(model)[index], torch.ones(len(index), dtype=F64)
    torch.testing.assert_close(logprobs(model, rows), reference)

    def batch() -> LabelledBatch:
        z0 = kto_reference_point(logprobs(model)[index], reference)
        return LabelledBatch(rows, reference, desirable, shares, z0, float(len(index)))

    train(model, batch, kto_objective(settings("kto", beta=BETA, desirable_weight=DESIRABLE_WEIGHT)))
    print("kto", seed, found := distance(model, optimum))
    assert found < RIGHT


@dataclass(frozen=True)
class Votes:
    """A batch of the losses that are wrong on purpose."""

    good: Tensor
    bad: Tensor
    count: float = 1.0


WRONG_POINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "z0 is 0": lambda mean: 0 * mean.detach(),
    "z0 with a gradient": lambda mean: mean.clamp(min=0),
}


@pytest.mark.parametrize("wrong", ["no reference", "the end left out", *WRONG_POINTS, "weights swapped"])
def test_wrong_kto_does_not(wrong: str) -> None:
    model, good, bad, optimum = kto_case(0)
    with torch.no_grad():
        reference = ROWS.token_logprobs(model)[0]
    heavy, light = (1.0, DESIRABLE_WEIGHT) if wrong == "weights swapped" else (DESIRABLE_WEIGHT, 1.0)
    sums = WRONG_SUMS.get(wrong, lambda logp, ref: ROWS.sum(logp - ref))
    point = WRONG_POINTS.get(wrong, lambda mean: mean.clamp(min=0).detach())

    def objective(model: Transformer, batch: Votes) -> tuple[Tensor, dict[str, float]]:
        rho = sums(ROWS.token_logprobs(model)[0], reference)
        everyone = batch.good + batch.bad
        z0 = point((everyone * rho).sum() / everyone.sum())
        gain = torch.sigmoid(BETA * (rho - z0))
        return (heavy * batch.good * (1 - gain) + light * batch.bad * gain).sum() / everyone.sum(), {}

    train(model, lambda: Votes(good, bad), objective)
    print("kto", wrong, found := distance(model, optimum))
    assert found > WRONG
