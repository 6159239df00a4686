"""Preference learning without RL: every loss against naive loops, whole runs, and what they warn of."""

from __future__ import annotations

import dataclasses
import gc
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tercet
from helpers import At, World, assert_same_run, press_ctrl_c, tensors, write_rows, write_world
from tercet.data.types import Comparison, Message
from tercet.errors import ConfigError, DataError
from tercet.model.transformer import Transformer
from tercet.posttraining.preference import data as preference_data
from tercet.posttraining.preference import losses
from tercet.posttraining.preference.data import (
    Labelled,
    answer_logprobs,
    encode_labelled,
    labelled_batches,
    mismatched,
    pair_batch,
)
from tercet.posttraining.preference.stage import LOSSES, DPOConfig
from tercet.posttraining.preference.train import chosen_fall, kto_objective, pair_objective
from tercet.posttraining.reward_model.rankings import Ranked, encode_comparison
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig
from tercet.training.run import Interrupted, Run

Make = Callable[..., Transformer]
F64 = torch.float64
SETTINGS: dict[str, dict[str, float]] = {
    "dpo": {"beta": 0.3, "label_smoothing": 0.2},
    "ipo": {"beta": 0.4},
    "simpo": {"beta": 2.5, "margin": 0.7},
    "orpo": {"odds_weight": 0.6},
    "kto": {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
}
PAIRED = tuple(loss for loss in LOSSES if loss != "kto")


def settings(loss: str, **values: Any) -> DPOConfig:
    return DPOConfig(model="m", data=("d",), loss=loss, **values)


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return found


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def cost(x: Tensor) -> Tensor:
    """−log σ(x)."""
    return (1 + (-x).exp()).log()


# -- the formulas, by hand --------------------------------------------------------------------------------------------


def naive_pair(loss: str, w: Tensor, l: Tensor, ref: tuple[float, float], n: tuple[int, int]) -> Tensor:  # noqa: E741
    """The loss of one pair: log π of the better and the worse answer, the reference's, their lengths."""
    s = SETTINGS[loss]
    delta = (w - ref[0]) - (l - ref[1])
    if loss == "dpo":
        return 0.8 * cost(s["beta"] * delta) + 0.2 * cost(-s["beta"] * delta)
    if loss == "ipo":
        return (delta - 1 / (2 * s["beta"])) ** 2
    if loss == "simpo":
        return cost(s["beta"] * w / n[0] - s["beta"] * l / n[1] - s["margin"])
    p, q = (w / n[0]).exp(), (l / n[1]).exp()
    return -w / n[0] + s["odds_weight"] * cost((p / (1 - p)).log() - (q / (1 - q)).log())


def comparison(prompt: str, ranks: Sequence[int]) -> Comparison:
    answers = tuple(f"{prompt} answer {i}" + " and so on" * i for i in range(len(ranks)))
    return Comparison((Message("user", prompt),), answers, tuple(ranks))


RANKINGS = {"a": (1, 2), "b": (3, 1, 2, 1), "c": (2, 2, 9, 5), "d": (2, 1, 1, 1, 3)}


@pytest.fixture
def ranked(tokenizer: Tokenizer) -> list[Ranked]:
    """Different K, ties, ranks with holes."""
    return [encode_comparison(tokenizer, comparison(p, r)) for p, r in RANKINGS.items()]


@pytest.fixture
def rated(tokenizer: Tokenizer) -> list[Labelled]:
    """The same, for KTO."""
    return [encode_labelled(tokenizer, comparison(p, r)) for p, r in RANKINGS.items()]


def alone(model: Transformer, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """log π of an answer: one row, one token at a time."""
    logits = model(torch.tensor([[*prompt, *answer]]))[0]
    return torch.stack([logits[len(prompt) + i - 1].log_softmax(-1)[t] for i, t in enumerate(answer)]).sum()


def references(model: Transformer, prompts: Sequence[Ranked]) -> list[Tensor]:
    """Not far from the model, or the losses would be flat and the test blind; another for every answer."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        now = [torch.stack([alone(model, p.prompt, a) for a in p.answers]) for p in prompts]
    return [x + 4 * torch.randn(len(x), generator=generator, dtype=F64) for x in now]


def assert_same_gradient(model: nn.Module, wanted: Tensor) -> None:
    got = gradient(model)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-10


@pytest.mark.parametrize("loss", PAIRED)
def test_pair_losses_are_the_double_loop_over_pairs(make_model: Make, ranked: list[Ranked], loss: str) -> None:
    """Each answer alone, without sharing anything, in float64: loss and gradient; a tie gives no pair."""
    model = make_model(1, F64)
    ref = references(model, ranked)
    naive = torch.zeros((), dtype=F64)
    for p, reference, ranks in zip(ranked, ref, RANKINGS.values()):
        logp, k = [alone(model, p.prompt, a) for a in p.answers], len(ranks)
        for i in range(k):
            for j in range(k):
                if ranks[i] < ranks[j]:
                    sizes = (len(p.answers[i]), len(p.answers[j]))
                    one = naive_pair(loss, logp[i], logp[j], (float(reference[i]), float(reference[j])), sizes)
                    naive = naive + one / (k * (k - 1) / 2)
    naive.backward()
    wanted = gradient(model)
    batch = pair_batch(ranked, ref)
    assert batch.count == 4
    value, metrics = pair_objective(settings(loss, **SETTINGS[loss]))(model, batch)
    assert value.item() == metrics["loss"] == pytest.approx(naive.item(), rel=1e-10)
    value.backward()
    assert_same_gradient(model, wanted)


@pytest.mark.parametrize("z0", [0.0, 1.7])
def test_kto_is_the_loop_over_labelled_answers(make_model: Make, rated: list[Labelled], z0: float) -> None:
    model = make_model(1, F64)
    ref = references(model, rated)
    naive, count = torch.zeros((), dtype=F64), 0
    for p, reference, ranks in zip(rated, ref, RANKINGS.values()):
        for answer, r, rank in zip(p.answers, reference, ranks):
            x = 0.3 * (alone(model, p.prompt, answer) - r - z0)
            if rank == min(ranks):
                naive, count = naive + 1.5 * (1 - sigmoid(x)), count + 1
            elif rank == max(ranks):
                naive, count = naive + 0.7 * (1 - sigmoid(-x)), count + 1
    naive.backward()
    wanted = gradient(model)
    (batch,) = labelled_batches(rated, ref, z0, len(rated))
    assert batch.count == count == 12
    value, metrics = kto_objective(settings("kto", **SETTINGS["kto"]))(model, batch)
    assert value.item() == metrics["loss"] == pytest.approx(naive.item(), rel=1e-10)
    assert metrics["z0"] / count == pytest.approx(z0)
    value.backward()
    assert_same_gradient(model, wanted)


@pytest.mark.parametrize("loss", PAIRED)
def test_k_answers_are_their_pairs_on_average(make_model: Make, tokenizer: Tokenizer, loss: str) -> None:
    """One prompt with K answers = its C(K, 2) pairs as prompts of their own, divided by C(K, 2): loss and gradient."""
    model, whole = make_model(1, F64), encode_comparison(tokenizer, comparison("x", (2, 4, 1, 3)))
    (ref,) = references(model, [whole])
    objective = pair_objective(settings(loss, **SETTINGS[loss]))
    apart = [
        dataclasses.replace(whole, answers=(whole.answers[b], whole.answers[w]), ranks=(1, 2)) for b, w in whole.pairs
    ]
    assert len(apart) == 6
    pairs, _ = objective(model, pair_batch(apart, [ref[[b, w]] for b, w in whole.pairs]))
    (pairs / 6).backward()
    wanted = gradient(model)
    value, metrics = objective(model, pair_batch([whole], [ref]))
    assert value.item() == pytest.approx(pairs.item() / 6, rel=1e-10)
    value.backward()
    assert_same_gradient(model, wanted)
    _, others = objective(model, pair_batch(apart, [ref[[b, w]] for b, w in whole.pairs]))
    assert metrics == pytest.approx({name: x / 6 for name, x in others.items()}, rel=1e-10)


def test_metrics_are_means_over_prompts_that_ties_do_not_lower(make_model: Make, ranked: list[Ranked]) -> None:
    model = make_model(1, F64)
    ref = references(model, ranked)
    _, metrics = pair_objective(settings("dpo", beta=0.3))(model, pair_batch(ranked, ref))
    wanted: dict[str, list[float]] = {}
    for p, r in zip(ranked, ref):
        logp = [alone(model, p.prompt, a).item() for a in p.answers]
        rewards = [0.3 * (x - float(y)) for x, y in zip(logp, r)]
        each = {
            "chosen_logp": [logp[b] for b, _ in p.pairs],
            "rejected_logp": [logp[w] for _, w in p.pairs],
            "chosen_logp_per_token": [logp[b] / len(p.answers[b]) for b, _ in p.pairs],
            "rejected_logp_per_token": [logp[w] / len(p.answers[w]) for _, w in p.pairs],
            "chosen_reward": [rewards[b] for b, _ in p.pairs],
            "rejected_reward": [rewards[w] for _, w in p.pairs],
            "reward_margin": [rewards[b] - rewards[w] for b, w in p.pairs],
            "accuracy": [float(rewards[b] > rewards[w]) for b, w in p.pairs],
        }
        for name, values in each.items():
            wanted.setdefault(name, []).append(sum(values) / len(values))
    assert {k: v / 4 for k, v in metrics.items() if k != "loss"} == pytest.approx(
        {k: sum(v) / 4 for k, v in wanted.items()}, rel=1e-9
    )


def test_an_answer_that_is_certain_has_finite_odds() -> None:
    logp = torch.tensor([0.0, -3.0, 0.0], dtype=F64, requires_grad=True)
    pairs, weights = torch.tensor([[0, 1], [1, 2], [0, 2]]), torch.ones(3, dtype=F64)
    value = losses.orpo(logp, torch.tensor([2, 3, 1]), pairs, weights, 0.1)
    value.backward()
    assert math.isfinite(value.item())
    assert torch.isfinite(logp.grad).all()  # type: ignore[arg-type]


def test_ktos_reference_point_is_a_mean_that_is_not_below_0() -> None:
    logp = torch.tensor([-3.0, -5.0], dtype=F64, requires_grad=True)
    assert losses.kto_reference_point(logp, torch.tensor([-4.0, -5.5], dtype=F64)) == pytest.approx(0.75)
    assert losses.kto_reference_point(logp, torch.tensor([-2.0, -5.5], dtype=F64)) == 0.0


# -- what must not matter ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", LOSSES)
def test_how_a_step_is_split_does_not_matter(
    make_model: Make, ranked: list[Ranked], rated: list[Labelled], loss: str
) -> None:
    """Same metrics and gradients for micro-batches of 1, 3 and 4 prompts; in KTO's of 1 a label may be missing."""
    rated = [*rated[:3], dataclasses.replace(rated[3], labels=(True, None, None, None, None))]
    model, found = make_model(1, F64), []
    ref = references(model, ranked)
    for micro in (4, 3, 1):
        batches: list[Any]
        if loss == "kto":
            batches = labelled_batches(rated, ref, 0.4, micro)
            objective: Any = kto_objective(settings(loss, **SETTINGS[loss]))
        else:
            batches = [pair_batch(ranked[a : a + micro], ref[a : a + micro]) for a in range(0, 4, micro)]
            objective = pair_objective(settings(loss, **SETTINGS[loss]))
        learner = Learner(model, OptimizerConfig())
        found.append((learner.forward_backward(batches, objective), gradient(learner.model)))
    for metrics, grad in found[1:]:
        assert metrics == pytest.approx(found[0][0], rel=1e-10)
        torch.testing.assert_close(grad, found[0][1], atol=1e-10, rtol=1e-10)


def test_a_step_with_one_kind_of_answer_logs_no_means(make_model: Make, rated: list[Labelled]) -> None:
    model = make_model(1, F64)
    good = [dataclasses.replace(p, labels=tuple(label or None for label in p.labels)) for p in rated]
    (batch,) = labelled_batches(good, references(model, good), 0.0, 4)
    _, metrics = kto_objective(settings("kto"))(model, batch)
    assert metrics.keys() == {"loss", "z0"}


def test_ktos_means_are_over_the_answers_of_a_kind(make_model: Make, rated: list[Labelled]) -> None:
    model = make_model(1, F64)
    ref = references(model, rated)
    (batch,) = labelled_batches(rated, ref, 0.5, 4)
    _, metrics = kto_objective(settings("kto", beta=0.3))(model, batch)
    rho = {True: [], False: []}  # type: ignore[var-annotated]
    for p, r in zip(rated, ref):
        for answer, x, label in zip(p.answers, r, p.labels):
            if label is not None:
                rho[label].append(alone(model, p.prompt, answer).item() - float(x))
    found = {name: value / batch.count for name, value in metrics.items()}
    assert found["chosen_reward"] == pytest.approx(0.3 * sum(rho[True]) / len(rho[True]))
    assert found["rejected_reward"] == pytest.approx(0.3 * sum(rho[False]) / len(rho[False]))
    assert found["reward_margin"] == pytest.approx(found["chosen_reward"] - found["rejected_reward"])
    right = sum(x > 0.5 for x in rho[True]) + sum(x < 0.5 for x in rho[False])
    assert found["accuracy"] == pytest.approx(right / 12)


def test_log_probabilities_come_back_in_order_however_they_are_passed(
    make_model: Make, ranked: list[Ranked], monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = Learner(make_model(1, F64), OptimizerConfig())
    wanted = [[alone(learner.model, p.prompt, a).item() for a in p.answers] for p in ranked]
    for tokens in (16_384, 200, 1):
        monkeypatch.setattr(preference_data, "LOGPROB_PASS_TOKENS", tokens)
        found = answer_logprobs(learner, [(p.prompt, p.answers) for p in ranked])
        assert [x.tolist() for x in found] == [pytest.approx(w, rel=1e-10) for w in wanted]


@torch.no_grad()
def test_bfloat16_rounds_products_and_not_log_probabilities(make_model: Make, ranked: list[Ranked]) -> None:
    low, high = (Learner(make_model(1), OptimizerConfig(), precision) for precision in ("bfloat16", "float32"))
    prompts = [(p.prompt, p.answers) for p in ranked]
    found, wanted = (torch.cat(answer_logprobs(learner, prompts)) for learner in (low, high))
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 0.02
    assert (found != found.bfloat16()).any()
    rows = pair_batch(ranked, references(high.model, ranked)).rows
    with low.autocast():
        per_token, _ = rows.token_logprobs(low.model)
    # the reference is rounded as the policy is: at the first step the ratio is 1 in bfloat16 too
    assert float((rows.sum(per_token) - found).abs().max()) < 0.01 * float((found - wanted).abs().max())
    assert per_token.dtype == torch.float32
    assert (per_token != per_token.bfloat16()).float().mean() > 0.9


# -- KTO's mismatched answers -----------------------------------------------------------------------------------------


def labelled(prompt: int, *answers: int) -> Labelled:
    """A prompt of one id and answers of one id, all desirable."""
    n = len(answers)
    return Labelled((prompt,), tuple((a,) for a in answers), (1,) * n, (1,) * n, (), (True,) * n)


@pytest.mark.parametrize("seed", range(5))
def test_mismatched_answers_belong_to_another_prompt(seed: int) -> None:
    prompts = [labelled(1, 11, 12), labelled(2, 21), labelled(1, 13), labelled(3, 31), labelled(2, 22), labelled(1, 14)]
    found = mismatched(prompts, 64, seed)
    assert [prompt for prompt, _ in found] == [p.prompt for p in prompts]
    for prompt, answers in found:
        assert answers
        assert all(a[0] // 10 != prompt[0] for a in answers)
    assert mismatched(prompts, 64, seed) == found
    owners = {prompt: answers[0][0] // 10 for prompt, answers in found}
    assert sorted(owners.values()) == [1, 2, 3]  # in a circle: each serves one other


def test_mismatched_answers_are_labelled_and_fit_the_context() -> None:
    short = dataclasses.replace(labelled(1, 11), prompt=(1, 1, 1))
    long = dataclasses.replace(labelled(2), answers=((21,) * 6, (22,), (23,) * 3), labels=(True, None, False))
    (_, first), (_, second) = mismatched([short, long], 5, 0)
    assert first == ((21, 21), (23, 23))
    assert second == ((11,),)


# -- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"loss": "simpo", "label_smoothing": 0.1},
            r"--label-smoothing is 0\.1, but it is used only by --loss dpo, and --loss is 'simpo'",
        ),
        ({"loss": "orpo", "beta": 0.1}, "--beta is 0.1, but it is used only by --loss dpo or ipo or kto or simpo"),
        (
            {"margin": 0.5},
            "--margin is 0.5, but it is used only by --loss simpo, and --loss is 'dpo'; leave --margin out",
        ),
        ({"odds_weight": 1.0}, "is used only by --loss orpo"),
        ({"loss": "ipo", "desirable_weight": 1.3}, "is used only by --loss kto"),
        ({"undesirable_weight": 1.3}, "is used only by --loss kto"),
        ({"label_smoothing": 0.5}, "wanted less than 0.5"),
        ({"loss": "dop"}, "did you mean 'dpo'"),
        ({"beta": -0.1}, "must be at least 0"),
    ],
)
def test_settings_of_another_loss_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DPOConfig(model="m", data=("d",), **values)


def test_beta_is_each_losss_own_unless_set() -> None:
    assert [settings(loss).resolved_beta for loss in ("dpo", "ipo", "kto", "simpo")] == [0.1, 0.1, 0.1, 2.0]
    assert settings("simpo", beta=0.5).resolved_beta == 0.5


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = write_world(tmp_path_factory.mktemp("world"))
    world.make_parents("dpo")
    return world


def run_of(world: World, loss: str, name: str | None = None, **changes: Any) -> Run:
    values = {"loss": loss, "micro_batch": 0, "steps": 25, "eval_every": 0, "checkpoint_every": 0, "lr": 1e-3}
    return world.run("dpo", name or loss, **{**values, **changes})


@pytest.mark.parametrize(
    ("loss", "start"), [("dpo", math.log(2)), ("ipo", 25.0), ("kto", 0.5), ("simpo", None), ("orpo", None)]
)
def test_every_loss_learns_what_was_chosen(world: World, loss: str, start: float | None) -> None:
    """At step 0 the policy is the reference: losses have their known values, rewards and ratios are 0."""
    run = run_of(world, loss, lr=3e-3 if loss == "orpo" else 1e-3)
    first, last = run.metrics("loss")[0], run.metrics("loss")[-1]
    if start is not None:
        assert first["loss"] == pytest.approx(start, abs=1e-5)
        assert [first[f"{kind}_reward"] for kind in ("chosen", "rejected")] == pytest.approx([0, 0], abs=1e-5)
        assert run.metrics("heldout_accuracy")[0]["heldout_accuracy"] == 0.5
    assert (run.path / "reference.safetensors").exists() == (start is not None)
    assert last["loss"] < first["loss"]
    assert last["reward_margin"] > first["reward_margin"] + 0.1
    before, after = run.metrics("heldout_accuracy")
    assert after["heldout_accuracy"] >= max(before["heldout_accuracy"], 2 / 3)
    assert run.manifest["accuracy"]["value"] == pytest.approx(after["heldout_accuracy"], abs=1e-6)
    assert run.manifest["accuracy"]["n"] == 6  # prompts, not pairs
    assert run.manifest["longer_wins"]["value"] < 0.5


def test_the_run_is_a_policy_that_a_stage_can_start_from(world: World) -> None:
    first = run_of(world, "dpo", "policy", steps=2)
    second = run_of(world, "ipo", "again", model=str(first.path), steps=2)
    assert second.manifest["parents"]["model"]["path"].endswith("policy")


def test_resuming_does_not_compute_the_reference_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_of(world, "dpo", "whole", steps=6, lora_rank=2)
    assert (whole.path / "adapter").is_dir()
    with pytest.raises(Interrupted):
        run_of(world, "dpo", "stopped", steps=6, lora_rank=2, progress=At(3, press_ctrl_c))

    def refuse(*_: object) -> None:
        raise AssertionError("the reference was computed twice")

    monkeypatch.setattr(preference_data, "answer_logprobs", refuse)
    assert_same_run(tercet.resume(world.folder / "stopped").path, whole.path)


def test_one_model_is_in_memory_while_training(world: World) -> None:
    def count() -> int:
        gc.collect()
        return sum(type(o) is Transformer for o in gc.get_objects())

    before, seen = count(), []
    run_of(world, "dpo", "memory", steps=2, progress=At(1, lambda: seen.append(count())))
    assert seen == [before + 1]


def test_the_reference_is_the_parent_and_stays_so(world: World) -> None:
    """Its log-probabilities are those of the parent's weights although the policy has long moved."""
    from safetensors.torch import load_file

    from tercet.training.load import load_language_model

    run = run_of(world, "kto", "moved", steps=8)
    saved = load_file(run.path / "reference.safetensors")
    model, tokenizer = load_language_model(Run(world.path("tuned"))), Tokenizer.load(world.path("tuned"))
    parent = Learner(model, OptimizerConfig())
    config = world.config("dpo")
    train, heldout = preference_data.load_labelled(config, tokenizer, 64, Run(run.path))
    for name, prompts in (("train", train), ("heldout", heldout)):
        found = torch.cat(answer_logprobs(parent, [(p.prompt, p.answers) for p in prompts]))
        torch.testing.assert_close(saved[name], found, atol=1e-6, rtol=0)
    assert len(saved["mismatched"]) == 2 * len(train)  # the best and the worst of three


# -- feedback without pairs -------------------------------------------------------------------------------------------


def test_unpaired_feedback_trains_kto(world: World) -> None:
    rows = [
        {"prompt": f"{n}?", "completion": f"It is {n}." if n % 2 else f"I do not know {n}.", "label": n % 2 == 1}
        for n in range(40)
    ]
    data = write_rows(world.folder / "feedback.jsonl", rows)
    run = run_of(world, "kto", "unpaired", data=(data,), heldout_share=0.3)
    before, after = run.metrics("heldout_reward_margin")
    assert before["heldout_reward_margin"] == 0
    assert after["heldout_reward_margin"] > 0.1
    assert "accuracy" not in run.manifest
    assert "desirable and" in (run.path / "log.txt").read_text()
    with pytest.raises(DataError, match="not a comparison"):
        run_of(world, "dpo", "unpaired-dpo", data=(data,))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            lambda n: {"prompt": f"{n}?", "completion": "Yes.", "label": True},
            "desirable and 0 undesirable answers; KTO needs both",
        ),
        (
            lambda n: {"prompt": "Hi", "completion": f"{n}.", "label": n % 2 == 0},
            "all training rows have the same prompt",
        ),
        (
            lambda n: {"prompt": f"{n}?", "responses": ["a", "b"], "ranks": [1, 1]},
            "none of the 20 training rows has a labelled answer",
        ),
    ],
)
def test_feedback_that_kto_cannot_learn_from(world: World, row: Callable[[int], dict[str, Any]], message: str) -> None:
    data = write_rows(world.folder / "bad.jsonl", (row(n) for n in range(20)))
    with pytest.raises(DataError, match=message):
        run_of(world, "kto", "bad", data=(data,), heldout=(data,))


