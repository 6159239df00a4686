"""The learner: how a batch is split never changes the step. And the objectives that it is told."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.errors import NonFiniteError, TrainingError
from tercet.model.heads import ValueHeadModel
from tercet.model.ops import cross_entropy
from tercet.model.ops.cross_entropy import linear_cross_entropy
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, ranking_loss
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.ppo import value_objective
from tercet.posttraining.rl.rollouts import Rollouts
from tercet.training.learner import Learner
from tercet.training.losses import mean_loss, next_token, next_token_batch, token_logprobs
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch, PackedSequences

Make = Callable[..., Transformer]
PLAIN = OptimizerConfig(lr=0.01, muon_lr=0.0)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


# -- a batch of every kind, and its micro-batches of the given sizes --------------------------------------------------


def text_batch(sizes: Sequence[int], dtype: torch.dtype) -> list[Batch]:
    """Rows with very different weights: some rows almost none, so that a mean of means would be far off."""
    n = sum(sizes)
    tokens = rng(1).integers(0, 300, (n, 25)).astype(np.int32)
    weights = (rng(2).random((n, 25)) * (rng(3).random((n, 25)) < np.linspace(0.05, 1, n)[:, None])).astype(np.float32)
    segments = np.sort(rng(4).integers(0, 3, (n, 25)), axis=1).astype(np.int32)
    rows, edges = PackedSequences(tokens, segments, weights), np.cumsum([0, *sizes])
    return [next_token_batch(rows.take(range(a, b))) for a, b in itertools.pairwise(edges)]


def ranked_batch(sizes: Sequence[int], dtype: torch.dtype) -> list[Any]:
    """Prompts with 2 to 5 answers of 1 to 30 tokens."""
    prompts = []
    for n in range(sum(sizes)):
        k = 2 + n % 4
        answers = tuple(tuple(rng(100 * n + i).integers(0, 300, 1 + (7 * n + 11 * i) % 30).tolist()) for i in range(k))
        prompts.append(Ranked((5, 6, n), answers, (0,) * k, tuple(range(k)), ()))
    edges = np.cumsum([0, *sizes])
    return [collate(prompts[a:b]) for a, b in itertools.pairwise(edges)]


def rollout_batch(sizes: Sequence[int], dtype: torch.dtype) -> list[Rollouts]:
    """Answers of 1 to 18 actions with random advantages; π_old is near the model's log-probabilities."""
    n = sum(sizes)
    g = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 300, (n, 25), generator=g)
    mask = torch.zeros(n, 24, dtype=torch.bool)
    for row in range(n):
        mask[row, 5 : 6 + (row * 5) % 18] = True

    def noise(scale: float, shift: float = 0.0) -> Tensor:
        return (torch.randn(n, 24, generator=g, dtype=torch.float64) * scale + shift).to(dtype) * mask

    logp = noise(0.3, -6)
    whole = Rollouts(
        tokens, mask, behaviour=logp, version=torch.zeros(n), group=torch.arange(n), rewards=torch.zeros(n),
        ref_logp=noise(0.3, -6), logp=logp, values=noise(1), returns=noise(1), advantages=noise(1),
    )  # fmt: skip
    edges = np.cumsum([0, *sizes])
    return [whole.rows(slice(a, b)) for a, b in itertools.pairwise(edges)]


KINDS: dict[str, tuple[Callable[..., list[Any]], Any]] = {
    "next_token": (text_batch, next_token),
    "ranking_loss": (ranked_batch, ranking_loss),
    "policy_objective": (rollout_batch, PolicyObjective(1.3, 0.2, 0.2)),
    "value_objective": (rollout_batch, value_objective),
}


