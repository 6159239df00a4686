"""The group methods: each method's loss and gradient against its paper's formula in plain loops."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tercet.errors import ConfigError
from tercet.inference.generate import Completion
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.actor import join, rows_of_varied_groups
from tercet.posttraining.rl.group_methods import GroupMethod, best_of_group
from tercet.posttraining.rl.policy import Policy, truncated
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.rollouts import Rollouts, assemble, logprobs, pack_rollouts
from tercet.posttraining.rl.stage import METHODS, GRPOConfig, PPOConfig
from tercet.posttraining.rl.train import adapted_beta
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig

Make = Callable[..., Transformer]
F64 = torch.float64
K, LIMIT = 4, 9
REQUIRED: dict[str, Any] = {"model": "-", "reward": ("-",), "prompts": ("-",)}


def config(method: str = "grpo", **changes: Any) -> GRPOConfig:
    return GRPOConfig(
        **{**REQUIRED, "method": method, "group_size": K, "max_new_tokens": LIMIT, "lora_rank": 0, **changes}
    )


def rollouts(seed: int = 0) -> Rollouts:
    """Three prompts with four answers each, of 1 to 9 tokens; π_old, behaviour and reference are near one another."""
    g = torch.Generator().manual_seed(seed)
    prompts = [[7 * n + i for i in range(2 + n)] for n in range(3) for _ in range(K)]
    lengths = [1 + (5 * i + 3) % LIMIT for i in range(12)]
    done = [Completion(torch.randint(0, 300, (n,), generator=g).tolist()) for n in lengths]
    tokens, mask = assemble(prompts, done, pad=3)

    def noise(scale: float) -> Tensor:
        return (torch.randn(mask.shape, generator=g, dtype=F64) * scale - 6) * mask

    old = noise(0.4)
    return Rollouts(
        tokens,
        mask,
        behaviour=old,
        version=torch.zeros(12),
        group=torch.arange(3).repeat_interleave(K),
        rewards=torch.randn(12, generator=g, dtype=F64),
        ref_logp=noise(0.4),
        logp=old,
    )


def near(model: Transformer, r: Rollouts, seed: int = 5) -> Rollouts:
    """π_old so near to the model that some ratios are cut and some are not."""
    g = torch.Generator().manual_seed(seed)
    shift = 0.25 * torch.randn(r.action_mask.shape, generator=g, dtype=F64) * r.action_mask
    return dataclasses.replace(r, logp=logprobs(model, r, 1.0) + shift)


def answers_logp(model: Transformer, r: Rollouts) -> list[list[Tensor]]:
    """log π of every action, one answer at a time, one token at a time."""
    out = []
    for row in range(len(r.tokens)):
        at = r.action_mask[row].nonzero()[:, 0].tolist()
        text = r.tokens[row : row + 1, : at[-1] + 2]
        logits = model(text)[0]
        out.append([logits[t].log_softmax(-1)[text[0, t + 1]] for t in at])
    return out


def values(array: Tensor | None, r: Rollouts) -> list[list[float]]:
    assert array is not None
    return [array[row, r.action_mask[row]].tolist() for row in range(len(r.tokens))]


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return found


def cut(ratio: Tensor, advantage: float, low: float, high: float) -> Tensor:
    """min(ρ A, clip(ρ) A), by cases."""
    if advantage >= 0:
        return ratio * advantage if ratio.item() <= 1 + high else torch.tensor((1 + high) * advantage, dtype=F64)
    return ratio * advantage if ratio.item() >= 1 - low else torch.tensor((1 - low) * advantage, dtype=F64)


def naive(method: str, model: Transformer, r: Rollouts, beta: float) -> Tensor:
    """The papers' objectives as losses, over answers i with tokens t."""
    logp, old, ref = answers_logp(model, r), values(r.logp, r), values(r.ref_logp, r)
    n, zero = len(logp), torch.zeros((), dtype=F64)
    total = [float(r.rewards[i]) - beta * sum(b - f for b, f in zip(old[i], ref[i])) for i in range(n)]
    group = [[total[j] for j in range(n) if j // K == i // K] for i in range(n)]
    mean, std = [statistics.mean(g) for g in group], [statistics.stdev(g) for g in group]
    ratio = [[(x - o).exp() for x, o in zip(a, b)] for a, b in zip(logp, old)]
    tokens = sum(map(len, logp))
    normalised = [(total[i] - mean[i]) / (std[i] + 1e-4) for i in range(n)]
    if method == "grpo":  # Shao et al. 2024, equation 3
        return (
            -sum(
                (sum((cut(p, normalised[i], 0.2, 0.2) for p in ratio[i]), zero) / len(ratio[i]) for i in range(n)), zero
            )
            / n
        )
    if method == "dr_grpo":  # Liu et al. 2025, equation 4 (right): no std, no length
        return -sum((cut(p, total[i] - mean[i], 0.2, 0.2) for i in range(n) for p in ratio[i]), zero) / (n * LIMIT)
    if method == "dapo":  # Yu et al. 2025, equation 8
        return -sum((cut(p, normalised[i], 0.2, 0.28) for i in range(n) for p in ratio[i]), zero) / tokens
    if method == "gspo":  # Zheng et al. 2025, equations 5 and 7
        whole = [sum((x - o for x, o in zip(a, b)), zero) / len(a) for a, b in zip(logp, old)]
        return -sum((cut(w.exp(), normalised[i], 0.1, 0.05) for i, w in enumerate(whole)), zero) / n
    if method == "cispo":  # MiniMax 2025, equations 4 and 5
        return (
            -sum((min(p.item(), 5.0) * normalised[i] * x for i in range(n) for p, x in zip(ratio[i], logp[i])), zero)
            / tokens
        )
    if method == "rloo":  # Ahmadian et al. 2024, equation 8, with the ratio of whole answers
        others = [(sum(group[i]) - total[i]) / (K - 1) for i in range(n)]
        whole = [sum((x - o for x, o in zip(a, b)), zero).exp() for a, b in zip(logp, old)]
        return -sum((cut(w, total[i] - others[i], 0.2, 0.2) for i, w in enumerate(whole)), zero) / n
    if method == "reinforce++":  # Hu 2025
        to_go = []
        for i in range(n):
            rewards = [-beta * (b - f) for b, f in zip(old[i], ref[i])]
            rewards[-1] += float(r.rewards[i])
            to_go.append([sum(rewards[t:]) for t in range(len(rewards))])
        every = [x for a in to_go for x in a]
        m, s = statistics.mean(every), statistics.pstdev(every)
        terms = (
            cut(p, (x - m) / math.sqrt(s * s + 1e-8), 0.2, 0.2) for i in range(n) for p, x in zip(ratio[i], to_go[i])
        )
        return -sum(terms, zero) / tokens
    if method == "expert_iteration":
        best = [i for i in range(n) if total[i] == max(group[i])]
        return -sum((x for i in best for x in logp[i]), zero) / sum(len(logp[i]) for i in best)
    assert method == "online_dpo"  # Guo et al. 2024
    loss = zero
    for g in range(n // K):
        rows = range(g * K, g * K + K)
        best, worst = max(rows, key=lambda i: float(r.rewards[i])), min(rows, key=lambda i: float(r.rewards[i]))
        margin = [sum((x - f for x, f in zip(logp[i], ref[i])), zero) for i in (best, worst)]
        loss = loss - torch.log(1 / (1 + torch.exp(-0.1 * (margin[0] - margin[1]))))
    return loss / (n // K)


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("method", METHODS)
def test_loss_and_gradient_are_the_papers(make_model: Make, method: str, beta: float) -> None:
    model = make_model(1, F64)
    r = near(model, rollouts())
    wide = {"clip_low": 0.1, "clip_high": 0.05} if method == "gspo" else {}  # its own would cut every ratio here
    trainer = GroupMethod(config(method, **wide), model)
    prepared = trainer.prepare(r, beta)
    loss, metrics = trainer.objective(beta)(model, prepared)
    loss = loss / prepared.count
    loss.backward()
    got = gradient(model)
    wanted = naive(method, model, r, beta)
    wanted.backward()
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-10)
    assert metrics["actions"] == r.action_mask.sum()
    torch.testing.assert_close(got, gradient(model), atol=1e-10, rtol=1e-9)
    assert got.abs().max() > 1e-3
    if "clip_fraction" in metrics and method != "cispo":
        assert 0 < metrics["clip_fraction"] / metrics["actions"] < 1


@pytest.mark.parametrize("method", METHODS)
def test_splitting_the_rollouts_does_not_change_the_step(make_model: Make, method: str) -> None:
    model = make_model(1, F64)
    trainer = GroupMethod(config(method), model)
    r = trainer.prepare(near(model, rollouts()), 0.3)
    learner = Learner(model, OptimizerConfig(lr=0.0, muon_lr=0.0))
    found = []
    sizes = (12, K) if method == "online_dpo" else (12, 5, 1)
    for size in sizes:
        logged = learner.forward_backward(list(r.split(size)), trainer.objective(0.3))
        found.append((gradient(model), logged))
    for grads, logged in found[1:]:
        torch.testing.assert_close(grads, found[0][0], atol=1e-12, rtol=1e-10)
        names = (
            ["policy_loss"] if method == "expert_iteration" else list(logged)
        )  # batches without a best answer are left out
        assert [logged[n] for n in names] == pytest.approx([found[0][1][n] for n in names], rel=1e-9)


@pytest.mark.parametrize("kl", ["k2_loss", "exact_loss"])
def test_a_kl_inside_the_loss(make_model: Make, kl: str) -> None:
    """½ (log π − log π_ref)² or the sum over the vocabulary at each action, with the method's weights of tokens."""
    model, reference = make_model(1, F64), make_model(2, F64)
    r = near(model, rollouts())
    r = dataclasses.replace(r, ref_logp=logprobs(reference, r, 1.0))
    trainer = GroupMethod(config(kl=kl), reference)
    prepared = trainer.prepare(r, 0.3)
    loss = trainer.objective(0.3)(model, prepared)[0] / prepared.count
    loss.backward()
    got = gradient(model)
    wanted = naive("grpo", model, r, 0.0)  # the KL is not in the reward then
    penalty = torch.zeros((), dtype=F64)
    for row in range(12):
        at = r.action_mask[row].nonzero()[:, 0].tolist()
        text = r.tokens[row : row + 1, : at[-1] + 2]
        p, q = model(text)[0].log_softmax(-1), reference(text)[0].log_softmax(-1).detach()
        for t in at:
            exact = sum((x.exp() * (x - y) for x, y in zip(p[t], q[t])), torch.zeros((), dtype=F64))
            action = text[0, t + 1]
            penalty = (
                penalty + (exact if kl == "exact_loss" else 0.5 * (p[t, action] - q[t, action]) ** 2) / len(at) / 12
            )
    (wanted + 0.3 * penalty).backward()
    assert loss.item() == pytest.approx((wanted + 0.3 * penalty).item(), abs=1e-10)
    torch.testing.assert_close(got, gradient(model), atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize(("method", "factor"), [("rloo", 1.0), ("dr_grpo", 0.5 / 3)])
def test_the_expected_update_is_the_gradient_of_the_penalised_reward(
    make_model: Make, method: str, factor: float
) -> None:
    """Over ALL 1600 groups of two of the 40 answers; for Dr. GRPO it is (K − 1) / K of it, by its limit."""
    policy, reference = make_model(1, F64, vocab_size=4), make_model(2, F64, vocab_size=4)
    prompt, beta = [2, 1], 0.4
    answers = [
        list(a)
        for n in (1, 2, 3)
        for a in itertools.product(range(4), repeat=n)
        if 0 not in a[:-1] and (n == 3 or a[-1] == 0)
    ]
    scores = torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=F64)

    def whole(model: Transformer) -> Tensor:
        logits = [model(torch.tensor([prompt + a]))[0].log_softmax(-1) for a in answers]
        return torch.stack(
            [sum((lg[1 + i, t] for i, t in enumerate(a)), torch.zeros((), dtype=F64)) for lg, a in zip(logits, answers)]
        )

    logp, ref = whole(policy), whole(reference).detach()
    (logp.exp() * (scores - beta * (logp - ref))).sum().backward()
    wanted = gradient(policy)
    p = logp.detach().exp()
    pairs = torch.tensor(list(itertools.product(range(40), repeat=2))).flatten()
    tokens, mask = assemble([prompt] * 40, [Completion(a) for a in answers], pad=3)
    alone = Rollouts(tokens, mask, torch.zeros(mask.shape, dtype=F64), torch.zeros(40), torch.arange(40), scores)
    mine, theirs = logprobs(policy, alone, 1.0), logprobs(reference, alone, 1.0)
    groups = torch.arange(1600).repeat_interleave(2)
    r = Rollouts(tokens[pairs], mask[pairs], mine[pairs], torch.zeros(3200), groups, scores[pairs], theirs[pairs])
    trainer = GroupMethod(config(method, group_size=2, max_new_tokens=3), reference)
    prepared = trainer.prepare(r, beta)
    assert prepared.advantages is not None
    assert prepared.shares is not None
    chance = (p[pairs].view(1600, 2).prod(1)).repeat_interleave(2)
    prepared = dataclasses.replace(prepared, advantages=prepared.advantages * chance[:, None], group=torch.arange(3200))
    (trainer.objective(beta)(policy, prepared)[0] / float(prepared.shares[0])).backward()
    got = -gradient(policy) / 2  # two answers a group
    assert float((got - factor * wanted).norm() / (factor * wanted).norm()) < 1e-8


# -- around the methods -----------------------------------------------------------------------------------------------


def test_answers_of_a_group_share_their_prompt(make_model: Make) -> None:
    """Packed, and one at a time: the same, gaps in the mask (tokens that the policy did not choose) included."""
    model = make_model(1, F64)
    r = rollouts()
    mask = r.action_mask.clone()
    mask[3, int(mask[3].nonzero()[0]) + 1] = False
    r = dataclasses.replace(r, action_mask=mask)
    assert pack_rollouts(r).tokens.shape == (1, 2 + 3 + 4 + int(rollouts().action_mask.sum()))
    found = logprobs(model, r, 1.3)
    assert not found[~mask].any()
    for row, t in mask.nonzero().tolist():
        logits = model(r.tokens[row : row + 1, : t + 1])[0, -1] / 1.3
        assert found[row, t].item() == pytest.approx(logits.log_softmax(-1)[r.tokens[row, t + 1]].item(), abs=1e-10)


def test_stale_rollouts_count_by_the_cut_ratio() -> None:
    r = rollouts()
    assert r.logp is not None
    r = dataclasses.replace(r, behaviour=r.logp - 0.5 * r.action_mask)
    weighted = truncated(r, 1.2).weights
    assert weighted is not None
    torch.testing.assert_close(weighted, 1.2 * r.action_mask.to(F64))
    r = dataclasses.replace(r, behaviour=r.logp + 0.5 * r.action_mask, weights=0.5 * r.action_mask.to(F64))
    weighted = truncated(r, 1.2).weights
    torch.testing.assert_close(weighted, 0.5 * math.exp(-0.5) * r.action_mask.to(F64))


def test_old_probabilities_are_taken_only_where_they_can_differ(make_model: Make) -> None:
    r = dataclasses.replace(rollouts(), logp=None)
    once = Policy(config(), make_model(1))
    assert once.with_old(r).logp is None
    twice = Policy(config(epochs=2), make_model(1))
    assert twice.with_old(r).logp is not None
    assert twice.with_old(r).weights is None
    once.updates = 1  # the sampler's weights are one update old
    assert once.with_old(r).logp is not None


def test_stale_rollouts_pay_for_the_policy_that_is_updated(make_model: Make) -> None:
    """The penalty is of π_old, not of the sampler, and every token counts by π_old / π_sampler, cut at 2."""
    model = make_model(1, F64)
    method = GroupMethod(config("dr_grpo", beta=0.5, lr=1e-30, clip_low=9.0, clip_high=9.0), model)
    r = dataclasses.replace(rollouts(), logp=None)
    method.policy.updates = 1
    old = logprobs(model, r, 1.0)
    seen: list[Rollouts] = []
    original = method.policy.learner.forward_backward
    method.policy.learner.forward_backward = lambda batches, loss: seen.extend(batches) or original(batches, loss)  # type: ignore[method-assign]
    method.update(0, r, 0.5)
    order = [int(b.group[i]) * K + i % K for b in seen for i in range(len(b.tokens))]
    assert sorted({g // K for g in order}) == [0, 1, 2]
    assert r.ref_logp is not None
    total = r.rewards - 0.5 * ((old - r.ref_logp) * r.action_mask).sum(1)
    advantage = (total.view(3, K) - total.view(3, K).mean(1, keepdim=True)).flatten()
    weight = (old - r.behaviour).exp().clamp(max=2.0)
    at = 0
    for batch in seen:
        for i in range(len(batch.tokens)):
            row = int(batch.group[i]) * K + at % K
            mask = r.action_mask[row]
            assert batch.advantages is not None
            assert batch.weights is not None
            torch.testing.assert_close(
                batch.advantages[i, mask], advantage[row].expand(int(mask.sum())), atol=1e-10, rtol=0
            )
            torch.testing.assert_close(batch.weights[i, mask], weight[row, mask], atol=1e-10, rtol=0)
            at += 1
    assert at == 12


def test_the_first_ratio_is_exactly_one(make_model: Make) -> None:
    model = make_model(1)
    r = rollouts()
    sampled = dataclasses.replace(r, logp=None, behaviour=logprobs(model, r, 1.0).double())
    prepared = GroupMethod(config(), model).prepare(sampled, 0.0)
    _, metrics = PolicyObjective(1.0, 0.2, 0.2)(model, prepared)
    assert metrics["ratio"] == pytest.approx(metrics["actions"], rel=1e-6)
    other = PolicyObjective(1.3, 0.2, 0.2)(model, prepared)[1]
    assert abs(other["ratio"] / other["actions"] - 1) > 1e-3  # another temperature is seen
    assert metrics["clip_fraction"] == 0


def test_minibatches_keep_groups_together_and_see_everything_once(make_model: Make) -> None:
    policy = Policy(config(batch_size=3, minibatches=3, epochs=2, micro_batch=2), make_model(1))
    seen = []
    for batches in policy.minibatches(0, rollouts()):
        assert [len(b.tokens) for b in batches] == [2, 2]
        assert len({int(g) for b in batches for g in b.group}) == 1
        seen.append(int(batches[0].group[0]))
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_ema_weights(make_model: Make) -> None:
    reference = make_model(1)
    policy = Policy(config(ema=0.75), reference)
    start = {n: p.clone() for n, p in policy.model.state_dict().items()}
    for p in policy.model.parameters():
        p.grad = torch.ones_like(p)
    policy.step(0, {}, {})
    now, kept = policy.model.state_dict(), policy.state()["model"]
    for name, value in kept.items():
        torch.testing.assert_close(value, 0.75 * start[name] + 0.25 * now[name])
    assert any(not torch.equal(kept[n], now[n]) for n in now)
    assert all(torch.equal(t, start[n]) for n, t in reference.state_dict().items())  # it stays what it was
    assert torch.equal(policy.ema_model().output_weight, kept["model.embed_tokens.weight"])


def test_beta_follows_the_kl() -> None:
    """Ziegler et al. 2019: the error is clipped to ±0.2; without a target nothing moves."""
    c = PPOConfig(**REQUIRED, gamma=0.0, beta=0.1, target_kl=6.0, kl_horizon=1_000)
    assert adapted_beta(0.1, 6.6, c, 100) == pytest.approx(0.1 * (1 + 0.1 * 0.1))
    assert adapted_beta(0.1, 60.0, c, 100) == pytest.approx(0.1 * (1 + 0.2 * 0.1))
    assert adapted_beta(0.1, 0.0, c, 100) == pytest.approx(0.1 * (1 - 0.2 * 0.1))
    assert adapted_beta(0.1, 60.0, dataclasses.replace(c, target_kl=0.0), 100) == 0.1
    short = dataclasses.replace(c, kl_horizon=10)  # of fewer answers than a step has
    assert adapted_beta(0.1, 60.0, short, 1_000) == pytest.approx(0.12)
    assert adapted_beta(0.1, 0.0, short, 1_000) == pytest.approx(0.08)


def test_equal_answers_are_not_imitated(make_model: Make) -> None:
    """Scores tie and the penalty differs by rounding, or by more: nothing is the best of its group."""
    r = dataclasses.replace(rollouts(), rewards=torch.tensor([0.5] * 8 + [0.0, 1.0, 1.0, 0.0], dtype=F64))
    chosen = best_of_group(r, 0.05).advantages
    assert chosen is not None
    assert chosen[:8].abs().sum() == 0
    total = r.rewards - 0.05 * r.kl().sum(1)
    assert (chosen[8:] != 0).any(1).tolist() == [i == int(total[8:].argmax()) for i in range(4)]
    model = make_model(1, F64)
    before = {n: p.clone() for n, p in model.named_parameters()}
    method = GroupMethod(config("expert_iteration", beta=0.05), model)
    logged = method.update(0, dataclasses.replace(r, rewards=torch.full((12,), 0.5, dtype=F64)), 0.05)
    assert "grad_norm" not in logged
    assert all(torch.equal(p, before[n]) for n, p in method.policy.model.named_parameters())


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("grpo", {"dpo_beta": 9.0}),
        ("grpo", {"resample": 7}),
        ("online_dpo", {"clip_high": 5.0}),
        ("online_dpo", {"target_kl": 3.0}),
        ("online_dpo", {"beta": 4.0}),
        ("expert_iteration", {"clip_low": 5.0}),
        ("cispo", {"clip_low": 0.1}),
        ("online_dpo", {"dpo_beta": 0.0}),
    ],
)
def test_a_setting_that_would_do_nothing_is_refused(method: str, changes: dict[str, float]) -> None:
    option = "--" + next(iter(changes)).replace("_", "-")
    with pytest.raises(ConfigError, match=f"^{option} is "):
        config(method, **changes)


def test_groups_that_teach_nothing_are_left_out_and_others_joined() -> None:
    r = rollouts()
    r.rewards[K : 2 * K] = 0.5
    kept = r.rows(rows_of_varied_groups(r, K))
    assert kept.group.unique().tolist() == [0, 2]
    wide = rollouts(1)
    arrays = {n: nn.functional.pad(getattr(wide, n), (0, 2)) for n in ("action_mask", "behaviour", "ref_logp", "logp")}
    wide = dataclasses.replace(wide, tokens=nn.functional.pad(wide.tokens, (0, 2), value=3), **arrays)
    both = join([kept, wide], pad=3)
    assert both.tokens.shape == (20, wide.tokens.shape[1])
    assert both.count == kept.count + wide.count
    assert len(both.group.unique()) == 5
    assert (both.group.view(-1, K) == both.group.view(-1, K)[:, :1]).all()


@pytest.mark.parametrize("kl", ["k3_reward", "k1_loss", "k3_loss", "max0_reward"])
def test_wrong_kl_estimators_are_refused_with_the_reason(kl: str) -> None:
    with pytest.raises(ConfigError, match=f"--kl is {kl!r}, but .*; wanted one of reward, k2_loss, exact_loss"):
        config(kl=kl)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 1}, "at least 2"),
        ({"kl": "k4"}, "wanted one of reward"),
        ({"ema": 1.0}, "below 1"),
        ({"target_kl": 3.0, "beta": 0.0}, "beta above 0"),
        ({"method": "online_dpo", "kl": "k2_loss"}, "no policy loss"),
        ({"method": "online_dpo", "beta": 0.0, "log_kl": False}, "--no-log-kl"),
        ({"method": "online_dpo", "micro_batch": 6}, "multiple of --group-size"),
        ({"method": "grpoo"}, "did you mean 'grpo'"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GRPOConfig(**{**REQUIRED, **changes})
