"""Instruction tuning: the weight of a message, what truncation leaves, packing, and NEFTune's noise."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tercet
from helpers import At, World, assert_same_run, assistant, press_ctrl_c, records, tensors, user, write_rows, write_world
from tercet.data.formats.conversations import parse_conversation, parse_messages, to_messages, to_row
from tercet.data.types import Conversation, Message
from tercet.errors import ConfigError, ContextError, DataError
from tercet.model.transformer import Transformer
from tercet.posttraining.sft.neftune import NoisyNextToken, embedding_noise, noisy_batches
from tercet.posttraining.sft.stage import SFTConfig
from tercet.posttraining.sft.tune import load_conversations
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import Rendered, render, render_fitting, render_prompt
from tercet.training.learner import Learner
from tercet.training.losses import next_token, next_token_batch
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch, PackedSequences, pack_whole
from tercet.training.run import Interrupted, Run

Make = Callable[..., Transformer]
PLAIN = OptimizerConfig(lr=0.01, muon_lr=0.0)


def gradient(model: torch.nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).double()


# -- the weight of a message ------------------------------------------------------------------------------------------


def weighed(message: dict[str, str], weight: Any) -> dict[str, Any]:
    return {**message, "weight": weight}


HI, HELLO = user("Hi"), assistant("Hello.")


@pytest.mark.parametrize(
    ("messages", "weights", "counted"),
    [
        ([HI, HELLO], [None, None], [0, 1]),
        ([HI, weighed(HELLO, 0), HI, HELLO], [None, 0, None, None], [0, 0, 0, 1]),
        ([weighed(HI, 0.5), weighed(HELLO, 2)], [0.5, 2], [0.5, 2]),
        ([{"role": "system", "content": "Be brief.", "weight": 1}, HI, weighed(HELLO, 0)], [1, None, 0], [1, 0, 0]),
        ([weighed(HI, None), weighed(HELLO, None)], [None, None], [0, 1]),
    ],
)
def test_a_weight_is_read_and_written(
    messages: list[dict[str, Any]], weights: list[float | None], counted: list[float]
) -> None:
    found = parse_conversation({"messages": messages}, "a:1")
    assert [m.weight for m in found] == weights
    assert [m.loss_weight for m in found] == counted
    assert parse_conversation(json.loads(json.dumps(to_row(found))), "a:1") == found
    assert [m.get("weight") for m in to_messages(found)] == weights
    assert all(("weight" in row) == (m.weight is not None) for row, m in zip(to_messages(found), found))


def test_a_sharegpt_row_may_have_weights() -> None:
    turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello.", "weight": 0.25}]
    assert parse_conversation({"conversations": turns}, "a:1") == (
        Message("user", "Hi"),
        Message("assistant", "Hello.", 0.25),
    )


@pytest.mark.parametrize(
    ("weight", "found"),
    [
        (True, "found true or false"),
        ("0", "found a string"),
        ([0], "found a list"),
        (-0.5, "found -0.5"),
        (float("nan"), "found nan"),
        (float("inf"), "found inf"),
        (10**400, "found 1000"),
        (1e6 + 1, "from 0 "),
    ],
)
def test_a_wrong_weight_is_named_with_its_place(weight: Any, found: str) -> None:
    for row in (
        {"messages": [HI, weighed(HELLO, weight)]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "x", "weight": weight}]},
    ):
        with pytest.raises(DataError) as error:
            parse_conversation(row, "chats.jsonl:7")
        assert str(error.value).startswith('chats.jsonl:7: message 2: "weight" must be a number from 0')
        assert found in str(error.value)


def test_a_conversation_of_weight_0_is_refused_but_a_prompt_is_not() -> None:
    row = [HI, weighed(HELLO, 0)]
    with pytest.raises(DataError, match=r"a:1: every message has weight 0, so there is nothing to learn"):
        parse_conversation({"messages": row}, "a:1")
    assert parse_messages([*row, HI], "a:1", need_answer=False)[1].weight == 0


# -- in ids: with no merges a byte is a token -------------------------------------------------------------------------

SYSTEM = Message("system", "Yo", 0.5)
TURNS: Conversation = (
    SYSTEM,
    Message("user", "Hi"),
    Message("assistant", "Yo", 0.0),
    Message("user", "Hi", 3.0),
    Message("assistant", "Yo"),
)


def test_a_weight_counts_the_content_and_its_end(byte_tokenizer: Tokenizer) -> None:
    """Headers (8, 6 and 11 tokens) and line ends weigh 0, whatever the message weighs; then come "Yo" and its end."""
    rendered = render(byte_tokenizer, TURNS)
    headers = {"system": 8, "user": 6, "assistant": 11}
    wanted = []
    for role, weight in (("system", 0.5), ("user", 0.0), ("assistant", 0.0), ("user", 3.0), ("assistant", 1.0)):
        wanted += [0.0] * headers[role] + [weight] * 3 + [0.0]
    assert rendered.weights == wanted
    plain = tuple(Message(m.role, m.content) for m in TURNS)
    assert rendered.tokens == render(byte_tokenizer, plain).tokens
    assert render_prompt(byte_tokenizer, TURNS[:4]) == render_prompt(byte_tokenizer, plain[:4])


def test_what_fits_must_have_something_to_learn(byte_tokenizer: Tokenizer) -> None:
    """If only the first answer fits, which weighs 0, nothing is left; a system message with a weight is left."""
    first = len(render(byte_tokenizer, TURNS[1:3]))
    with pytest.raises(ContextError, match=f"fits into the context of {first} tokens has weight 0"):
        render_fitting(byte_tokenizer, TURNS[1:], first)
    assert render_fitting(byte_tokenizer, TURNS, first + 12) == (render(byte_tokenizer, TURNS[:3]), 2)
    assert render_fitting(byte_tokenizer, TURNS[1:], 10**6) == (render(byte_tokenizer, TURNS[1:]), 0)


def test_the_loss_counts_each_token_by_its_messages_weight(make_model: Make, tokenizer: Tokenizer) -> None:
    """Against a sum over messages, each alone behind what came before it; an answer of weight 0 is still read."""
    model = make_model(1, torch.float64, context_length=128)
    rendered = render(tokenizer, TURNS)
    rows = pack_whole([(rendered.tokens, rendered.weights)], 127, tokenizer.pad)
    loss, _ = next_token(model, next_token_batch(rows.take([0])))
    wanted, count = 0.0, 0.0
    for number, message in enumerate(TURNS):
        before = render(tokenizer, TURNS[:number]).tokens
        header = [tokenizer.im_start, *tokenizer.encode(message.role + "\n")]
        body = [*tokenizer.encode(message.content), tokenizer.im_end]
        logp = model(torch.tensor([[*before, *header, *body]])).detach()[0].log_softmax(-1)
        start = len(before) + len(header)
        nats = -sum(float(logp[start + i - 1, token]) for i, token in enumerate(body))
        weight = {0: 0.5, 1: 0.0, 2: 0.0, 3: 3.0, 4: 1.0}[number]
        wanted, count = wanted + weight * nats, count + weight * len(body)
    assert loss.item() == pytest.approx(wanted, rel=1e-10)
    assert next_token_batch(rows.take([0])).count == pytest.approx(count)


# -- packing ----------------------------------------------------------------------------------------------------------


def conversations(tokenizer: Tokenizer) -> list[Rendered]:
    """Twelve conversations of one to three turns, some with a system message, some with weights of their own."""
    out = []
    for n in range(12):
        turns = [Message("system", "Be brief.")] if n % 3 == 0 else []
        for turn in range(1 + n % 3):
            turns += [
                Message("user", "Well? " * (n % 4)),
                Message("assistant", f"It is {n}." * (turn + 1), [None, 0.5][n % 2]),
            ]
        out.append(render(tokenizer, tuple(turns)))
    return out


def alone(rendered: Sequence[Rendered], length: int, pad: int) -> PackedSequences:
    """Every conversation in a row of its own."""
    return PackedSequences.concatenate([pack_whole([(r.tokens, r.weights)], length, pad) for r in rendered])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-6)])
def test_packed_conversations_give_the_step_of_unpacked_ones(
    make_model: Make, tokenizer: Tokenizer, dtype: torch.dtype, tolerance: float
) -> None:
    """Logits of every conversation, loss and gradient; the packed batch also in micro-batches.

    Not closer in float64: the rotary tables are float32, and a packed text stands at other positions.
    """
    model, found = make_model(1, dtype, context_length=192), conversations(tokenizer)
    packed, single = (
        pack_whole([(r.tokens, r.weights) for r in found], 191, tokenizer.pad),
        alone(found, 191, tokenizer.pad),
    )
    assert len(packed) < len(single) == 12
    whole, apart = next_token_batch(packed), next_token_batch(single)
    assert whole.segments is not None
    logits, texts = model(whole.tokens, whole.segments).detach(), 0
    for row, segments in enumerate(whole.segments):
        for segment in range(int(segments.max()) + 1):
            at = (segments == segment).nonzero()[:, 0]
            ids, texts = whole.tokens[row][at], texts + 1
            assert any(ids.tolist() == r.tokens[: len(ids)] and len(ids) >= len(r) - 1 for r in found)
            torch.testing.assert_close(logits[row][at], model(ids[None])[0].detach(), atol=tolerance, rtol=0)
    assert texts == len(found)
    results = []
    for batches in ([apart], [whole], list(whole.split(1)), list(whole.split(2))):
        learner = Learner(model, PLAIN)
        metrics = learner.forward_backward(batches, next_token)
        results.append((metrics["loss"], gradient(model)))
        learner.optimizer.zero_grad()
    for loss, found_gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert float((found_gradient - results[0][1]).norm() / results[0][1].norm()) < tolerance


# -- NEFTune ----------------------------------------------------------------------------------------------------------


def rows_of(lengths: Sequence[Sequence[int]], length: int = 40) -> Batch:
    """Rows with texts of these lengths, the rest padding."""
    tokens = np.full((len(lengths), length + 1), 3, dtype=np.int32)
    segments = np.full((len(lengths), length + 1), -1, dtype=np.int32)
    for row, texts in enumerate(lengths):
        edges = np.cumsum([0, *texts])
        for number, (a, b) in enumerate(itertools.pairwise(edges)):
            segments[row, a:b] = number
            tokens[row, a:b] = np.random.default_rng([row, number]).integers(5, 300, b - a)
    return next_token_batch(PackedSequences(tokens, segments, (segments >= 0).astype(np.float32)))


LENGTHS = ([40], [25, 15], [7], [10, 10, 10])


def test_the_noise_is_uniform_and_scaled_by_the_length_of_its_text() -> None:
    """alpha / √(L·D) with L of the text, so that its norm is that of the paper whether it is packed or not."""
    size, alpha = 512, 5.0
    noise = embedding_noise(rows_of(LENGTHS), size, alpha, seed=3, step=8, first_row=0)
    assert noise.shape == (4, 40, size)
    for row, texts in enumerate(LENGTHS):
        at = 0
        for length in texts:
            part = noise[row, at : at + length].double()
            bound = alpha / math.sqrt(length * size)
            assert 0.998 * bound < float(part.abs().max()) <= bound * (1 + 1e-6)
            assert abs(float(part.mean())) < 5 * bound / math.sqrt(3 * length * size)
            assert float(part.norm()) == pytest.approx(alpha / math.sqrt(3), rel=0.03)
            for quantile in (0.1, 0.5, 0.8):  # uniform, not merely of the right variance
                share = float((part < (2 * quantile - 1) * bound).double().mean())
                assert share == pytest.approx(quantile, abs=5 * math.sqrt(0.25 / part.numel()))
            at += length
        assert not noise[row, at:].any(), "padding has no noise"


def test_noise_without_segments_is_of_whole_rows() -> None:
    batch = rows_of([[40], [40]])
    plain = Batch(batch.tokens, batch.targets, batch.weights, None)
    arguments = {"size": 8, "alpha": 5.0, "seed": 3, "step": 8, "first_row": 0}
    assert torch.equal(embedding_noise(plain, **arguments), embedding_noise(batch, **arguments))


def test_the_noise_depends_on_seed_step_and_place_alone() -> None:
    whole = rows_of(LENGTHS)

    def noise(size: int, seed: int = 3, step: int = 8) -> Tensor:
        placed = noisy_batches(list(whole.split(size)), step)
        return torch.cat([embedding_noise(p.batch, 16, 5.0, seed, p.step, p.first_row) for p in placed])

    first = noise(4)
    for size in (1, 2, 3):
        assert torch.equal(noise(size), first)
    for other in (noise(4, seed=4), noise(4, step=9)):
        assert float((other != first)[first != 0].double().mean()) > 0.99
    rows = embedding_noise(rows_of([[40]] * 4), 16, 5.0, 3, 8, 0)
    assert len({tuple(row.flatten()[:8].tolist()) for row in rows}) == 4


def test_the_noise_is_added_to_the_embeddings(make_model: Make) -> None:
    """As if the embedding of each token, every one another, were moved by it."""
    model, moved = make_model(1, torch.float64), make_model(1, torch.float64)
    tokens = torch.arange(40)[None]
    noise = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        moved.model.embed_tokens.weight[:40] += noise[0]
    assert torch.equal(model.hidden(tokens, noise=noise), moved.hidden(tokens))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_micro_batches_do_not_change_a_noisy_step(make_model: Make, dtype: torch.dtype, tolerance: float) -> None:
    whole, objective = rows_of(LENGTHS), NoisyNextToken(15.0, seed=3)
    model = make_model(1, dtype)
    learner = Learner(model, PLAIN)
    results = []
    for size in (4, 1, 3):
        metrics = learner.forward_backward(noisy_batches(list(whole.split(size)), 5), objective)
        results.append((metrics["loss"], gradient(model)))
        learner.optimizer.zero_grad()
    quiet = learner.forward_backward([whole], next_token)["loss"]
    assert abs(quiet - results[0][0]) > 1e-3
    for loss, other in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert float((other - results[0][1]).norm() / results[0][1].norm()) < tolerance


# -- the stage --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return write_world(tmp_path_factory.mktemp("world"))


STILL = {"lr": 0.0, "muon_lr": 0.0, "questions": (), "steps": 6, "eval_every": 2}


def test_noise_is_for_training_only(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model that stands still: training losses differ, every held-out loss is the same; by a spy, too."""
    seen: list[tuple[bool, bool]] = []
    hidden = Transformer.hidden

    def spy(model: Transformer, *args: Any, **options: Any) -> Tensor:
        seen.append((torch.is_grad_enabled(), options.get("noise") is not None))
        return hidden(model, *args, **options)

    quiet = world.run("sft", "quiet", **STILL)
    monkeypatch.setattr(Transformer, "hidden", spy)
    noisy = world.run("sft", "noisy", neftune_alpha=15.0, **{**STILL, "questions": (world.path("tasks.jsonl"),)})
    assert seen.count((True, True)) == 6
    assert set(seen) == {(True, True), (False, False)}
    heldout = [[row["heldout"] for row in run.metrics("heldout")] for run in (quiet, noisy)]
    assert heldout[0] == heldout[1]
    assert len(heldout[0]) == 4
    losses = [[row["loss"] for row in run.metrics("loss")] for run in (quiet, noisy)]
    assert all(a != b for a, b in zip(*losses))
    seen.clear()
    world.run("sft", "quiet-again", **STILL)
    assert not any(noise for _, noise in seen)


