"""The sampler draws from the distribution that is trained: frequencies, log-probabilities, the first ratio."""

from __future__ import annotations

import pytest
import torch
from enumerated import END, LONGEST, NUMBER, PROMPT, Problem, distribution, policy
from torch import Tensor

from tercet.inference.generate import SamplingParams, generate
from tercet.posttraining.rl import rollouts as ro
from tercet.posttraining.rl.group_methods import GroupMethod
from tercet.posttraining.rl.policy_loss import PolicyObjective
from tercet.posttraining.rl.rollouts import Clock, generate_rollouts
from tercet.posttraining.rl.stage import GRPOConfig

SAMPLES = 100_000


def chi_square(counts: Tensor, p: Tensor) -> float:
    """The chance of a worse fit, answers that are expected fewer than 10 times put together."""
    expected = p * counts.sum()
    rare = expected < 10
    seen = torch.cat([counts[~rare], counts[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    statistic = ((seen - wanted).square() / wanted).sum()
    return float(torch.special.gammaincc(torch.tensor((len(seen) - 1) / 2, dtype=torch.float64), statistic / 2))


@pytest.mark.parametrize(("sampled", "fits"), [(1.0, True), (1.05, False)])
def test_frequencies_are_the_models_probabilities(sampled: float, fits: bool) -> None:
    model = policy(1)
    params = SamplingParams(LONGEST, sampled, stop_ids=(END,))
    done = generate(model, [PROMPT] * SAMPLES, params, range(SAMPLES), batch_size=5_000)
    counts = torch.bincount(torch.tensor([NUMBER[tuple(c.tokens)] for c in done]), minlength=len(NUMBER)).double()
    chance = chi_square(counts, distribution(model))
    assert (chance > 0.001) == fits, chance


def test_log_probabilities_ratio_and_first_tokens() -> None:
    problem = Problem(1)
    config = GRPOConfig(model="-", reward=("-",), prompts=("-",), batch_size=4, group_size=64, max_new_tokens=LONGEST)
    method = GroupMethod(config, problem.reference)
    r, done = generate_rollouts(
        method.policy.model, problem.reference, [PROMPT, (2, 1), (3,), (1,)],
        SamplingParams(LONGEST, 1.3, stop_ids=(END,)), range(256),
        lambda numbers, found: [float(len(c.tokens)) for c in found], group_size=64, end_id=END, missing_eos_score=-1.0,
        pad=0, version=0,
        clock=Clock(),
    )  # fmt: skip
    again = ro.logprobs(method.policy.model, r, 1.3)
    assert float((again - r.behaviour).abs().max()) < 1e-5
    for first in range(0, 256, 64):
        assert len({c.tokens[0] for c in done[first : first + 64]}) > 1
    _, metrics = PolicyObjective(1.3, 0.2, 0.2)(method.policy.model, method.prepare(r, 0.1))
    assert metrics["ratio"] == pytest.approx(metrics["actions"], rel=1e-5)  # π / π_sampler, not π / π_old
    wrong = PolicyObjective(1.0, 0.2, 0.2)(method.policy.model, method.prepare(r, 0.1))[1]
    # another temperature is noticed; by the gap, since the mean of π / π_sampler over the sampler's tokens is 1 for
    # every π
    assert wrong["sampler_gap"] / wrong["actions"] > 0.01
