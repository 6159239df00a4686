"""Policy gradients, number by number: every formula against a naive loop, and PPO's gradient against enumeration."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tercet.data.readers import BadRows
from tercet.inference.generate import Completion, SamplingParams, generate
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.reward_model.train import normalise_rewards
from tercet.posttraining.rl.actor import Actor
from tercet.posttraining.rl.advantages import advantages_and_returns, place_rewards, whiten
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.ppo import PPO, value_objective
from tercet.posttraining.rl.rollouts import (
    Clock,
    Rollouts,
    action_logprobs,
    assemble,
    logprobs,
    scatter_actions,
    values,
)
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch
from tercet.training.run import Run

Make = Callable[..., Transformer]
F64 = torch.float64


def policy_objective(clip: float, temperature: float) -> PolicyObjective:
    return PolicyObjective(temperature, clip, clip)


def of(tokens: Tensor, mask: Tensor, **arrays: Any) -> Rollouts:
    """Rollouts of prompts of their own, from the arrays that matter."""
    n, dtype = len(tokens), arrays.pop("dtype", F64)
    zero = torch.zeros(mask.shape, dtype=dtype)
    defaults = {
        "behaviour": arrays.get("logp", zero),
        "version": torch.zeros(n),
        "group": torch.arange(n),
        "rewards": zero[:, 0],
    }
    return Rollouts(tokens, mask, **{**defaults, **arrays})


def fill_in(
    r: Rollouts, policy: Transformer, reference: Transformer, critic: ValueHeadModel, temperature: float
) -> Rollouts:
    found = {
        "logp": logprobs(policy, r, temperature),
        "ref_logp": logprobs(reference, r, temperature),
        "values": values(critic, r),
    }
    return dataclasses.replace(r, **found, behaviour=found["logp"])


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return found


# -- rewards and advantages -------------------------------------------------------------------------------------------


def naive_gae(rewards: Sequence[float], values: Sequence[float], discount: float, lam: float) -> list[float]:
    """A_i = Σ_k (γλ)^(k−i) δ_k over the actions alone (Schulman et al. 2016, equation 16)."""
    after = [*values[1:], 0.0]
    deltas = [r + discount * nxt - v for r, v, nxt in zip(rewards, values, after)]
    return [sum((discount * lam) ** (k - i) * deltas[k] for k in range(i, len(deltas))) for i in range(len(deltas))]


@given(
    masks=st.lists(st.lists(st.booleans(), min_size=9, max_size=9).filter(any), min_size=1, max_size=4),
    discount=st.sampled_from([0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.5, 0.95, 1.0]),
    seed=st.integers(0, 99),
)
def test_advantages_step_over_gaps(masks: list[list[bool]], discount: float, lam: float, seed: int) -> None:
    """What stands in the gaps and behind the end (garbage here) must not matter, and must come out as 0."""
    rng = np.random.default_rng(seed)
    rewards, values = (torch.from_numpy(rng.normal(size=(len(masks), 9))) for _ in range(2))
    advantages, returns = advantages_and_returns(rewards, values, torch.tensor(masks), discount, lam)
    for row, mask in enumerate(masks):
        at = [t for t in range(9) if mask[t]]
        wanted = naive_gae(rewards[row, at].tolist(), values[row, at].tolist(), discount, lam)
        assert advantages[row, at].tolist() == pytest.approx(wanted, abs=1e-10)
        assert returns[row, at].tolist() == pytest.approx(
            [a + float(values[row, t]) for a, t in zip(wanted, at)], abs=1e-10
        )
        rest = [t for t in range(9) if not mask[t]]
        assert not advantages[row, rest].any()
        assert not returns[row, rest].any()


def test_a_gap_before_the_reward_carries_it_forward() -> None:
    """Two actions with a gap of two tokens, γ 1, λ 0.9: δ = (0.3 − 0.5, 2 − 0.3), A₁ = −0.2 + 0.9 · 1.7."""
    mask = torch.tensor([[True, False, False, True, False]])
    rewards = torch.tensor([[0.0, 9.0, 9.0, 2.0, 9.0]], dtype=F64)
    values = torch.tensor([[0.5, 7.0, 7.0, 0.3, 7.0]], dtype=F64)
    advantages, returns = advantages_and_returns(rewards, values, mask, 1.0, 0.9)
    assert advantages[0].tolist() == pytest.approx([1.33, 0, 0, 1.7, 0])
    assert returns[0].tolist() == pytest.approx([1.83, 0, 0, 2.0, 0])


def test_the_score_sits_on_the_last_action() -> None:
    """Not on the padding, not on the last column, not on the first token; a KL of a token costs β where it is."""
    mask = torch.tensor(
        [[False, True, True, False, False], [True, False, True, True, False], [False, False, False, False, True]]
    )
    kl = torch.tensor([[9.0, 0.5, -0.2, 9.0, 9.0], [1.0, 9.0, 0.0, 0.3, 9.0], [9.0, 9.0, 9.0, 9.0, 2.0]], dtype=F64)
    before = kl.clone()
    rewards = place_rewards(torch.tensor([10.0, -20.0, 30.0], dtype=F64), kl, mask, beta=0.1)
    wanted = [[0, -0.05, 0.02 + 10, 0, 0], [-0.1, 0, 0, -0.03 - 20, 0], [0, 0, 0, 0, -0.2 + 30]]
    torch.testing.assert_close(rewards, torch.tensor(wanted, dtype=F64), atol=1e-12, rtol=0)
    assert torch.equal(kl, before)


@given(seed=st.integers(0, 99), share=st.floats(0.2, 1.0))
def test_whitening_is_over_the_actions_alone(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(rng.random((4, 6)) < share)
    mask[0, :2] = True
    values = torch.from_numpy(rng.normal(3, 2, (4, 6)))
    white = whiten(values, mask)
    assert not white[~mask].any()
    chosen = [float(v) for v, m in zip(values.flatten(), mask.flatten()) if m]
    mean = sum(chosen) / len(chosen)
    std = math.sqrt(sum((v - mean) ** 2 for v in chosen) / len(chosen))
    assert white[mask].tolist() == pytest.approx([(v - mean) / std for v in chosen], abs=1e-6)
    garbage = torch.where(mask, values, 1e6)
    torch.testing.assert_close(whiten(garbage, mask), white, atol=1e-9, rtol=0)
    assert not whiten(torch.full((1, 2), 5.0), torch.tensor([[True, True]])).any()  # nothing to tell apart, no NaN


def test_whitening_may_leave_the_mean() -> None:
    """By hand: 1, 3 and 5 have mean 3 and variance 8/3; what stands beside them does not count."""
    values, mask = torch.tensor([[1.0, 9.0, 3.0], [5.0, 7.0, 9.0]], dtype=F64), torch.tensor([[1, 0, 1], [1, 0, 0]]) > 0
    std = math.sqrt(8 / 3)
    white = whiten(values, mask, shift_mean=False)
    wanted = [[3 - 2 / std, 0, 3], [3 + 2 / std, 0, 0]]
    torch.testing.assert_close(white, torch.tensor(wanted, dtype=F64), atol=1e-7, rtol=0)


# -- rollouts ---------------------------------------------------------------------------------------------------------


def test_ids_stay_as_sampled_and_the_end_is_an_action() -> None:
    prompts = [[11, 12, 13], [21]]
    done = [Completion([14, 2], [-1.0, -1.0], "stop"), Completion([22, 23, 24, 2], [-1.0] * 4, "stop")]
    tokens, mask = assemble(prompts, done, pad=3)
    assert tokens.tolist() == [[11, 12, 13, 14, 2], [21, 22, 23, 24, 2]]
    assert mask.tolist() == [[False, False, True, True], [True] * 4]
    short, mask = assemble([[11], [21]], [Completion([2], [-1.0]), Completion([22, 2], [-1.0] * 2)], pad=3)
    assert short.tolist() == [[11, 2, 3], [21, 22, 2]]
    assert mask.tolist() == [[True, False], [True, True]]
    assert scatter_actions(torch.tensor([1.0, 2.0, 3.0]), mask).tolist() == [[1, 0], [2, 3]]


def sampled(make_model: Make, dtype: torch.dtype, temperature: float = 1.0, beta: float = 0.1) -> tuple[Any, ...]:
    """(policy, reference, critic, rollouts) of eight answers of different lengths."""
    policy, reference = make_model(1, dtype), make_model(1, dtype)
    with torch.no_grad():
        for p, noise_seed in zip(reference.parameters(), itertools.count()):
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(noise_seed), dtype=dtype)
    critic = ValueHeadModel(make_model(2, dtype), seed=3).to(dtype)
    prompts = [[7 * n + i for i in range(3 + n % 4)] for n in range(8)]
    params = SamplingParams(14, temperature, stop_ids=tuple(range(0, 300, 8)))
    done = generate(policy, prompts, params, range(8))
    tokens, mask = assemble(prompts, done, pad=3)
    r = fill_in(of(tokens, mask, rewards=torch.linspace(-1, 2, 8, dtype=dtype)), policy, reference, critic, temperature)
    rewards = place_rewards(r.rewards, r.kl(), mask, beta)
    advantages, returns = advantages_and_returns(rewards, r.values, mask, 1.0, 0.95)
    return policy, reference, critic, dataclasses.replace(r, advantages=advantages, returns=returns)


def test_every_answer_is_computed_as_if_alone(make_model: Make) -> None:
    """Naive: one answer at a time without padding, probabilities by softmax, one action at a time."""
    policy, reference, critic, r = sampled(make_model, F64, temperature=1.3)
    assert len(set(r.action_mask.sum(1).tolist())) > 3
    for row in range(8):
        end = int(r.action_mask[row].nonzero().max()) + 2
        text = r.tokens[row : row + 1, :end]
        found = {
            "logp": (policy(text)[0] / 1.3).softmax(-1).log(),
            "ref_logp": (reference(text)[0] / 1.3).softmax(-1).log(),
            "values": critic(text)[0],
        }
        for t in range(r.tokens.shape[1] - 1):
            for name, per_token in found.items():
                wanted = 0.0
                if r.action_mask[row, t]:
                    wanted = per_token[t].item() if name == "values" else per_token[t, text[0, t + 1]].item()
                assert getattr(r, name)[row, t].item() == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (F64, 1e-12)])
def test_the_ratio_of_the_first_step_is_one(make_model: Make, dtype: torch.dtype, tolerance: float) -> None:
    """So the loss is −Σ advantages, nothing is clipped, and how the rollouts are split does not matter."""
    policy, _, _, r = sampled(make_model, dtype, temperature=0.7)
    for batch in (r, r.rows(torch.tensor([5, 0, 3])), *r.split(3)):
        logp, _ = action_logprobs(policy, batch, 0.7)
        ratio = (logp - batch.logp[batch.action_mask]).exp()
        torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=tolerance, rtol=0)
        loss, metrics = policy_objective(0.2, 0.7)(policy, batch)
        assert loss.item() == pytest.approx(-batch.advantages.sum().item(), rel=10 * tolerance)
        assert metrics["clip_fraction"] == 0
        assert batch.count == batch.action_mask.sum()


def test_at_ratio_one_the_gradient_is_the_plain_policy_gradient(make_model: Make) -> None:
    policy, _, _, r = sampled(make_model, F64, temperature=1.3)
    policy_objective(0.2, 1.3)(policy, r)[0].backward()
    got = gradient(policy)
    naive = torch.zeros((), dtype=F64)
    for row, t in r.action_mask.nonzero().tolist():
        logp = (policy(r.tokens[row : row + 1, : t + 1])[0, -1] / 1.3).log_softmax(-1)
        naive = naive - r.advantages[row, t] * logp[r.tokens[row, t + 1]]
    naive.backward()
    wanted = gradient(policy)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-10


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "moves"),
    [
        (1.5, 2.0, -1.2 * 2, False),  # already 20 % likelier: no more
        (1.5, -2.0, 1.5 * 2, True),  # likelier, but bad: back
        (0.5, 2.0, -0.5 * 2, True),  # rarer, but good: back
        (0.5, -2.0, 0.8 * 2, False),
        (1.1, 2.0, -1.1 * 2, True),
        (0.9, -2.0, 0.9 * 2, True),
    ],
)
def test_clipping_by_hand(make_model: Make, ratio: float, advantage: float, loss: float, moves: bool) -> None:
    policy = make_model(1, F64)
    tokens, mask = torch.tensor([[5, 6, 7, 8, 3]]), torch.tensor([[False, True, False, False]])
    now = policy(tokens)[0, 1].log_softmax(-1)[7]
    filled = torch.zeros(1, 4, dtype=F64)
    filled[0, 1] = 1
    old = filled * (now.detach() - math.log(ratio))
    batch = of(tokens, mask, logp=old, advantages=filled * advantage)
    value, metrics = policy_objective(0.2, 1.0)(policy, batch)
    assert value.item() == pytest.approx(loss)
    assert metrics["clip_fraction"] == (abs(ratio - 1) > 0.2)
    value.backward()
    got = gradient(policy)
    (now * -ratio * advantage).backward()
    wanted = gradient(policy) * moves
    torch.testing.assert_close(got, wanted, atol=1e-10, rtol=0)


def test_entropy_and_losses_leave_padding_out(make_model: Make) -> None:
    """The entropy is a naive sum over the actions; other tokens behind the end change nothing at all."""
    policy, _, critic, r = sampled(make_model, F64)
    entropy = 0.0
    for row, t in r.action_mask.nonzero().tolist():
        p = policy(r.tokens[row : row + 1, : t + 1])[0, -1].softmax(-1).detach()
        entropy -= sum(x * math.log(x) for x in p.tolist())
    loss, metrics = policy_objective(0.2, 1.0)(policy, r)
    assert metrics["entropy"] == pytest.approx(entropy, rel=1e-10)
    loss.backward()
    wanted = gradient(policy)

    tokens = r.tokens.clone()
    arrays = {f: getattr(r, f).clone() for f in ("behaviour", "logp", "ref_logp", "values", "advantages", "returns")}
    for row in range(8):
        end = int(r.action_mask[row].nonzero().max()) + 2
        tokens[row, end:] = 17
    assert not torch.equal(tokens, r.tokens)
    for array in arrays.values():
        array[~r.action_mask] = 1e3
    other = dataclasses.replace(r, tokens=tokens, **arrays)
    other_loss, other_metrics = policy_objective(0.2, 1.0)(policy, other)
    assert other_metrics == pytest.approx(metrics, rel=1e-12)
    other_loss.backward()
    torch.testing.assert_close(gradient(policy), wanted, atol=1e-12, rtol=0)
    assert value_objective(critic, other)[1] == pytest.approx(value_objective(critic, r)[1], rel=1e-12)


def test_value_loss_is_half_the_squared_error(make_model: Make) -> None:
    _, _, critic, r = sampled(make_model, F64)
    loss, metrics = value_objective(critic, r)
    loss.backward()
    got = gradient(critic)
    naive = torch.zeros((), dtype=F64)
    for row, t in r.action_mask.nonzero().tolist():
        naive = naive + 0.5 * (critic(r.tokens[row : row + 1, : t + 1])[0, -1] - r.returns[row, t]) ** 2
    assert loss.item() == metrics["value_loss"] == pytest.approx(naive.item(), rel=1e-10)
    naive.backward()
    torch.testing.assert_close(got, gradient(critic), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("temperature", [1.0, 0.8])
@pytest.mark.parametrize("beta", [0.0, 0.4])
def test_the_expected_update_is_the_gradient_of_the_penalised_reward(
    make_model: Make, temperature: float, beta: float
) -> None:
    """∇ E[r − β log(π/π_ref)] over ALL 40 answers of at most 3 tokens, token 0 ending them.

    The expectation is taken of what PPO computes (rewards placed, advantages with λ 1 against a critic, clipped loss);
    on the other side stands autograd through the probabilities themselves. A wrong sign of the KL, a score on another
    token, an end left out of the answer or a temperature forgotten anywhere makes the two differ.
    """
    policy, reference = make_model(1, F64, vocab_size=4), make_model(2, F64, vocab_size=4)
    critic = ValueHeadModel(make_model(3, F64, vocab_size=4), seed=4).to(F64)
    prompt = [2, 1]
    answers = [
        a
        for n in (1, 2, 3)
        for a in itertools.product(range(4), repeat=n)
        if 0 not in a[:-1] and (n == 3 or a[-1] == 0)
    ]
    assert len(answers) == 40
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=F64)

    def sequence_logp(model: Transformer, answer: Sequence[int]) -> Tensor:
        logp = (model(torch.tensor([[*prompt, *answer]]))[0] / temperature).log_softmax(-1)
        return sum((logp[len(prompt) - 1 + i, a] for i, a in enumerate(answer)), torch.zeros((), dtype=F64))

    logps = torch.stack([sequence_logp(policy, a) for a in answers])
    refs = torch.stack([sequence_logp(reference, a) for a in answers]).detach()
    assert logps.exp().sum().item() == pytest.approx(1)
    (logps.exp() * (scores - beta * (logps - refs))).sum().backward()
    wanted = gradient(policy)

    tokens, mask = assemble([prompt] * 40, [Completion(list(a)) for a in answers], pad=3)
    r = fill_in(of(tokens, mask, rewards=scores), policy, reference, critic, temperature)
    torch.testing.assert_close(r.logp.sum(1), logps.detach(), atol=1e-10, rtol=0)
    rewards = place_rewards(scores, r.kl(), mask, beta)
    advantages, _ = advantages_and_returns(rewards, r.values, mask, 1.0, 1.0)
    r = dataclasses.replace(r, advantages=advantages * logps.detach().exp()[:, None])
    policy_objective(0.2, temperature)(policy, r)[0].backward()
    got = -gradient(policy)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-8


# -- a whole collection -----------------------------------------------------------------------------------------------


def test_a_collection_of_rollouts_by_naive_loops(make_model: Make, tokenizer: Tokenizer, tmp_path: Path) -> None:
    """PPO's own path from prompts to advantages: a missing end replaces the score, and nothing else does."""
    policy, critic = make_model(1), ValueHeadModel(make_model(2), seed=3)
    with torch.no_grad():
        policy.model.embed_tokens.weight[tokenizer.im_end] *= 4  # so that some answers end and some do not
    (tmp_path / "prompts.jsonl").write_text("".join(f'{{"prompt": "{w}"}}\n' for w in ("Hi", "What?", "Go on", "No")))
    common = {"model": "m", "data": ("d",)}
    runs = {}
    for verb, model, config in (("sft", policy, SFTConfig(**common)), ("reward", critic, RewardConfig(**common))):
        with Run.start(verb, config, tmp_path / verb) as run:
            tokenizer.save(run.path / "tokenizer.json")
            run.save_model_config(policy.config)
            run.save_checkpoint(1, {"model": model.state_dict()}, {}, 1)
            runs[verb] = run
    config = PPOConfig(
        model=str(tmp_path / "sft"),
        reward=(str(tmp_path / "reward"),),
        prompts=(str(tmp_path / "prompts.jsonl"),),
        gamma=0.0,
        batch_size=4,
        group_size=4,
        max_new_tokens=9,
        temperature=0.9,
        beta=0.3,
        missing_eos_score=-7.0,
        whiten_advantages=False,
        gae_lambda=0.9,
    )
    with Run.start("ppo", config, tmp_path / "ppo") as run:
        actor = Actor(config, runs["sft"], BadRows())
        trainer = PPO(config, actor.reference, critic)
        with torch.no_grad():  # the policy has moved away from its reference
            trainer.policy.model.model.embed_tokens.weight[9] += 0.3
        collected, metrics = actor.collect(trainer.policy.model, 0, 0, Clock())
        r, _ = trainer.credit(collected, config.beta)
        assert set(actor.collect(trainer.policy.model, 1, 0, Clock())[0].tokens[:, 0].tolist()) == {tokenizer.im_start}
    for g in range(4):  # each answer has random numbers of its own
        assert len({tuple(text) for text in r.tokens[r.group == g].tolist()}) > 1
    lengths = r.action_mask.sum(1)
    ended = 0
    total_kl = 0.0
    for row in range(16):
        at = r.action_mask[row].nonzero()[:, 0].tolist()
        assert at == list(range(at[0], at[-1] + 1))
        text = r.tokens[row, : at[-1] + 2]
        finished = int(text[-1]) == tokenizer.im_end
        ended += finished
        assert finished or len(at) == 9 or int(text[-1]) == tokenizer.endoftext
        with torch.no_grad():
            score = critic(text[None])[0, -1].item() if finished else -7.0
            now = (trainer.policy.model(text[None])[0] / 0.9).log_softmax(-1)
            ref = (actor.reference(text[None])[0] / 0.9).log_softmax(-1)
            estimates = critic(text[None])[0, at].tolist()
        kl = [float(now[t, text[t + 1]] - ref[t, text[t + 1]]) for t in at]
        total_kl += sum(kl)
        rewards = [-0.3 * x for x in kl]
        rewards[-1] += score
        assert r.rewards[row].item() == pytest.approx(score, abs=1e-5)
        assert r.advantages[row, at].tolist() == pytest.approx(naive_gae(rewards, estimates, 1.0, 0.9), abs=1e-4)
    assert 0 < ended < 16
    assert metrics["finished"] == pytest.approx(ended / 16)
    assert metrics["kl"] == pytest.approx(total_kl / 16, abs=1e-4)
    assert metrics["length"] == pytest.approx(float(lengths.float().mean()))
    assert metrics["reward"] == pytest.approx(float(r.rewards.mean()))


