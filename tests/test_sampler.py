"""The sampler against step-by-step full forward passes, against the trainer, and against statistics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from tercet.errors import ConfigError, ContextError
from tercet.inference import generate as sampler
from tercet.inference.generate import Completion, SamplingParams, generate, pick
from tercet.model.transformer import Transformer
from tercet.posttraining.rl.rollouts import check_sampling
from tercet.training.shared_prompts import pack_groups

Make = Callable[..., Transformer]
MIXED = (3, 17, 1, 30, 17, 9)  # lengths of the prompts of a batch


def prompts_of(lengths: Sequence[int], vocab: int = 300) -> list[list[int]]:
    return [np.random.default_rng(100 + n).integers(0, vocab, size).tolist() for n, size in enumerate(lengths)]


@torch.no_grad()
def naive_greedy(model: Transformer, prompt: Sequence[int], count: int) -> tuple[list[int], list[float]]:
    """The likeliest token, again and again, the whole text anew at each step."""
    tokens, values = list(prompt), []
    for _ in range(count):
        logp = model(torch.tensor([tokens]))[0, -1].double().log_softmax(-1)
        tokens.append(int(logp.argmax()))
        values.append(float(logp.max()))
    return tokens[len(prompt) :], values


def texts(done: Sequence[Completion]) -> list[list[int]]:
    return [c.tokens for c in done]


def assert_same(a: Sequence[Completion], b: Sequence[Completion]) -> None:
    assert texts(a) == texts(b)
    assert [c.finish for c in a] == [c.finish for c in b]
    for x, y in zip(a, b):
        assert x.logprobs == pytest.approx(y.logprobs, abs=1e-5)


# -- what is sampled --------------------------------------------------------------------------------------------------


def test_cached_greedy_decoding_equals_full_forward_passes(make_model: Make) -> None:
    model = make_model(1)
    for prompt, done in zip(prompts_of(MIXED), generate(model, prompts_of(MIXED), SamplingParams(30, 0.0), [0] * 6)):
        tokens, values = naive_greedy(model, prompt, 30)
        assert done.tokens == tokens
        assert done.logprobs == pytest.approx(values, abs=1e-4)
        assert done.finish == "length"


def test_one_step_follows_the_softmax(make_model: Make) -> None:
    """20 000 samples: Pearson's χ² stays under the .999 quantile for 11 degrees of freedom, 31.26."""
    model = make_model(4, vocab_size=12)
    prompt, n, temperature = [4, 8, 1], 20_000, 1.4
    done = generate(model, [prompt] * n, SamplingParams(1, temperature), range(n), batch_size=4_000)
    found = np.bincount([c.tokens[0] for c in done], minlength=12)
    with torch.no_grad():
        p = (model(torch.tensor([prompt]))[0, -1].double() / temperature).softmax(-1).numpy()
    assert p.max() > 3 / 12  # far enough from uniform
    assert (p * n).min() > 5
    assert float(((found - p * n) ** 2 / (p * n)).sum()) < 31.26


def test_steps_and_seeds_are_independent(make_model: Make) -> None:
    """A model with 5 equally likely tokens gives 25 equally likely pairs: 24 degrees of freedom, 0.999 quantile 51.18.

    Pairs of one text's neighbouring steps, and of the same step of requests with neighbouring seeds.
    """
    model = make_model(4, vocab_size=5)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    n = 2_000
    done = np.array(texts(generate(model, [[1]] * n, SamplingParams(3), range(n), batch_size=n)))
    for first, second in ((done[:, 0], done[:, 1]), (done[:, 1], done[:, 2]), (done[:-1, 0], done[1:, 0])):
        found = np.bincount(5 * first + second, minlength=25)
        wanted = len(first) / 25
        assert float(((found - wanted) ** 2 / wanted).sum()) < 51.18


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_log_probabilities_are_those_of_the_trainer(make_model: Make, temperature: float) -> None:
    model = make_model(3)
    prompts = prompts_of(MIXED)
    done = generate(model, prompts, SamplingParams(25, temperature, stop_ids=tuple(range(0, 300, 9))), range(6))
    assert len({len(c.tokens) for c in done}) > 2
    batch = pack_groups(prompts, [[c.tokens] for c in done])
    with torch.no_grad():
        logp, _ = batch.token_logprobs(model, temperature)
    flat = [value for c in done for value in c.logprobs]
    assert flat == pytest.approx(logp.tolist(), abs=1e-5)
    if temperature != 1:
        assert flat != pytest.approx(batch.token_logprobs(model)[0].tolist(), abs=1e-2)


