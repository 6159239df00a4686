"""Every loss that TRL has too, against TRL's own code: loss and gradient to 1e-10, in float64.

The TRL side is in `trl_oracles.py`; it pads on its own, one row per answer, where tercet shares prompts within a row.
So what agrees here is masks, shifts, signs, normalisers, clip bounds, standard deviations and the formulas. Where TRL
computes something else on purpose the test says so and compares what both can say.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

with warnings.catch_warnings():  # what TRL's imports warn of is not ours
    warnings.simplefilter("ignore")
    pytest.importorskip("trl", reason="TRL is not installed: pip install '.[proof]', or make proofs")
    import trl_oracles as trl

from tercet.inference.generate import Completion
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.preference import losses as preference_losses
from tercet.posttraining.preference.data import Labelled, labelled_batches, pair_batch
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.preference.train import kto_objective, pair_objective
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, ranking_loss
from tercet.posttraining.rl.group_methods import GroupMethod
from tercet.posttraining.rl.rollouts import Rollouts, assemble, logprobs
from tercet.posttraining.rl.stage import GRPOConfig
from tercet.training.shared_prompts import pack_groups

F64 = torch.float64
PAD = 0
CLOSE: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
SHAPE = ModelConfig(
    vocab_size=24, context_length=48, hidden_size=16, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=8,
    intermediate_size=24,
)  # fmt: skip
Pair = tuple[list[int], list[int], list[int]]


def make(seed: int, near: Transformer | None = None) -> Transformer:
    """A model far from uniform; with `near`, one whose answers' ratios to that one are spread around 1."""
    model, generator = Transformer(SHAPE), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(0.3 * noise if parameter.dim() == 2 else 1 + 0.3 * noise)
        model.double()
        if near is not None:
            for parameter, base in zip(model.parameters(), near.parameters()):
                parameter.copy_(base + 0.03 * parameter)
    return model


def ids(rng: random.Random, longest: int) -> list[int]:
    return [rng.randrange(1, SHAPE.vocab_size) for _ in range(rng.randint(1, longest))]


def pairs_of(seed: int, count: int = 7, prompt: int = 6, answer: int = 8) -> list[Pair]:
    rng = random.Random(seed)
    return [(ids(rng, prompt), ids(rng, answer), ids(rng, answer)) for _ in range(count)]


def gradient(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], allow_unused=True)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    return {n: torch.zeros(()) if g is None else g for n, g in zip(names, found)}


def assert_same(ours: Tensor, theirs: Tensor, model: nn.Module) -> None:
    """Loss, and gradient of every parameter; neither may be trivial."""
    torch.testing.assert_close(ours.double(), theirs, **CLOSE)
    mine, other = gradient(ours, model), gradient(theirs, model)
    assert max(float(g.abs().max()) for g in other.values()) > 1e-3
    for name in mine:
        torch.testing.assert_close(mine[name], other[name], msg=f"{name}: {mine[name] - other[name]}", **CLOSE)


# -- pairs -------------------------------------------------------------------------------------------------------------


def ranked(pair: Pair, score: float = 1.0) -> Ranked:
    prompt, chosen, rejected = pair
    return Ranked(tuple(prompt), (tuple(chosen), tuple(rejected)), (1, 1), (1, 2), (score, 0.0))


@torch.no_grad()
def answer_logprobs(
    model: Transformer, prompts: Sequence[list[int]], answers: Sequence[list[list[int]]]
) -> list[Tensor]:
    """log π of every prompt's answers."""
    return [pack_groups([prompt], [mine]).logprobs(model) for prompt, mine in zip(prompts, answers)]


def our_pairs(model: Transformer, reference: Transformer, pairs: Sequence[Pair], **settings: Any) -> Tensor:
    """The mean loss as the stage takes it: reference log-probabilities first, then the objective's sum by the count."""
    config = DPOConfig(model="-", data=("-",), **settings)
    found = answer_logprobs(reference, [p for p, _, _ in pairs], [[good, bad] for _, good, bad in pairs])
    batch = pair_batch([ranked(p) for p in pairs], found)
    return pair_objective(config)(model, batch)[0] / batch.count


@pytest.mark.parametrize("beta", [0.1, 1.7])
def test_dpo(beta: float) -> None:
    model, reference, pairs = make(1), make(2), pairs_of(3)
    theirs = trl.dpo(model, reference, pairs, PAD, loss="sigmoid", beta=beta)
    assert_same(our_pairs(model, reference, pairs, loss="dpo", beta=beta), theirs, model)


def test_dpo_with_label_smoothing() -> None:
    """TRL's "aot" is conservative DPO on sorted ratios: on one pair, which needs no sorting, it is the loss itself."""
    model, reference, pairs = make(1), make(2), pairs_of(4)
    each = [trl.dpo(model, reference, [p], PAD, loss="aot", beta=0.4, label_smoothing=0.15) for p in pairs]
    ours = our_pairs(model, reference, pairs, loss="dpo", beta=0.4, label_smoothing=0.15)
    assert_same(ours, torch.stack(each).mean(), model)


