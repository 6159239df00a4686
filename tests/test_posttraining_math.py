"""Preference learning, number by number: every formula against a naive loop, and PPO's gradient against enumeration."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tercet.data.types import Comparison, Message, Task
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.annotator import ranked
from tercet.posttraining.reward import accuracy, collate, encode_comparison, normalise, ranking_loss, score_texts
from tercet.tokenizer.bpe import Tokenizer

Make = Callable[..., Transformer]
F64 = torch.float64


def gradient(model: nn.Module) -> Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()
    model.zero_grad()
    return found


# -- the reward model -----------------------------------------------------------------------------------------------------


def comparison(prompt: str, ranks: Sequence[int]) -> Comparison:
    answers = tuple(f"{prompt} answer {i}" + " and so on" * i for i in range(len(ranks)))
    return Comparison((Message("user", prompt),), answers, tuple(ranks))


def test_ranking_loss_is_the_double_loop_over_pairs(make_model: Make, tokenizer: Tokenizer) -> None:
    """Different K, ties, ranks with holes; each answer scored alone, without padding, in float64."""
    model = ScalarModel(make_model(1, F64), seed=2).to(F64)
    rankings = {"a": (1, 2), "b": (3, 1, 2, 1), "c": (2, 2, 9, 5), "d": (2, 1, 1, 1, 3)}
    batch = collate([encode_comparison(tokenizer, comparison(p, r)) for p, r in rankings.items()], tokenizer.pad)
    assert batch.count == 4
    assert len(batch.tokens) == 4 and batch.rows.answers == 15  # each answer once, however many pairs it is in
    naive = torch.zeros((), dtype=F64)
    for prompt, ranks in rankings.items():
        texts = encode_comparison(tokenizer, comparison(prompt, ranks)).texts
        scores = [model(torch.tensor([text]))[0, -1] for text in texts]
        k = len(ranks)
        for i in range(k):
            for j in range(k):
                if ranks[i] < ranks[j]:
                    naive = naive - torch.sigmoid(scores[i] - scores[j]).log() / (k * (k - 1) / 2)
    loss, metrics = ranking_loss(model, batch)
    assert loss.item() == metrics["loss"] == pytest.approx(naive.item(), rel=1e-6)
    loss.backward()
    got = gradient(model)
    naive.backward()
    wanted = gradient(model)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


def test_k_answers_are_their_pairs_on_average(make_model: Make, tokenizer: Tokenizer) -> None:
    """One prompt with K answers = its C(K, 2) pairs as prompts of their own, divided by C(K, 2): loss and gradient."""
    model = ScalarModel(make_model(1, F64), seed=2).to(F64)
    whole = encode_comparison(tokenizer, comparison("x", (2, 4, 1, 3)))
    assert len(whole.pairs) == 6
    loss, _ = ranking_loss(model, collate([whole], tokenizer.pad))
    loss.backward()
    got = gradient(model)
    pairs = [
        dataclasses.replace(whole, answers=(whole.answers[b], whole.answers[w]), pairs=((0, 1),))
        for b, w in whole.pairs
    ]
    apart, _ = ranking_loss(model, collate(pairs, tokenizer.pad))
    (apart / 6).backward()
    assert loss.item() == pytest.approx(apart.item() / 6, rel=1e-6)
    wanted = gradient(model)
    assert float((got - wanted).norm() / wanted.norm()) < 1e-6


def test_pairs_of_a_ranking(tokenizer: Tokenizer) -> None:
    found = encode_comparison(tokenizer, comparison("x", (2, 1, 2, 3)))
    assert set(found.pairs) == {(1, 0), (1, 2), (0, 3), (1, 3), (2, 3)}  # (0, 2) are tied
    assert found.characters == tuple(len(t) for t in comparison("x", (2, 1, 2, 3)).responses)
    assert encode_comparison(tokenizer, comparison("x", (1, 1, 1))).pairs == ()
    assert all(text[-1] == tokenizer.im_end for text in found.texts)


def test_accuracy_counts_equal_scores_one_half(tokenizer: Tokenizer) -> None:
    prompts = [
        encode_comparison(tokenizer, comparison(p, r)) for p, r in (("x", (1, 2, 3)), ("y", (2, 1)), ("z", (1, 1)))
    ]
    estimate = accuracy(prompts, [[3.0, 3.0, 1.0], [0.0, -1.0], [1.0, 2.0]])
    assert estimate.value == pytest.approx((0.5 + 1 + 1 + 0) / 4)


def texts_of(count: int, seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 300, rng.integers(2, 40)).tolist() for _ in range(count)]


def test_scores_come_back_in_order_as_if_alone(make_model: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScalarModel(make_model(1), seed=2)
    texts = texts_of(20, 0)
    wanted = [model(torch.tensor([t]))[0, -1].item() for t in texts]
    assert score_texts(model, texts, 3) == pytest.approx(wanted, abs=1e-5)
    assert score_texts(model, texts, 299) == pytest.approx(wanted, abs=1e-5)
    monkeypatch.setattr("tercet.posttraining.reward.SCORED_ROWS", 3)
    assert score_texts(model, texts, 3) == pytest.approx(wanted, abs=1e-5)


def test_normalising_puts_demonstrations_at_zero_and_answers_at_spread_one(make_model: Make) -> None:
    model = ScalarModel(make_model(1), seed=2)
    demonstrations, answers = texts_of(15, 1), texts_of(40, 2)
    before = np.array(score_texts(model, answers, 3))
    for _ in range(2):  # a second time changes nothing
        normalise(model, demonstrations, answers, 3)
        assert np.mean(score_texts(model, demonstrations, 3)) == pytest.approx(0, abs=1e-5)
        after = np.array(score_texts(model, answers, 3))
        assert after.std() == pytest.approx(1, abs=1e-5)
        assert np.corrcoef(before, after)[0, 1] == pytest.approx(1)  # the same order, the same distances
    assert abs(after.mean()) > 1e-3  # it is the demonstrations that are at 0
    normalise(model, [], answers, 3)
    assert np.mean(score_texts(model, answers, 3)) == pytest.approx(0, abs=1e-5)
    assert model.gain.requires_grad is model.bias.requires_grad is False


# -- the simulated annotator ------------------------------------------------------------------------------------------------

TASK = Task((Message("user", "What is 5 + 7?"),), ("12", "The answer is 12."), "arithmetic", "t1")
ANSWERS = [
    ("The answer is 12.", True),  # all of it: 1.0
    ("12", True),  # no sentence: .8
    ("I think 13", True),  # only finished: .1
    ("The answer is 13.", True),  # all but right: .5
    ("The answer is 13.", False),  # only direct: .2
    ("", True),  # nothing: 0
    ("12.", True),  # as good as the second
]


@pytest.mark.parametrize(
    ("tie_width", "ranks"),
    [(0.1, (1, 2, 5, 3, 4, 6, 2)), (1e-6, (1, 2, 5, 3, 4, 6, 2)), (0.3, (1, 1, 4, 2, 3, 4, 1)), (10.0, (1,) * 7)],
)
def test_without_noise_the_ranking_is_the_rubrics(tie_width: float, ranks: tuple[int, ...]) -> None:
    found = ranked(TASK, ANSWERS, 0.0, tie_width, random.Random(0))
    assert found.ranks == ranks
    assert found.responses == tuple(text for text, _ in ANSWERS)
    assert (found.prompt, found.labeler) == (TASK.prompt, "simulated")
    for order in itertools.islice(
        itertools.permutations(range(7)), 0, 5040, 411
    ):  # the order of asking does not matter
        shuffled = ranked(TASK, [ANSWERS[i] for i in order], 0.0, tie_width, random.Random(0))
        assert shuffled.ranks == tuple(ranks[i] for i in order)


def test_the_annotator_is_deterministic_and_errs_as_often_as_its_noise_says() -> None:
    first = [ranked(TASK, ANSWERS, 0.2, 0.1, random.Random(n)) for n in range(20)]
    assert first == [ranked(TASK, ANSWERS, 0.2, 0.1, random.Random(n)) for n in range(20)]
    assert len({c.ranks for c in first}) > 10
    # .3 apart with noise .3 on each: wrong with probability Φ(−.3 / (.3 √2)) = .2398; no ties at this width.
    n, wrong = 4_000, 0
    rng = random.Random(7)
    for _ in range(n):
        ranks = ranked(TASK, [ANSWERS[1], ANSWERS[3]], 0.3, 1e-6, rng).ranks
        assert sorted(ranks) == [1, 2]
        wrong += ranks == (2, 1)
    assert wrong / n == pytest.approx(0.2398, abs=4 * math.sqrt(0.24 * 0.76 / n))