def test_a_noisy_run_that_was_stopped_ends_with_the_same_bits(world: World) -> None:
    whole = world.run("sft", "whole", neftune_alpha=5.0)
    with pytest.raises(Interrupted):
        world.run("sft", "stopped", neftune_alpha=5.0, progress=At(7, press_ctrl_c))
    tercet.resume(world.folder / "stopped")
    assert_same_run(world.folder / "stopped", whole.path)
    split = world.run("sft", "split", neftune_alpha=5.0, micro_batch=3)
    for one, other in zip(records(split.path), records(whole.path)):
        assert one == pytest.approx(other, rel=1e-3)


def test_a_weight_of_1_changes_nothing_and_one_of_0_does(world: World, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in Path(world.path("chats.jsonl")).read_text().splitlines()]
    runs = {}
    for name, weight in (("plain", None), ("one", 1), ("zero", 0)):
        extra = {} if weight is None else {"weight": weight}
        changed = [
            {"messages": [m if m["role"] == "user" or n % 3 else m | extra for m in row["messages"]]}
            for n, row in enumerate(rows)
        ]
        keep = [r for r in changed if any(m["role"] == "assistant" and m.get("weight", 1) for m in r["messages"])]
        data = write_rows(tmp_path / f"{name}.jsonl", keep)
        runs[name] = world.run(
            "sft", f"weight-{name}", data=(data,), questions=(), heldout=(world.path("chats.jsonl"),)
        )
    assert tensors(runs["plain"].path) == tensors(runs["one"].path)
    assert tensors(runs["plain"].path) != tensors(runs["zero"].path)