def test_a_critic_from_a_normalised_reward_model_still_learns(make_model: Make) -> None:
    """gain and bias are part of the critic's value: its loss falls to what the targets allow."""
    critic = ValueHeadModel(make_model(1), seed=2)
    normalise_rewards(critic, [0.7], [1.0, 5.0])
    _, _, _, r = sampled(make_model, torch.float32)
    learner = Learner(critic, OptimizerConfig(lr=0.01, muon_lr=0.0))
    losses = []
    for _ in range(12):
        losses.append(learner.forward_backward(list(r.split(3)), value_objective)["value_loss"])
        learner.optim_step(1.0)
    assert losses[-1] < 0.5 * losses[0]


# -- a whole update ---------------------------------------------------------------------------------------------------


class Text:
    """A data loader with one row of text, of which two thirds are trained on."""

    row = Batch(
        torch.tensor([[5, 9, 2, 40, 41, 7]]),
        torch.tensor([[9, 2, 40, 41, 7, 8]]),
        torch.tensor([[1.0, 1, 0, 1, 1, 0]]),
        None,
    )

    def batch(self, step: int) -> Batch:
        return self.row


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("critic", ["separate", "shared"])
def test_the_gradient_of_an_update_is_the_sum_of_its_parts(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, critic: str, epochs: int
) -> None:
    """Policy, pretraining term times γ and, with a shared critic, value loss times its weight, at temperature 0.7.

    The reference and the reward model do not change; a separate critic does. Rewards are whitened without their mean,
    and scores are clipped at ±1.2.
    """
    reference, reward_model = make_model(1, F64), ValueHeadModel(make_model(2, F64), seed=3).to(F64)
    before = [{n: t.clone() for n, t in m.state_dict().items()} for m in (reference, reward_model)]
    config = PPOConfig(
        model="-",
        reward=("-",),
        prompts=("-",),
        pretrain_data=("-",),
        temperature=0.7,
        gamma=0.6,
        beta=0.3,
        value_coef=0.4,
        critic=critic,
        epochs=epochs,
        warmup=0,
        clip_norm=0.0,
        whiten_rewards=True,
        clip_reward=1.2,
        gae_lambda=0.9,
    )
    trainer = PPO(config, reference, reward_model, Text())  # type: ignore[arg-type]
    trainer.policy.module.to(F64)
    policy, values_of = trainer.policy.model, copy.deepcopy(trainer.value_model)
    r = sampled(make_model, F64, temperature=0.7)[3]
    r = dataclasses.replace(
        r, behaviour=logprobs(policy, r, 0.7), logp=None, values=None, advantages=None, returns=None
    )
    got: list[Tensor] = []

    def step(scale: float) -> float:
        got.append(gradient(trainer.policy.module))
        return 0.0

    monkeypatch.setattr(trainer.policy.learner, "optim_step", step)
    metrics = trainer.update(0, r, config.beta)
    assert len(got) == epochs
    assert metrics["first_ratio"] == pytest.approx(1, abs=1e-12)
    assert metrics["first_sampler_gap"] == pytest.approx(0, abs=1e-12)
    for model, kept in zip((reference, reward_model), before):
        assert all(torch.equal(t, kept[n]) for n, t in model.state_dict().items())
    moved = [not torch.equal(t, kept) for t, kept in zip(trainer.value_model.parameters(), values_of.parameters())]
    assert any(moved) == (critic == "separate")  # a shared critic moves in `step`, which does nothing here

    at = [r.action_mask[row].nonzero()[:, 0].tolist() for row in range(8)]
    rewards, estimates = [], []
    for row, places in enumerate(at):
        rewards.append([-0.3 * float(r.behaviour[row, t] - r.ref_logp[row, t]) for t in places])
        rewards[-1][-1] += min(1.2, max(-1.2, float(r.rewards[row])))
        estimates.append(values_of(r.tokens[row : row + 1])[0, places].tolist())
    every = [x for found in rewards for x in found]
    scale = math.sqrt(np.var(every) + 1e-8)
    rewards = [[(x - np.mean(every)) / scale + np.mean(every) for x in found] for found in rewards]
    advantages = [naive_gae(x, v, 1.0, 0.9) for x, v in zip(rewards, estimates)]
    flat = [a for found in advantages for a in found]
    naive = torch.zeros((), dtype=F64)
    for row, places in enumerate(at):
        hidden = policy.hidden(r.tokens[row : row + 1])[0]
        logp = (hidden @ policy.output_weight.T / 0.7).log_softmax(-1)
        for i, t in enumerate(places):
            white = (advantages[row][i] - np.mean(flat)) / math.sqrt(np.var(flat) + 1e-8)
            naive = naive - white * logp[t, r.tokens[row, t + 1]] / len(flat)
            if critic == "shared":
                target = advantages[row][i] + estimates[row][i]
                naive = naive + 0.4 * 0.5 * (trainer.value_model.read(hidden[t]) - target) ** 2 / len(flat)
    logp = policy(Text.row.tokens)[0].log_softmax(-1)
    for t in (0, 1, 3, 4):
        naive = naive - 0.6 * logp[t, Text.row.targets[0, t]] / 4
    naive.backward()
    wanted = gradient(trainer.policy.module)
    assert float((got[0] - wanted).norm() / wanted.norm()) < 1e-6