# -- the warning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logps", "fell"),
    [
        ([-50.0] * 20 + [-59.0] * 20, False),  # by 18 %
        ([-50.0] * 20 + [-61.0] * 20, True),
        ([-50.0] * 20 + [-40.0] * 20, False),  # likelier
        ([-2.0] * 20 + [-2.9] * 20, False),  # by 45 %, but less than a nat
        ([-2.0] * 20 + [-3.1] * 20, True),
        ([-50.0] * 20 + [-90.0] * 5 + [-50.0] * 20, False),  # it has come back
        ([-50.0, -90.0] * 9, False),  # too few to say
        ([-50.0] * 10 + [-90.0] * 10, True),
    ],
)
def test_a_fall_is_by_a_fifth_and_a_nat(logps: list[float], fell: bool) -> None:
    assert (chosen_fall(logps) is not None) == fell


def test_the_run_warns_once_where_the_chosen_answers_become_less_likely(world: World) -> None:
    quiet = run_of(world, "orpo", "quiet", steps=25)
    assert "chosen_fell" not in quiet.manifest
    assert "warning" not in (quiet.path / "log.txt").read_text()
    config: dict[str, Any] = {"steps": 45, "lr": 5e-3, "checkpoint_every": 5}
    with pytest.raises(Interrupted):
        run_of(world, "dpo", "falling", progress=At(43, press_ctrl_c), **config)
    run = tercet.resume(world.folder / "falling")
    start, now = run.manifest["chosen_fell"]
    assert now < 1.2 * start < 0
    assert (run.path / "log.txt").read_text().count("warning: the chosen answers have become less likely") == 1
    assert tensors(run.path)
