"""An objective with targets of its own goes through the same feed and learner: masked tokens, seen from both sides."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tercet.model.attention import Bidirectional, Causal, Kind
from tercet.model.ops.cross_entropy import linear_cross_entropy
from tercet.model.transformer import Transformer
from tercet.training.learner import Learner, Objective
from tercet.training.loader import BatchLoader
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import PAD_SEGMENT, Batch, PackedSequences, pack_whole

MASK, PAD, WORDS, HALF = 0, 1, range(2, 12), 3


def repeated(count: int, seed: int) -> PackedSequences:
    """Texts a b c a b c, two in a row: a token is known from its copy alone, which is before it or after it."""
    halves = np.random.default_rng(seed).integers(WORDS.start, WORDS.stop, (count, HALF))
    texts = [([*half, *half], [1.0] * 2 * HALF) for half in halves.tolist()]
    return pack_whole(texts, 4 * HALF, PAD)  # a token of padding in each row


def masked_batch(rows: PackedSequences, seed: int, step: int) -> Batch:
    """Hide one token of each text; it is the target, in its own place."""
    rng = np.random.default_rng([seed, 9, step])
    hidden = np.zeros(rows.tokens.shape, dtype=bool)
    for row, segments in enumerate(rows.segments):
        for segment in set(segments.tolist()) - {PAD_SEGMENT}:
            hidden[row, rng.choice(np.flatnonzero(segments == segment))] = True
    return Batch(
        tokens=torch.from_numpy(np.where(hidden, MASK, rows.tokens).astype(np.int64)),
        targets=torch.from_numpy(rows.tokens.astype(np.int64)),
        weights=torch.from_numpy(hidden * rows.weights),
        segments=torch.from_numpy(rows.segments),
    )


def masked_token(kind: Kind) -> Objective[Batch]:
    def objective(model: Transformer, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        at = batch.weights.flatten().nonzero()[:, 0]
        hidden = model.hidden(batch.tokens, batch.segments, attention=kind, at=at)
        loss = linear_cross_entropy(
            hidden, model.output_weight, batch.targets.flatten()[at], batch.weights.flatten()[at]
        )
        return loss, {"loss": float(loss.detach())}

    return objective


@pytest.mark.parametrize("kind", [Bidirectional(), Causal()], ids=["bidirectional", "causal"])
def test_a_masked_objective_learns_what_only_both_sides_tell(
    make_model: Callable[..., Transformer], kind: Kind
) -> None:
    model = Transformer(make_model(vocab_size=12, context_length=16).config, seed=1)
    feed = BatchLoader({"text": repeated(400, 1)}, None, 32, 5, masked_batch)
    learner = Learner(model, OptimizerConfig(lr=0.01, muon_lr=0.02))
    for step in range(150):
        learner.forward_backward(list(feed.batch(step).split(16)), masked_token(kind))
        learner.optim_step(1.0)
    test = masked_batch(repeated(200, 2), 0, 0)
    with torch.no_grad():
        loss = float(masked_token(kind)(model, test)[0]) / test.count
    chance = float(np.log(len(WORDS)))
    if isinstance(kind, Bidirectional):
        assert loss < 0.1 * chance
    else:  # half of the hidden tokens stand before their copy
        assert 0.4 * chance < loss < 0.8 * chance


def test_a_feed_gives_the_same_batch_for_the_same_step() -> None:
    def feed(seed: int) -> BatchLoader:
        return BatchLoader({"text": repeated(40, 1)}, None, 8, seed, masked_batch)

    first, again, later, other = feed(5).batch(3), feed(5).batch(3), feed(5).batch(4), feed(6).batch(3)
    assert all(torch.equal(getattr(first, n), getattr(again, n)) for n in ("tokens", "targets", "weights", "segments"))
    assert not torch.equal(first.tokens, later.tokens)
    assert not torch.equal(first.tokens, other.tokens)
    assert (first.weights.sum(1) == 2).all()  # one hidden token for each of the two texts