def model_for(kind: str, make_model: Make, dtype: torch.dtype) -> Any:
    scalar = kind in ("ranking_loss", "value_objective")
    return ValueHeadModel(make_model(1, dtype), seed=2).to(dtype) if scalar else make_model(1, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_splitting_a_batch_does_not_change_the_gradient(
    make_model: Make, kind: str, dtype: torch.dtype, tolerance: float
) -> None:
    make_batches, objective = KINDS[kind]
    model = model_for(kind, make_model, dtype)
    learner = Learner(model, PLAIN)
    results = []
    for sizes in ([10], [1] * 10, [7, 1, 2], [2, 3, 5]):
        batches = make_batches(sizes, dtype)
        metrics = learner.forward_backward(batches, objective)
        results.append((gradient(model), metrics, sum(b.count for b in batches)))
        learner.optimizer.zero_grad()
    whole, whole_metrics, count = results[0]
    assert whole.norm() > 1e-3
    for other, metrics, n in results[1:]:
        assert n == pytest.approx(count, rel=1e-6)
        assert float((other - whole).norm() / whole.norm()) <= tolerance
        assert metrics == pytest.approx(whole_metrics, rel=1e-5)


def test_the_test_above_would_see_a_mean_of_means(make_model: Make) -> None:
    """Its batches are uneven enough: the average of the micro-batches' own gradients is far from the right one."""
    model = make_model(1)
    learner = Learner(model, PLAIN)
    learner.forward_backward(text_batch([7, 1, 2], torch.float32), next_token)
    right = gradient(model)
    learner.optimizer.zero_grad()
    for part in text_batch([7, 1, 2], torch.float32):
        learner.forward_backward([part], next_token, coef=1 / 3)
    assert float((gradient(model) - right).norm() / right.norm()) > 0.05


def test_batch_split_gives_the_same_rows() -> None:
    (whole,) = text_batch([10], torch.float32)
    for rows in (1, 3, 4, 10, 99):
        parts = list(whole.split(rows))
        assert [len(p.tokens) for p in parts] == [min(rows, 10 - a) for a in range(0, 10, rows)]
        for name in ("tokens", "targets", "weights", "segments"):
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
        assert sum(p.count for p in parts) == pytest.approx(whole.count, rel=1e-6)


# -- sums, counts and coefficients on a model of one number -----------------------------------------------------------


@dataclass
class Numbers:
    """`count` numbers that sum to `total`."""

    total: float
    count: float


def times(model: Any, batch: Numbers) -> tuple[Tensor, dict[str, float]]:
    """The sum of the batch's numbers, times the model's one weight."""
    return model.weight.double().sum() * batch.total, {"loss": batch.total}


def one_number() -> nn.Linear:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.5)
    return model


def test_metrics_and_gradients_are_sums_over_counts() -> None:
    """100 tokens at 3.7 and 2 tokens at 4.0: the mean is 3.706, not 3.85."""
    learner = Learner(one_number(), PLAIN)
    metrics = learner.forward_backward([Numbers(370.0, 100), Numbers(8.0, 2)], times)
    assert metrics == {"loss": pytest.approx(378 / 102)}
    assert gradient(learner.model).item() == pytest.approx(378 / 102)


def test_coef_scales_and_calls_add_up() -> None:
    """What PPO with a pretraining term does: two calls, one step."""
    learner = Learner(one_number(), PLAIN)
    learner.forward_backward([Numbers(6.0, 3)], times)
    metrics = learner.forward_backward([Numbers(10.0, 2)], times, coef=27.8)
    assert gradient(learner.model).item() == pytest.approx(2 + 27.8 * 5)
    assert metrics == {"loss": 5.0}  # metrics are without the coefficient


def test_two_objectives_sum_to_the_gradient_of_their_sum(make_model: Make) -> None:
    model = make_model(1, torch.float64)
    learner = Learner(model, PLAIN)
    rollouts, text = rollout_batch([4], torch.float64), text_batch([3], torch.float64)
    parts = []
    for batches, objective, coef in ((rollouts, KINDS["policy_objective"][1], 1.0), (text, next_token, 0.3)):
        learner.forward_backward(batches, objective, coef=coef)
        parts.append(gradient(model))
        learner.optimizer.zero_grad()
    learner.forward_backward(rollouts, KINDS["policy_objective"][1])
    learner.forward_backward(text, next_token, coef=0.3)
    torch.testing.assert_close(gradient(model), parts[0] + parts[1], atol=1e-13, rtol=1e-10)