@pytest.mark.parametrize("length", [1, 5])
def test_ipo(length: int) -> None:
    """TRL divides each answer's log-ratio by its length n. Where all are of one n: (Δ/n − 1/2τ)² = (Δ − n/2τ)² / n²."""
    model, reference, tau = make(1), make(2), 0.3
    cut = [(p, (w * length)[:length], (r * length)[:length]) for p, w, r in pairs_of(5)]
    pairs = [pair for pair in cut if pair[1] != pair[2]]  # answers of one text are no pair here
    assert len(pairs) > 3
    theirs = trl.dpo(model, reference, pairs, PAD, loss="ipo", beta=tau)
    assert_same(our_pairs(model, reference, pairs, loss="ipo", beta=tau / length) / length**2, theirs, model)


def test_ipo_is_of_sums_where_lengths_differ() -> None:
    model, reference, pairs = make(1), make(2), pairs_of(5)
    theirs = trl.dpo(model, reference, pairs, PAD, loss="ipo", beta=0.3)
    ours = our_pairs(model, reference, pairs, loss="ipo", beta=0.3)
    assert float((ours - theirs).abs().detach()) > 0.1


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (0.5, 0.0)])
def test_simpo(beta: float, margin: float) -> None:
    model, pairs = make(1), pairs_of(6)
    theirs = trl.cpo(model, pairs, PAD, loss="simpo", beta=beta, gamma=margin)
    assert_same(our_pairs(model, make(2), pairs, loss="simpo", beta=beta, margin=margin), theirs, model)


def test_orpo() -> None:
    """TRL's likelihood is a mean over all tokens, prompts too: here prompts have one token and each pair is alone."""
    model, pairs = make(1), pairs_of(7, prompt=1)
    theirs = torch.stack([trl.orpo(model, [pair], PAD, beta=0.3) for pair in pairs]).mean()
    assert_same(our_pairs(model, make(2), pairs, loss="orpo", odds_weight=0.3), theirs, model)


def test_reward() -> None:
    model = ValueHeadModel(make(1).float(), seed=8).double()
    model.score.bias.requires_grad_(False)  # it cancels in every pair
    pairs = pairs_of(9)
    batch = collate([ranked(p) for p in pairs])
    assert_same(ranking_loss(model, batch)[0] / batch.count, trl.reward(model, pairs, PAD), model)
    scores = [0.3 * (i + 1) for i in range(len(pairs))]
    batch = collate([ranked(p, score) for p, score in zip(pairs, scores)], margin=0.5)
    theirs = trl.reward(model, pairs, PAD, margins=[0.5 * score for score in scores])
    assert_same(ranking_loss(model, batch)[0] / batch.count, theirs, model)


# -- single answers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("seed", "above"), [(10, True), (11, False)])
def test_kto(seed: int, above: bool) -> None:
    """With z0 above 0, and where TRL and we cut it off at 0; both from the same mismatched answers."""
    model, reference = make(1), make(2)
    rows = [(p, w, i % 3 != 1) for i, (p, w, _) in enumerate(pairs_of(seed, count=8))]
    others = [rows[-1][1], *[a for _, a, _ in rows[:-1]]]
    if not above:
        model, reference = reference, model
    now, before = (
        torch.cat(answer_logprobs(m, [p for p, _, _ in rows], [[o] for o in others])) for m in (model, reference)
    )
    while (float((now - before).mean()) > 0) != above:  # turn answers round until the estimate has the wanted sign
        model, reference = reference, model
        now, before = before, now
    z0 = preference_losses.kto_reference_point(now, before)
    assert (z0 > 0.05) == above
    settings: dict[str, Any] = {"beta": 0.2, "desirable_weight": 1.3, "undesirable_weight": 0.6}
    config = DPOConfig(model="-", data=("-",), loss="kto", **settings)
    found = answer_logprobs(reference, [p for p, _, _ in rows], [[a] for _, a, _ in rows])
    labelled = [Labelled(tuple(p), (tuple(a),), (1,), (1,), (), (good,)) for p, a, good in rows]
    (batch,) = labelled_batches(labelled, found, z0, len(rows))
    theirs = trl.kto(model, reference, rows, PAD, beta=0.2, desirable=1.3, undesirable=0.6, mismatched=others)
    assert_same(kto_objective(config)(model, batch)[0] / batch.count, theirs, model)


# -- groups of rollouts ------------------------------------------------------------------------------------------------

GROUP = 5  # TRL takes n / (n − 1) of the variance in float32: exact for 2, 3 and 5


def rollouts_of(seed: int, old: Transformer, temperature: float) -> tuple[list[tuple[list[int], list[int]]], Rollouts]:
    """(prompt, answer) for three groups, and the same as our rollouts, sampled by `old`."""
    rng = random.Random(seed)
    prompts = [p for _ in range(3) for p in [ids(rng, 6)] * GROUP]
    answers = [ids(rng, 7) for _ in prompts]
    tokens, mask = assemble(prompts, [Completion(a, [0.0] * len(a)) for a in answers], PAD)
    rewards = torch.tensor([rng.gauss(0, 1) for _ in prompts], dtype=F64)
    numbers = torch.arange(len(prompts)) // GROUP
    bare = Rollouts(tokens, mask, torch.zeros(mask.shape, dtype=F64), torch.zeros(len(prompts)), numbers, rewards)
    behaviour = logprobs(old, bare, temperature)
    return list(zip(prompts, answers)), replace(bare, behaviour=behaviour, logp=behaviour)