def test_no_question_is_on_both_sides(world: World, tmp_path: Path) -> None:
    """Conversations that begin with one question stay together, and none is lost."""
    rows = [{"messages": [user(f"{n % 20}?"), assistant(f"{n}."), HI, HELLO]} for n in range(60)]
    world.make_parents("sft")
    config = world.config("sft", data=(write_rows(tmp_path / "rows.jsonl", rows),), heldout_share=0.4)
    sides = load_conversations(config, Run(world.path("base")))
    train, heldout = ([c[0].content for _, c in side] for side in sides)
    assert len(train) + len(heldout) == 60
    assert len(set(train)) + len(set(heldout)) == len({*train, *heldout}) == 20


def test_conversations_of_which_nothing_is_left_to_learn_are_left_out_and_counted(world: World, tmp_path: Path) -> None:
    rows = [{"messages": [HI, weighed(HELLO, 0), user("Well? " * 60), HELLO]}] * 2
    rows += [{"messages": [user(f"{n}?"), assistant("Yes."), user("Well? " * 60), HELLO]} for n in range(9)]
    data = write_rows(tmp_path / "long.jsonl", rows)
    world.make_parents("sft")
    run = world.run("sft", "left-out", data=(data,), heldout=(world.path("chats.jsonl"),), questions=(), steps=1)
    assert "9 of 11 conversations truncated after a whole message; 2 left out" in (run.path / "log.txt").read_text()
    with pytest.raises(ContextError, match=r"long\.jsonl:1: all that fits .* has weight 0"):
        world.run("sft", "refused", data=(data,), heldout=(world.path("chats.jsonl"),), long_conversations="refuse")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([user("Yes?"), assistant("Yes.")], ""),
        (
            [user("Yes?"), assistant("Yes."), user("Well? " * 60), HELLO],
            "1 of 2 conversations truncated after a whole mes",
        ),
        (
            [HI, weighed(HELLO, 0), user("Well? " * 60), HELLO],
            "0 of 2 conversations truncated after a whole message; 1 left",
        ),
    ],
    ids=["whole", "cut", "left out"],
)
def test_the_log_says_what_was_cut_or_left_out_and_nothing_where_all_fit(
    world: World, tmp_path: Path, row: list[dict[str, Any]], said: str
) -> None:
    world.make_parents("sft")
    data = write_rows(tmp_path / "rows.jsonl", [{"messages": [HI, HELLO]}, {"messages": row}])
    heldout = write_rows(tmp_path / "heldout.jsonl", [{"messages": [user("No?"), assistant("No.")]}] * 2)
    run = world.run("sft", f"log-{said[:1]}", data=(data,), heldout=(heldout,), questions=(), steps=1)
    log = (run.path / "log.txt").read_text()
    assert said in log
    assert ("conversations truncated" in log) == bool(said)


def test_noise_is_off_by_default_and_never_negative(world: World) -> None:
    assert SFTConfig(model="m", data=("d",)).neftune_alpha == 0
    with pytest.raises(ConfigError, match="--neftune-alpha"):
        SFTConfig(model="m", data=("d",), neftune_alpha=-1.0)
    assert Run(world.run("sft", "default", steps=1).path).config["neftune_alpha"] == 0