def test_a_batch_with_nothing_to_learn_is_an_error() -> None:
    learner = Learner(one_number(), PLAIN)
    for batches in ([], [Numbers(0.0, 0)], [Numbers(0.0, 0), Numbers(0.0, 0)]):
        with pytest.raises(TrainingError, match="nothing to train on"):
            learner.forward_backward(batches, times)
    assert learner.model.weight.grad is None


def test_masked_rows_and_an_all_masked_batch(make_model: Make) -> None:
    model = make_model(1)
    learner = Learner(model, PLAIN)
    full = text_batch([3, 2], torch.float32)
    masked = Batch(full[1].tokens, full[1].targets, torch.zeros_like(full[1].weights), full[1].segments)
    learner.forward_backward([full[0]], next_token)
    wanted = gradient(model)
    learner.optimizer.zero_grad()
    learner.forward_backward([masked, full[0], masked], next_token)
    assert torch.equal(gradient(model), wanted)
    with pytest.raises(TrainingError, match="tercet tokenizer show"):
        learner.forward_backward([masked, masked], next_token)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_not_finite_is_an_error(value: float) -> None:
    learner = Learner(one_number(), PLAIN)
    with pytest.raises(NonFiniteError, match="the loss is"):
        learner.forward_backward([Numbers(1.0, 1), Numbers(value, 1)], times)


@pytest.mark.parametrize(
    "values", [(float("nan"), 0.0), (0.0, float("nan")), (0.0, float("-inf")), (float("inf"), float("-inf"))]
)
def test_a_gradient_that_is_not_finite_changes_nothing(make_model: Make, values: tuple[float, float]) -> None:
    model = make_model(1)
    learner = Learner(model, OptimizerConfig(lr=0.01, muon_lr=0.01, weight_decay=0.1))
    learner.forward_backward(text_batch([2], torch.float32), next_token)
    learner.optim_step(1.0)
    before = {n: t.clone() for group in learner.state().values() for n, t in group.items()}

    learner.forward_backward(text_batch([2], torch.float32), next_token)
    weights = list(model.parameters())
    for parameter, value in zip((weights[0], weights[-1]), values):
        assert parameter.grad is not None
        parameter.grad.view(-1)[0] += value
    with pytest.raises(NonFiniteError, match="a gradient is"):
        learner.optim_step(1.0)
    assert learner.step == 1
    after = {n: t for group in learner.state().values() for n, t in group.items()}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_a_step_forgets_the_gradients() -> None:
    learner = Learner(one_number(), PLAIN)
    learner.forward_backward([Numbers(3.0, 1)], times)
    assert learner.optim_step(1.0) == pytest.approx(3.0)
    assert learner.step == 1
    learner.forward_backward([Numbers(5.0, 1)], times)
    assert gradient(learner.model).item() == pytest.approx(5.0)


def test_bfloat16_gradients_point_the_same_way(make_model: Make) -> None:
    model = make_model(1)
    Learner(model, PLAIN).forward_backward(text_batch([4], torch.float32), next_token)
    exact = gradient(model)
    model.zero_grad()
    Learner(model, PLAIN, "bfloat16").forward_backward(text_batch([4], torch.float32), next_token)
    rough = gradient(model)
    assert not torch.equal(exact, rough)
    assert float(F.cosine_similarity(exact, rough, dim=0)) > 0.995
    assert {p.dtype for p in model.parameters()} == {torch.float32}


# -- the linear cross-entropy -----------------------------------------------------------------------------------------


def problem(n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, 6, generator=g, dtype=torch.float64).requires_grad_()
    weight = torch.randn(11, 6, generator=g, dtype=torch.float64).requires_grad_()
    return hidden, weight, torch.randint(0, 11, (n,), generator=g), torch.rand(n, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 13])