def our_group(model: Transformer, reference: Transformer, rollouts: Rollouts, **settings: Any) -> tuple[Tensor, Tensor]:
    """(mean loss, advantages of the answers) as an update takes them."""
    config = GRPOConfig(model="-", reward=("-",), prompts=("-",), group_size=GROUP, **settings)
    method = GroupMethod(config, reference)
    ready = method.prepare(rollouts, config.beta)
    assert ready.advantages is not None
    loss = method.objective(config.beta)(model, ready)[0] / ready.count
    return loss, ready.advantages.sum(1) / ready.lengths()


@pytest.mark.parametrize(
    ("method", "theirs", "clip"),
    [
        ("grpo", {"loss": "grpo"}, (0.2, 0.2)),
        ("dr_grpo", {"loss": "dr_grpo", "scale": "none", "longest": 9}, (0.2, 0.2)),
        ("dapo", {"loss": "dapo"}, (0.2, 0.28)),
        ("dapo", {"loss": "bnpo"}, (0.2, 0.28)),  # of one batch the same
        ("gspo", {"loss": "grpo", "level": "sequence"}, (0.04, 0.07)),
        ("cispo", {"loss": "cispo"}, (0.0, 0.3)),
    ],
    ids=lambda value: value if isinstance(value, str) else value.get("loss") if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_group_methods(method: str, theirs: dict[str, Any], clip: tuple[float, float], temperature: float) -> None:
    """TRL's KL term is left out (beta 0): it is k3 in the loss, which we reject. CISPO's bound: 1 + ε here, ε there."""
    old = make(1)
    model = make(12, near=old)
    told, rollouts = rollouts_of(13, old, temperature)
    low, high = clip
    ours, advantages = our_group(
        model, old, rollouts, method=method, beta=0.0, clip_low=low, clip_high=high, temperature=temperature,
        max_new_tokens=9,
    )  # fmt: skip
    bounds: dict[str, Any] = {"low": low, "high": 1 + high if method == "cispo" else high}
    wanted, given = trl.grpo(
        model, old, told, rollouts.rewards, PAD, group=GROUP, temperature=temperature, **bounds, **theirs
    )
    torch.testing.assert_close(advantages, given, **CLOSE)
    assert_same(ours, wanted, model)
    assert both_sides_are_clipped(model, rollouts, temperature, low, high)


def both_sides_are_clipped(model: Transformer, rollouts: Rollouts, temperature: float, low: float, high: float) -> bool:
    """Whether the case is worth having: ratios lie below, within and above the bounds."""
    ratios = (logprobs(model, rollouts, temperature) - rollouts.behaviour)[rollouts.action_mask].exp()
    inside = (ratios > 1 - low) & (ratios < 1 + high)
    return bool((ratios < 1 - low).any() and inside.any() | (low == 0) and (ratios > 1 + high).any())


def test_advantages_of_a_group_with_equal_scores_are_zero_in_both() -> None:
    old = make(1)
    told, rollouts = rollouts_of(14, old, 1.0)
    rollouts.rewards[:GROUP] = 0.5
    _, advantages = our_group(make(12, near=old), old, rollouts, method="grpo", beta=0.0)
    _, given = trl.grpo(old, old, told, rollouts.rewards, PAD, group=GROUP, loss="grpo")
    torch.testing.assert_close(advantages, given, **CLOSE)
    assert (advantages[:GROUP] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_rloo(beta: float, temperature: float) -> None:
    """The KL in the reward (k1), one ratio per answer, clipped."""
    old, reference = make(1), make(2)
    model = make(15, near=old)
    told, rollouts = rollouts_of(16, old, temperature)
    rollouts = replace(rollouts, ref_logp=logprobs(reference, rollouts, temperature))
    ours, advantages = our_group(model, reference, rollouts, method="rloo", beta=beta, temperature=temperature)
    wanted, given = trl.rloo(
        model, old, reference, told, rollouts.rewards, PAD, group=GROUP, beta=beta, temperature=temperature
    )
    torch.testing.assert_close(advantages, given, **CLOSE)
    assert_same(ours, wanted, model)


# -- the proof itself --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        lambda p, w, r: (p, w, [*r, 5]),  # an answer that is one token longer
        lambda p, w, r: ([*p, w[0]], w[1:] or [3], r),  # the mask begins one token late
        lambda p, w, r: (p, r, w),  # the wrong one preferred
    ],
)
def test_a_fault_would_be_seen(fault: Callable[..., Pair]) -> None:
    model, reference, pairs = make(1), make(2), pairs_of(3)
    ours = our_pairs(model, reference, [fault(*pairs[0]), *pairs[1:]], loss="dpo")
    theirs = trl.dpo(model, reference, pairs, PAD, loss="sigmoid", beta=0.1)
    with pytest.raises(AssertionError):
        assert_same(ours, theirs, model)
