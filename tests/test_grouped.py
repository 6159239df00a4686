"""Answers that share their prompt in one row: the same numbers and gradients as one row for each answer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tercet.errors import ContextError
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.training.shared_prompts import pack_groups

Make = Callable[..., Transformer]
PROMPTS = [[5, 6, 7], [8], [9, 10, 11, 12, 13]]
ANSWERS = [[[1, 2], [3], [1, 2, 3, 4]], [[20, 21, 22]], [[30], [31, 32]]]


def gradient(model: nn.Module) -> torch.Tensor:
    found = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    model.zero_grad()
    return found


def alone(model: Transformer, prompt: list[int], answer: list[int], temperature: float = 1.0) -> torch.Tensor:
    """log π of each token of an answer, one row, one token at a time."""
    logits = model(torch.tensor([prompt + answer]))[0] / temperature
    return torch.stack([logits[len(prompt) + i - 1].log_softmax(-1)[t] for i, t in enumerate(answer)])


def test_logprobs_are_those_of_each_answer_alone(make_model: Make) -> None:
    model = make_model(1, torch.float64)
    batch = pack_groups(PROMPTS, ANSWERS)
    weights = torch.linspace(-1, 1, batch.answers, dtype=torch.float64)
    found = batch.logprobs(model)
    (found * weights).sum().backward()
    got = gradient(model)
    wanted = torch.stack([alone(model, p, a).sum() for p, mine in zip(PROMPTS, ANSWERS) for a in mine])
    (wanted * weights).sum().backward()
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    torch.testing.assert_close(got, gradient(model), atol=1e-10, rtol=0)
    assert batch.lengths().tolist() == [2, 1, 4, 3, 1, 2]


def test_token_logprobs_are_in_the_order_of_the_answers(make_model: Make) -> None:
    model = make_model(1, torch.float64)
    batch = pack_groups(PROMPTS, ANSWERS)
    found, entropy = batch.token_logprobs(model, temperature=0.7)
    wanted = torch.cat([alone(model, p, a, 0.7) for p, mine in zip(PROMPTS, ANSWERS) for a in mine])
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=0)
    assert (entropy > 0).all()


def test_scores_are_read_at_each_answers_last_token(make_model: Make) -> None:
    model = ValueHeadModel(make_model(1, torch.float64), seed=2).double()
    found = pack_groups(PROMPTS, ANSWERS).scores(model)
    wanted = [model(torch.tensor([p + a]))[0, -1] for p, mine in zip(PROMPTS, ANSWERS) for a in mine]
    torch.testing.assert_close(found, torch.stack(wanted), atol=1e-10, rtol=0)


def test_the_order_of_prompts_and_answers_does_not_matter(make_model: Make) -> None:
    model = make_model(1, torch.float64)
    found = pack_groups(PROMPTS, ANSWERS).logprobs(model)
    turned = pack_groups(PROMPTS[::-1], [mine[::-1] for mine in ANSWERS[::-1]]).logprobs(model)
    torch.testing.assert_close(found, turned.flip(0), atol=1e-10, rtol=0)


def test_every_prompt_and_answer_is_computed_once() -> None:
    batch = pack_groups(PROMPTS, ANSWERS)
    texts = [p + [t for answer in mine for t in answer] for p, mine in zip(PROMPTS, ANSWERS)]
    assert batch.tokens.tolist() == [[t for text in texts for t in text]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 3, 3, 4, 5, 6, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 5, 6]]


def test_the_context_counts_one_answer_not_all(make_model: Make) -> None:
    model = make_model(1, torch.float64)
    length = model.config.context_length
    long = [[7] * (length - 10) for _ in range(3)]
    assert pack_groups([[5] * 10], [long]).logprobs(model).shape == (3,)
    with pytest.raises(ContextError):
        pack_groups([[5] * 11], [long]).logprobs(model)


@pytest.mark.parametrize(("prompts", "answers"), [([[]], [[[1]]]), ([[1]], [[[]]]), ([[1]], [[]])])
def test_nothing_may_be_empty(prompts: list[list[int]], answers: list[list[list[int]]]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        pack_groups(prompts, answers)