def test_linear_cross_entropy_equals_torchs(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """Value and both gradients, where the rows are fewer than, equal to and more than one chunk."""
    monkeypatch.setattr(cross_entropy, "CHUNK", 4)
    hidden, weight, targets, weights = problem(n)
    loss = linear_cross_entropy(hidden, weight, targets, weights)
    got = torch.autograd.grad(2.5 * loss, (hidden, weight))
    wanted_loss = (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * weights).sum()
    wanted = torch.autograd.grad(2.5 * wanted_loss, (hidden, weight))
    torch.testing.assert_close(loss, wanted_loss, atol=1e-10, rtol=0)
    for a, b in zip(got, wanted):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=0)


def test_linear_cross_entropy_passes_gradcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK", 2)
    hidden, weight, targets, weights = problem(5)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets, weights), (hidden, weight))


def test_linear_cross_entropy_of_nothing_and_without_gradients() -> None:
    hidden, weight, targets, weights = problem(3)
    assert linear_cross_entropy(hidden[:0], weight, targets[:0], weights[:0]).item() == 0
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, targets, weights)
    wanted = (F.cross_entropy(hidden @ weight.T, targets, reduction="none") * weights).sum()
    assert loss.item() == pytest.approx(wanted.item())


def test_next_token_is_the_weighted_cross_entropy(make_model: Make) -> None:
    """Loss and gradient of every parameter (the tied matrix from both sides) against logits held at once."""
    model = make_model(1, torch.float64)
    (batch,) = text_batch([4], torch.float64)
    Learner(model, PLAIN).forward_backward([batch], next_token)
    got = gradient(model)
    model.zero_grad()
    logits = model(batch.tokens, batch.segments)
    nats = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
    weights = batch.weights.double().flatten()
    ((nats * weights).sum() / weights.sum()).backward()
    torch.testing.assert_close(got, gradient(model), atol=1e-10, rtol=0)


def test_mean_loss_is_over_all_targets(make_model: Make) -> None:
    """Not a mean over batches: whatever the batch size, and with a batch that has no target at all."""
    model = make_model(1, torch.float64)
    tokens = rng(5).integers(0, 300, (7, 13)).astype(np.int32)
    weights = (rng(6).random((7, 13)) < np.array([0.9, 0.9, 0, 0, 0.1, 0.5, 0.2])[:, None]).astype(np.float32)
    rows = PackedSequences(tokens, np.zeros_like(tokens), weights)
    total = count = 0.0
    for row in range(7):
        logp = model(torch.from_numpy(tokens[row : row + 1, :-1].astype(np.int64))).log_softmax(-1)[0].detach()
        for t in range(12):
            if weights[row, t + 1]:
                total -= float(logp[t, tokens[row, t + 1]])
                count += 1
    for size in (1, 2, 3, 7, 50):
        assert mean_loss(model, rows, size) == pytest.approx(total / count, abs=1e-10)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_token_logprobs_and_entropy(make_model: Make, monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    """They equal a plain softmax's, across chunk borders and within one chunk; only log π has gradients."""
    model = make_model(1, torch.float64)
    hidden, _, _, _ = problem(9)
    hidden = F.pad(hidden.detach(), (0, 26)).requires_grad_()
    targets = torch.arange(9) * 30
    p = (hidden @ model.output_weight.T / temperature).softmax(-1)
    wanted_logp = p[torch.arange(9), targets].log()
    wanted_entropy = torch.stack([-sum(q * q.log() for q in row) for row in p])
    mix = torch.linspace(-1, 1, 9, dtype=torch.float64)
    inputs = (hidden, model.output_weight)
    wanted = torch.autograd.grad((wanted_logp * mix).sum(), inputs, retain_graph=True)
    for size in (4, 1024):
        monkeypatch.setattr(cross_entropy, "CHUNK", size)
        logp, entropy = token_logprobs(model, hidden, targets, temperature)
        torch.testing.assert_close(logp, wanted_logp, atol=1e-10, rtol=0)
        torch.testing.assert_close(entropy, wanted_entropy, atol=1e-10, rtol=0)
        assert not entropy.requires_grad
        got = torch.autograd.grad((logp * mix).sum(), inputs)
        for a, b in zip(got, wanted):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=0)
    assert [len(x) for x in token_logprobs(model, hidden[:0], targets[:0])] == [0, 0]
