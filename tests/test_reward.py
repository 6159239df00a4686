"""The reward model: its loss against naive loops, invariances, the stored normalisation, and calibration."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import World, records, tensors, write_rows, write_world
from tercet import reward
from tercet.data.types import Comparison, Message
from tercet.errors import CheckpointError, DataError
from tercet.inference.reward_scores import score_texts
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.calibration import calibration_error, calibration_report
from tercet.posttraining.reward_model.rankings import Ranked, accuracy, encode_comparison, load_rankings
from tercet.posttraining.reward_model.train import (
    calibrate,
    collate,
    load_demonstrations,
    normalise_rewards,
    ranking_loss,
    score_ranked,
)
from tercet.reporting.report import write_report
from tercet.reporting.reward_blocks import trust as blocks
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import load_reward_model
from tercet.training.run import Run

Make = Callable[..., Transformer]
F64 = torch.float64
RANKS = {"a": (1, 2), "b": (3, 1, 2, 1), "c": (2, 2, 9, 5), "d": (2, 1, 1, 1, 3), "e": (1, 1)}


def comparison(prompt: str, ranks: Sequence[int], scores: tuple[float, ...] = ()) -> Comparison:
    answers = tuple(f"{prompt} answer {i}" + " and so on" * i for i in range(len(ranks)))
    return Comparison((Message("user", prompt),), answers, tuple(ranks), scores=scores)


@pytest.fixture
def ranked(tokenizer: Tokenizer) -> list[Ranked]:
    """Prompts with different K, ties and gaps in the ranks; "e" has no pair. Scores are 10 minus twice the rank."""
    return [encode_comparison(tokenizer, comparison(p, r, tuple(10.0 - 2 * x for x in r))) for p, r in RANKS.items()]


@pytest.fixture
def model(make_model: Make) -> ValueHeadModel:
    model = ValueHeadModel(make_model(1, F64), seed=2).to(F64)
    model.gain.fill_(1.7)
    model.bias.fill_(-0.3)
    return model


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def alone(model: ValueHeadModel, text: Sequence[int]) -> Tensor:
    """The score of one text, in a row of its own, without padding."""
    return model(torch.tensor([list(text)]))[0, -1]


def learnt(model: ValueHeadModel, loss: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    loss.backward()
    return loss.detach(), gradient(model)


def assert_same(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    assert wanted[1].norm() > 1e-3
    torch.testing.assert_close(found[0], wanted[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(found[1], wanted[1], atol=1e-10, rtol=0)


# -- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_and_its_gradient_by_hand(tokenizer: Tokenizer) -> None:
    """Ranks 1 2 2 3 with scores 1, 0.5, −0.5, 0 differ in their five pairs by 0.5, 1.5, 1, 0.5, −0.5.

    A margin subtracts 0.1 per rank.
    """

    class Given:
        """Rows whose scores are known."""

        def scores(self, model: object) -> Tensor:
            return given

    for margin, take in ((0.0, (0, 0, 0, 0, 0)), (0.1, (0.1, 0.1, 0.2, 0.1, 0.1))):
        given = torch.tensor([1.0, 0.5, -0.5, 0.0], dtype=F64, requires_grad=True)
        one = encode_comparison(tokenizer, comparison("x", (1, 2, 2, 3), (3.0, 2.0, 2.0, 1.0)))
        assert one.pairs == ((0, 1), (0, 2), (0, 3), (1, 3), (2, 3))
        batch = dataclasses.replace(collate([one], margin=margin), rows=Given())  # type: ignore[arg-type]
        loss, metrics = ranking_loss(None, batch)  # type: ignore[arg-type]
        d = [x - m for x, m in zip((0.5, 1.5, 1.0, 0.5, -0.5), take)]
        wanted = sum(math.log(1 + math.exp(-x)) for x in d) / 6  # the tied pair counts in C(4, 2), and adds nothing
        assert loss.item() == metrics["loss"] == pytest.approx(wanted, abs=1e-12)
        loss.backward()
        w = [1 / (1 + math.exp(x)) / 6 for x in d]
        pull = [-w[0] - w[1] - w[2], w[0] - w[3], w[1] - w[4], w[2] + w[3] + w[4]]
        assert given.grad is not None
        assert given.grad.tolist() == pytest.approx(pull, abs=1e-12)


@pytest.mark.parametrize("margin", [0.0, 0.35])
def test_the_loss_is_the_double_loop_over_pairs(model: ValueHeadModel, ranked: list[Ranked], margin: float) -> None:
    """Each answer scored alone: loss and gradient are those of one row for each answer."""
    batch = collate(ranked, margin=margin)
    assert (batch.count, batch.rows.answers) == (5, 17)  # each answer once, however many pairs it is in
    naive = torch.zeros((), dtype=F64)
    for one, ranks in zip(ranked, RANKS.values()):
        scores = [alone(model, text) for text in one.texts]
        k = len(ranks)
        for i in range(k):
            for j in range(k):
                if ranks[i] < ranks[j]:
                    difference = scores[i] - scores[j] - margin * 2 * (ranks[j] - ranks[i])
                    naive = naive - torch.sigmoid(difference).log() / (k * (k - 1) / 2)
    assert_same(learnt(model, ranking_loss(model, batch)[0]), learnt(model, naive))


def test_k_answers_are_their_pairs_on_average(model: ValueHeadModel, ranked: list[Ranked]) -> None:
    """A prompt with K answers is its C(K, 2) pairs, each a prompt of its own (K = 2), divided by C(K, 2)."""
    whole = ranked[3]
    apart = [
        dataclasses.replace(whole, answers=(whole.answers[b], whole.answers[w]), ranks=(1, 2)) for b, w in whole.pairs
    ]
    assert len(apart) == 7
    pairs, _ = ranking_loss(model, collate(apart))
    assert_same(learnt(model, ranking_loss(model, collate([whole]))[0]), learnt(model, pairs / 10))


def test_the_order_of_prompts_and_answers_and_micro_batches_do_not_matter(
    model: ValueHeadModel, ranked: list[Ranked]
) -> None:
    wanted = learnt(model, ranking_loss(model, collate(ranked))[0])
    turned = [dataclasses.replace(p, answers=p.answers[::-1], ranks=p.ranks[::-1]) for p in ranked[::-1]]
    assert_same(learnt(model, ranking_loss(model, collate(turned))[0]), wanted)
    split = ranking_loss(model, collate(ranked[:1]))[0] + ranking_loss(model, collate(ranked[1:]))[0]
    assert_same(learnt(model, split), wanted)


def test_a_prompt_of_ties_teaches_nothing(model: ValueHeadModel, ranked: list[Ranked]) -> None:
    assert ranked[4].pairs == ()
    loss, _ = ranking_loss(model, collate(ranked[4:]))
    found, grads = learnt(model, loss)
    assert found == 0 == grads.abs().max()
    with_it, without = (ranking_loss(model, collate(ranked[:n]))[0] for n in (5, 4))
    assert with_it.item() == pytest.approx(without.item(), abs=1e-12)  # but it is counted as a prompt


def test_pairs_of_a_ranking(tokenizer: Tokenizer) -> None:
    found = encode_comparison(tokenizer, comparison("x", (2, 1, 2, 3)))
    assert set(found.pairs) == {(1, 0), (1, 2), (0, 3), (1, 3), (2, 3)}  # (0, 2) are tied
    assert found.characters == tuple(len(t) for t in comparison("x", (2, 1, 2, 3)).responses)
    assert all(text[-1] == tokenizer.im_end for text in found.texts)
    assert all(text[: len(found.prompt)] == found.prompt for text in found.texts)


# -- scores -----------------------------------------------------------------------------------------------------------


def texts_of(count: int, seed: int) -> list[list[int]]:
    """Texts of 2 to 39 tokens; every third ends with the id 3, which serves as PAD below."""
    rng = np.random.default_rng(seed)
    texts = [rng.integers(5, 300, rng.integers(2, 40)).tolist() for _ in range(count)]
    return [[*text, 3] if i % 3 == 0 else text for i, text in enumerate(texts)]


def test_an_answer_that_is_ranked_twice_is_no_pair_with_itself() -> None:
    twice = Ranked((1,), ((5, 3), (6, 3), (5, 3)), (1, 1, 1), (1, 2, 3), ())
    assert twice.pairs == ((0, 1), (1, 2))


def test_scores_come_back_in_order_as_if_alone(model: ValueHeadModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read at the last token of the text, however much of whatever follows it in the row."""
    texts = texts_of(20, 0)
    wanted = [alone(model, t).item() for t in texts]
    for pad in (3, 299):
        assert score_texts(model, texts, pad) == pytest.approx(wanted, abs=1e-10)
        assert score_texts(model, [*texts, [7] * 60], pad)[:-1] == pytest.approx(wanted, abs=1e-10)
    monkeypatch.setattr("tercet.inference.reward_scores.REWARD_PASS_TOKENS", 30)
    assert score_texts(model, texts, 3) == pytest.approx(wanted, abs=1e-10)