def test_log_probabilities_are_taken_before_top_k_and_top_p(make_model: Make) -> None:
    model = make_model(3)
    for params in (SamplingParams(8, 1.3, top_k=2), SamplingParams(8, 1.3, top_p=0.4)):
        done = generate(model, prompts_of(MIXED), params, range(6))
        with torch.no_grad():
            logp, _ = pack_groups(prompts_of(MIXED), [[c.tokens] for c in done]).token_logprobs(model, 1.3)
        assert [value for c in done for value in c.logprobs] == pytest.approx(logp.tolist(), abs=1e-5)


# -- what it does not depend on ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_prompt_in_a_batch_is_as_if_alone(make_model: Make, temperature: float) -> None:
    model = make_model(4)
    prompts, seeds = prompts_of(MIXED), [5, 6, 7, 8, 9, 10]
    params = SamplingParams(30, temperature, stop_ids=(1, 2, 3, 4, 5))
    together = generate(model, prompts, params, seeds)
    alone = [generate(model, [p], params, [s])[0] for p, s in zip(prompts, seeds)]
    assert_same(together, alone)
    order = [3, 0, 5, 1, 4, 2]
    mixed = generate(model, [prompts[i] for i in order], params, [seeds[i] for i in order], batch_size=4)
    assert_same([mixed[order.index(i)] for i in range(6)], together)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_shared_prompt_is_read_once_and_changes_nothing(
    make_model: Make, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups of answers: the first tokens differ, and each is what it would be alone."""
    model = make_model(3)
    prompts = [p for p in prompts_of(MIXED) for _ in range(4)]
    params = SamplingParams(12, temperature, stop_ids=tuple(range(0, 300, 9)))
    read = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, **more: read.append(tokens.numel()) or hidden(tokens, **more))
    together = generate(model, prompts, params, range(len(prompts)))
    assert read[0] == len({tuple(p[: n + 1]) for p in prompts for n in range(len(p))})
    for i in range(0, len(prompts), 3):
        alone = generate(model, [prompts[i]], params, [i])[0]
        assert alone.tokens == together[i].tokens
        assert alone.logprobs == pytest.approx(together[i].logprobs, abs=1e-5)
    if temperature:
        assert all(len({c.tokens[0] for c in together[a : a + 4]}) > 1 for a in range(0, len(prompts), 4))


def test_the_seed_decides(make_model: Make) -> None:
    model = make_model(4)
    prompt, params = prompts_of([6])[0], SamplingParams(20)
    group = generate(model, [prompt] * 8, params, range(8))
    assert_same(group, generate(model, [prompt] * 8, params, range(8)))
    assert len({tuple(c.tokens) for c in group}) == 8
    assert len({c.tokens[0] for c in group}) > 3  # the first token is not shared by all samples of a prompt
    assert len({tuple(c.tokens) for c in generate(model, [prompt] * 4, params, [1, -1, 2**64 - 2, 2**63])}) == 4


def test_a_lower_limit_gives_the_beginning(make_model: Make) -> None:
    model = make_model(4)
    short = generate(model, prompts_of(MIXED), SamplingParams(7), range(6))
    long = generate(model, prompts_of(MIXED), SamplingParams(20), range(6))
    assert texts(short) == [c.tokens[:7] for c in long]


@pytest.mark.parametrize("every", [1, 3, 10_000])
def test_throwing_finished_sequences_out_changes_nothing(
    make_model: Make, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    model = make_model(5)
    prompts = prompts_of([4 + n % 5 for n in range(12)])
    params = SamplingParams(40, stop_ids=tuple(range(0, 300, 12)))
    usual = generate(model, prompts, params, range(12))
    lengths = sorted(len(c.tokens) for c in usual)
    assert lengths[0] < 8 < 16 < lengths[-1]  # some leave before the first clearing and some stay beyond the second
    monkeypatch.setattr(sampler, "_COMPACT_EVERY", every)
    assert_same(generate(model, prompts, params, range(12)), usual)


# -- how it ends ------------------------------------------------------------------------------------------------------


def test_a_stop_token_ends_the_text_and_is_part_of_it(make_model: Make) -> None:
    model = make_model(2)
    (prompt,) = prompts_of([5])
    tokens, values = naive_greedy(model, prompt, 12)
    assert len(set(tokens)) == 12
    for stop in set(tokens):
        end = tokens.index(stop) + 1
        for limit, finish in ((12, "stop"), (end, "stop"), (end - 1, "length")):
            if limit:  # "stop" also where it is the last token that there was room for
                (done,) = generate(model, [prompt], SamplingParams(limit, 0.0, stop_ids=(299, stop)), [0])
                assert (done.tokens, done.finish) == (tokens[: min(limit, end)], finish)
                assert done.logprobs == pytest.approx(values[: min(limit, end)], abs=1e-4)


def test_a_prompt_near_the_end_gets_the_room_that_is_left(make_model: Make) -> None:
    model = make_model(6)
    for length in (61, 62, 63):
        (prompt,) = prompts_of([length])
        (done,) = generate(model, [prompt], SamplingParams(20, 0.0), [0])
        assert done.tokens == naive_greedy(model, prompt, 64 - length)[0]
        assert done.finish == "length"


def test_a_prompt_near_the_end_together_with_short_ones(make_model: Make) -> None:
    """It ends long before the others do and must not carry on behind the context's end."""
    model = make_model(6)
    prompts = prompts_of([62, 5, 40])
    together = generate(model, prompts, SamplingParams(30), [1, 2, 3])
    assert [len(c.tokens) for c in together] == [2, 30, 24]
    assert_same(together, [generate(model, [p], SamplingParams(30), [s])[0] for p, s in zip(prompts, (1, 2, 3))])


def test_a_sequence_that_stopped_near_the_end_does_not_disturb_the_others(make_model: Make) -> None:
    """As above, but it ended by a stop token."""
    model = make_model(1)
    prompts = prompts_of([60, 5])
    first = naive_greedy(model, prompts[0], 1)[0][0]
    together = generate(model, prompts, SamplingParams(12, 0.0, stop_ids=(first,)), [1, 2])
    assert (together[0].tokens, together[0].finish) == ([first], "stop")
    assert len(together[1].tokens) == 12
    assert_same(together[1:], generate(model, prompts[1:], SamplingParams(12, 0.0, stop_ids=(first,)), [2]))


@pytest.mark.parametrize("length", [0, 64, 65])
def test_a_prompt_without_room_is_refused(make_model: Make, length: int) -> None:
    with pytest.raises(ContextError, match=f"prompt 1 has {length} tokens"):
        generate(make_model(), [[1, 2], [0] * length], SamplingParams(), [0, 1])


def test_every_token_is_told_in_order(make_model: Make) -> None:
    told: dict[int, list[int]] = {i: [] for i in range(6)}
    done = generate(
        make_model(7), prompts_of(MIXED), SamplingParams(20, stop_ids=tuple(range(40))), range(6),
        on_token=lambda i, token: told[i].append(token), batch_size=4,
    )  # fmt: skip
    assert told == dict(enumerate(texts(done)))
    assert generate(make_model(7), [], SamplingParams(), []) == []


# -- picking one token ------------------------------------------------------------------------------------------------

P = torch.tensor([0.05, 0.3, 0.1, 0.35, 0.15, 0.05 - 1e-3, 1e-3], dtype=torch.float64)
GRID = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000


def shares(params: SamplingParams) -> list[float]:
    """How often each token is picked over an even grid of random numbers: its probability, to 1 / 20 000."""
    chosen, logp = pick(P.log().float().expand(len(GRID), -1), params, GRID)
    base = (P.log() / (params.temperature or 1.0)).log_softmax(-1)
    torch.testing.assert_close(logp, base[chosen], atol=1e-6, rtol=0)
    return (torch.bincount(chosen, minlength=len(P)) / len(GRID)).tolist()


def restricted(allowed: Sequence[int], temperature: float = 1.0) -> list[float]:
    p = [float(x) ** (1 / temperature) if i in allowed else 0.0 for i, x in enumerate(P)]
    return [x / sum(p) for x in p]


@pytest.mark.parametrize(
    ("params", "allowed"),
    [
        (SamplingParams(), range(7)),
        (SamplingParams(temperature=2.0), range(7)),
        (SamplingParams(temperature=0.0), [3]),
        (SamplingParams(temperature=0.0, top_k=3, top_p=0.5), [3]),
        (SamplingParams(top_k=1), [3]),
        (SamplingParams(top_k=3), [1, 3, 4]),
        (SamplingParams(top_k=99), range(7)),
        (SamplingParams(top_p=0.34), [3]),
        (SamplingParams(top_p=0.36), [1, 3]),
        (SamplingParams(top_p=0.64), [1, 3]),
        (SamplingParams(top_p=0.66), [1, 3, 4]),
        (SamplingParams(top_p=0.9989), [0, 1, 2, 3, 4, 5]),
        (SamplingParams(top_k=3, top_p=0.8), [1, 3]),  # of the three's mass, .35 + .3 of .8 reach .8
        (SamplingParams(top_k=3, top_p=0.82), [1, 3, 4]),
        (SamplingParams(temperature=2.0, top_p=0.5), [1, 3, 4]),  # at temperature 1 two would do
        (SamplingParams(temperature=0.5, top_k=2), [1, 3]),
    ],
    ids=str,
)
def test_exactly_the_allowed_tokens_in_their_proportions(params: SamplingParams, allowed: Sequence[int]) -> None:
    found = shares(params)
    assert [i for i, x in enumerate(found) if x] == list(allowed)
    assert found == pytest.approx(restricted(allowed, params.temperature or 1.0), abs=1.5e-4)


def test_the_extreme_random_numbers_pick_allowed_tokens() -> None:
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    for vocabulary in (7, 50_000):
        logits = torch.zeros(2, vocabulary)
        logits[:, [0, -1]] = -torch.inf  # impossible at both ends
        chosen, logp = pick(logits, SamplingParams(), ends)
        assert chosen.tolist() == [1, vocabulary - 2]
        assert logp.tolist() == pytest.approx([-math.log(vocabulary - 2)] * 2)


def test_pick_leaves_the_logits_alone() -> None:
    for dtype in (torch.float32, torch.float64):
        logits: Tensor = P.log().to(dtype)[None].clone()
        before = logits.clone()
        pick(logits, SamplingParams(top_k=2, top_p=0.9), torch.tensor([0.5], dtype=torch.float64))
        assert torch.equal(logits, before)


def test_top_k_in_whole_generations(make_model: Make) -> None:
    model = make_model(8)
    (prompt,) = prompts_of([5])
    with torch.no_grad():
        best = set(model(torch.tensor([prompt]))[0, -1].topk(3).indices.tolist())
    done = generate(model, [prompt] * 60, SamplingParams(1, 2.0, top_k=3), range(60))
    assert {c.tokens[0] for c in done} == best


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.9),
        SamplingParams(temperature=0.0),
    ],
    ids=["top-k", "top-p", "greedy"],
)
def test_rollouts_refuse_what_would_bias_the_ratio(params: SamplingParams) -> None:
    """With any of these, π_old is not the softmax that the trainer computes."""
    with pytest.raises(ConfigError, match="plain sampling"):
        check_sampling(params)


@pytest.mark.parametrize(
    "settings", [{"max_new_tokens": 0}, {"temperature": -0.1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="--" + next(iter(settings)).replace("_", "-")):
        SamplingParams(**settings)  # type: ignore[arg-type]


def test_every_prompt_needs_a_seed(make_model: Make) -> None:
    with pytest.raises(ConfigError, match="2 prompts but 1 seeds"):
        generate(make_model(), [[1], [2]], SamplingParams(), [0])