def test_ranked_answers_are_scored_in_order(
    model: ValueHeadModel, ranked: list[Ranked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tercet.training.packing.TRAINING_PASS_TOKENS", 60)
    found = score_ranked(model, ranked)
    for one, scores in zip(ranked, found, strict=True):
        assert scores == pytest.approx([alone(model, text).item() for text in one.texts], abs=1e-10)


def test_accuracy_counts_equal_scores_one_half(tokenizer: Tokenizer) -> None:
    prompts = [
        encode_comparison(tokenizer, comparison(p, r)) for p, r in (("x", (1, 2, 3)), ("y", (2, 1)), ("z", (1, 1)))
    ]
    estimate = accuracy(prompts, [[3.0, 3.0, 1.0], [0.0, -1.0], [1.0, 2.0]])
    assert estimate.value == pytest.approx((0.5 + 1 + 1 + 0) / 4)


def test_normalising_puts_demonstrations_at_zero_and_answers_at_spread_one(model: ValueHeadModel) -> None:
    demonstrations, answers = texts_of(15, 1), texts_of(40, 2)
    before = score_texts(model, answers, 3)
    for _ in range(2):  # a second time changes nothing
        normalise_rewards(model, score_texts(model, demonstrations, 3), score_texts(model, answers, 3))
        assert np.mean(score_texts(model, demonstrations, 3)) == pytest.approx(0, abs=1e-10)
        after = np.array(score_texts(model, answers, 3))
        assert after.std() == pytest.approx(1, abs=1e-10)
        assert np.corrcoef(before, after)[0, 1] == pytest.approx(1)  # the same order, the same distances
    assert abs(after.mean()) > 1e-3  # it is the demonstrations that are at 0
    normalise_rewards(model, [], score_texts(model, answers, 3))
    assert np.mean(score_texts(model, answers, 3)) == pytest.approx(0, abs=1e-10)
    assert model.gain.requires_grad is model.bias.requires_grad is False


# -- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_by_hand() -> None:
    """Three pairs 75 % certain, of which two are right; one pair without an opinion; two 88 % certain and right."""
    d = np.array([math.log(3), math.log(3), -math.log(3), 0.0, math.log(7.5), math.log(7.5)])
    found = calibration_report(d, np.array([1.0, 2, 2, 2, 1, 1]), np.array([5, -5, 9, 0, 20, -1]), np.arange(6))
    certain = found["by_certainty"]
    assert [g["pairs"] for g in certain] == [1, 3, 2]
    for name in ("from", "mean"):
        assert [g[name] for g in certain] == pytest.approx([0.5, 0.75, 7.5 / 8.5])
    assert [g["accuracy"]["value"] for g in certain] == [0.5, pytest.approx(2 / 3), 1.0]
    error = (0 + 3 * (0.75 - 2 / 3) + 2 * (1 - 7.5 / 8.5)) / 6
    assert found["calibration_error"]["value"] == pytest.approx(error)
    assert found["overconfidence"]["value"] == pytest.approx((3 * (0.75 - 2 / 3) - 2 * (1 - 7.5 / 8.5)) / 6)
    rows = {
        name: [(g["from"], g["to"], g["pairs"], g["accuracy"]["value"]) for g in found[name]]
        for name in ("by_gap", "by_length")
    }
    assert rows["by_gap"] == [(1, 1, 3, 1.0), (2, 2, 3, 0.5)]
    assert rows["by_length"] == [(-5, -1, 2, 1.0), (0, 0, 1, 0.5), (5, 5, 1, 1.0), (9, 20, 2, 0.5)]
    # the model prefers the longer answer at 5 and 20, the shorter at −5, −1 and 9 (where it is wrong)
    assert found["prefers_longer"]["value"] == pytest.approx(2 / 5)
    assert found["annotator_prefers_longer"]["value"] == pytest.approx(3 / 5)


def test_many_different_gaps_are_put_together_in_quarters() -> None:
    gap = np.random.default_rng(0).permutation(np.arange(40.0))
    found = calibration_report(np.ones(40), gap, np.zeros(40, dtype=np.int64), np.arange(40))
    assert [(g["from"], g["to"], g["pairs"]) for g in found["by_gap"]] == [
        (0, 9, 10),
        (10, 19, 10),
        (20, 29, 10),
        (30, 39, 10),
    ]
    assert found["prefers_longer"] is found["annotator_prefers_longer"] is None
    assert [g["pairs"] for g in found["by_length"]] == [40]


def test_calibration_error_tells_a_calibrated_model_from_one_that_is_too_sure() -> None:
    rng = np.random.default_rng(0)
    d = np.abs(rng.normal(0, 2, 3000))
    certain, prompt = 1 / (1 + np.exp(-d)), np.arange(3000) // 6
    for scale, low, high in ((1.0, 0.0, 0.03), (3.0, 0.12, 0.17)):
        truth = 1 / (1 + np.exp(-d / scale))
        right = (rng.random(3000) < truth).astype(float)
        found = calibration_error(certain, right, prompt)
        assert low <= found.value <= high
        assert found.low <= float((certain - truth).mean()) <= found.high
        # the pairs of a prompt are no evidence of their own: six times the same is not six times as sure
        copied = calibration_error(*(np.repeat(x[::6], 6) for x in (certain, right)), prompt)
        single = calibration_error(certain[::6], right[::6], prompt[::6])
        assert (copied.value, copied.low, copied.high) == pytest.approx((single.value, single.low, single.high))


def test_the_rating_gap_is_of_scores_only_where_all_have_them(ranked: list[Ranked]) -> None:
    scores = [[float(-r) for r in ranks] for ranks in RANKS.values()]
    found = calibrate(ranked, scores, gain=2.0)
    assert found["gap"] == "score"
    assert found["pairs"] == sum(len(p.pairs) for p in ranked) == 1 + 5 + 5 + 7
    assert [g["from"] for g in found["by_gap"]] == [2.0, 4.0, 6.0, 8.0, 14.0]  # twice the ranks' differences
    assert found["by_certainty"][0]["from"] == pytest.approx(1 / (1 + math.exp(-0.5)))  # one rank, over the gain
    found = calibrate([dataclasses.replace(ranked[0], scores=()), *ranked[1:]], scores, gain=2.0)
    assert (found["gap"], [g["from"] for g in found["by_gap"]]) == ("rank", [1.0, 2.0, 3.0, 4.0, 7.0])


# -- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = write_world(tmp_path_factory.mktemp("world"))
    world.make_parents("reward")
    return world


@pytest.fixture(scope="module")
def trained(world: World) -> Run:
    return world.run("reward", "judge", lr=3e-3)


def test_what_is_stored_is_normalised(world: World, trained: Run, tmp_path: Path) -> None:
    """The checkpoint's own gain and bias put the demonstrations at 0 and the ranked answers at spread 1."""
    model, tokenizer = load_reward_model(trained), Tokenizer.load(trained.path)
    assert {"gain", "bias"} <= trained.weights().keys()
    config = world.config("reward")
    demonstrations = load_demonstrations(config, tokenizer, 64, trained)
    train, _ = load_rankings(config, tokenizer, 64, trained)
    with torch.no_grad():
        assert float(np.mean([alone(model, t).item() for t in demonstrations])) == pytest.approx(0, abs=1e-5)
        assert float(np.std([alone(model, t).item() for p in train for t in p.texts])) == pytest.approx(1, abs=1e-5)
    assert trained.manifest["demonstrations_mean"] == pytest.approx(0, abs=1e-5)


def test_calibration_json_is_what_the_stored_model_does(world: World, trained: Run) -> None:
    model, tokenizer = load_reward_model(trained), Tokenizer.load(trained.path)
    _, heldout = load_rankings(world.config("reward"), tokenizer, 64, trained)
    found = json.loads((trained.path / "calibration.json").read_text())
    hits: dict[int, list[float]] = {}
    certain = []
    with torch.no_grad():
        for one in heldout:
            scores = [alone(model, t).item() for t in one.texts]
            for b, w in one.pairs:
                hits.setdefault(one.ranks[w] - one.ranks[b], []).append(float(scores[b] > scores[w]))
                certain.append(1 / (1 + math.exp(-abs(scores[b] - scores[w]) / model.gain.item())))
    assert {g["from"]: g["accuracy"]["value"] for g in found["by_gap"]} == {
        k: pytest.approx(np.mean(v)) for k, v in hits.items()
    }
    everything = [h for some in hits.values() for h in some]
    assert (
        trained.manifest["accuracy"]["value"]
        == pytest.approx(np.mean(everything))
        == pytest.approx(records(trained.path)[-1]["heldout_accuracy"], abs=1e-5)
    )
    assert np.mean(everything) > 0.8  # it has learnt something
    middle = sum(g["mean"] * g["pairs"] for g in found["by_certainty"]) / found["pairs"]
    assert middle == pytest.approx(np.mean(certain), abs=1e-5)


def test_another_seed_is_another_model_of_the_same_task(world: World, trained: Run) -> None:
    """An ensemble is several runs: the seed decides the head and the order of the prompts."""
    other = world.run("reward", "other", lr=3e-3, seed=4)
    heads = [run.weights()["score.weight"] for run in (trained, other)]
    assert (heads[0] - heads[1]).abs().mean() > 0.1  # 13 steps of 0.003 cannot do that: the start differs
    tokenizer = Tokenizer.load(trained.path)
    _, heldout = load_rankings(world.config("reward"), tokenizer, 64, trained)
    a, b = (np.concatenate(score_ranked(load_reward_model(run), heldout)) for run in (trained, other))
    assert np.abs(a - b).max() > 0.01
    assert np.corrcoef(a, b)[0, 1] > 0.5


def scored_rows(world: World, factor: float, **extra: Any) -> str:
    rows = [json.loads(line) for line in Path(world.path("rankings.jsonl")).read_text().splitlines()]
    return write_rows(
        world.folder / f"scored-{factor}.jsonl",
        ({**r, "scores": [factor * (4 - x) for x in r["ranks"]], **extra} for r in rows),
    )


def test_no_prompt_is_on_both_sides(world: World, trained: Run, tmp_path: Path) -> None:
    """Rows with one prompt stay together, and none is lost."""
    rows = [{"prompt": f"{n % 20}?", "responses": [f"{n}.", f"{n}!"], "ranks": [1, 2]} for n in range(60)]
    config = world.config("reward", data=(write_rows(tmp_path / "rows.jsonl", rows),), heldout_share=0.4)
    sides = load_rankings(config, Tokenizer.load(trained.path), 64, trained)
    train, heldout = ([p.prompt for p in side] for side in sides)
    assert len(train) + len(heldout) == 60
    assert len(set(train)) + len(set(heldout)) == len({*train, *heldout}) == 20


def test_a_margin_is_learnt_from_scores(world: World) -> None:
    """With margins of 10 and 20 the answers come to lie farther apart than without, before normalising."""
    data = scored_rows(world, 1.0)
    runs = [world.run("reward", f"margin-{m:g}", data=(data,), lr=3e-3, margin=m, steps=26) for m in (0.0, 10.0)]
    plain, wide = (1 / load_reward_model(run).gain.item() for run in runs)
    assert wide > 1.15 * plain
    assert json.loads((runs[0].path / "calibration.json").read_text())["gap"] == "score"
    assert records(runs[1].path)[1]["loss"] > records(runs[0].path)[1]["loss"] + 5


def test_a_margin_without_scores_is_an_error(world: World, tmp_path: Path) -> None:
    config = world.config("reward", margin=0.5)
    with pytest.raises(DataError, match=r"margin is 0.5, but \d+ of \d+ training prompts have no \"scores\""):
        reward(config, tmp_path / "out")


def test_adapters_are_trained_and_what_is_loaded_is_normalised(world: World) -> None:
    run = world.run("reward", "lora", lr=1e-2, lora_rank=2)
    parent, mine = tensors(Path(world.path("tuned"))), tensors(run.path)
    assert (
        mine["model.safetensors/backbone.model.embed_tokens.weight"]
        == parent["model.safetensors/model.embed_tokens.weight"]
    )
    assert (run.path / "adapter" / "adapter_config.json").is_file()
    tokenizer = Tokenizer.load(run.path)
    texts = load_demonstrations(world.config("reward"), tokenizer, 64, run)
    assert np.mean(score_texts(load_reward_model(run), texts, 0)) == pytest.approx(0, abs=1e-4)
    assert records(run.path)[-1]["heldout_accuracy"] > records(run.path)[0]["heldout_accuracy"]


def test_the_report_shows_calibration_and_length(trained: Run, tmp_path: Path) -> None:
    page = write_report([trained.path], tmp_path / "r.html").read_text(encoding="utf-8")
    for words in (
        "expected calibration error",
        "prefers the longer answer",
        "-calibration-",
        "how clear a pair is (number of pairs in brackets)",
    ):
        assert words in page
    damaged = tmp_path / "damaged"
    shutil.copytree(trained.path, damaged)
    (damaged / "calibration.json").write_text('{"by_gap": 3}')
    with pytest.raises(CheckpointError, match=r"calibration.json: damaged: .*; remove it"):
        blocks(Run(damaged), "x")
    (damaged / "calibration.json").unlink()
    assert blocks(Run(damaged), "x") == []
