"""Nothing is made on the CPU that belongs where the model is: torch's device "meta" raises where the two meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tercet.inference.prefix_sharing import lay_out
from tercet.inference.reward_scores import last_hidden
from tercet.model.attention import Bidirectional, Kind, KVCache, Prefix, Window, segment_mask
from tercet.model.config import LoRAConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.lora import apply_lora
from tercet.model.ops.cross_entropy import linear_cross_entropy
from tercet.model.transformer import Transformer
from tercet.training.learner import Learner
from tercet.training.losses import next_token_batch, token_kl, token_logprobs
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch, PackedSequences, to_device
from tercet.training.shared_prompts import PackedGroups, pack_groups

Make = Callable[..., Transformer]
META = torch.device("meta")


@pytest.fixture
def model(make_model: Make) -> Transformer:
    return make_model(1).to(META)


def ids(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long, device=META)


def text() -> Batch:
    tokens = np.arange(20, dtype=np.int32).reshape(2, 10)
    return next_token_batch(PackedSequences(tokens, np.zeros_like(tokens), np.ones(tokens.shape, dtype=np.float32)))


def devices(value: Any) -> set[str]:
    """Of every tensor in a dataclass or tuple."""
    if isinstance(value, Tensor):
        return {value.device.type}
    parts = [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else value
    return {d for part in parts for d in devices(part)} if isinstance(parts, list | tuple) else set()


def test_the_control_meta_and_cpu_do_not_mix(model: Transformer) -> None:
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.hidden(torch.zeros(1, 4, dtype=torch.long), noise=torch.zeros(1, 4, 32))
    with pytest.raises((RuntimeError, NotImplementedError)):
        model.hidden(ids(1, 4), attention=Prefix(torch.zeros(1, 4, 4, dtype=torch.long)))


@pytest.mark.parametrize("kind", [Bidirectional(), Prefix(2), Window(3)], ids=lambda kind: type(kind).__name__)
def test_hidden_states_and_masks(model: Transformer, kind: Kind) -> None:
    for attention in ({}, {"attention": kind}):
        hidden = model.hidden(ids(2, 9), at=ids(5), **attention)
        assert (hidden.device, hidden.shape) == (META, (5, 32))
    assert segment_mask(ids(2, 9).int(), kind).device == META


def test_shared_prefixes(model: Transformer) -> None:
    batch = to_device(pack_groups([[1, 2, 3], [4]], [[[5], [6, 7]], [[8]]]), META)
    x = model.model.embed_tokens(batch.tokens)
    rope = model.rope_cos[batch.positions], model.rope_sin[batch.positions]
    out = model.model.layers[0](x, rope, batch.attention, None, 0)
    assert (out.device, out.shape) == (META, x.shape)
    assert batch.sum(torch.zeros(4, device=META)).device == META
    assert devices(to_device(lay_out([[1, 2], [1, 3, 4]] * 2).attention, META)) == {"meta"}


def test_losses_and_log_probabilities(model: Transformer) -> None:
    hidden = torch.zeros(7, 32, device=META, requires_grad=True)
    loss = linear_cross_entropy(hidden, model.output_weight, ids(7), torch.zeros(7, device=META))
    logp, entropy = token_logprobs(model, hidden, ids(7), 0.7)
    kl = token_kl(model, hidden, model, hidden.detach())
    assert {x.device for x in (loss, logp, entropy, kl)} == {META}
    (loss + logp.sum() + kl.sum()).backward()
    assert hidden.grad is not None
    assert hidden.grad.device == META
    assert ValueHeadModel(model).to(META)(ids(2, 5)).device == META


def test_hidden_states_at_the_ends_of_texts(model: Transformer) -> None:
    assert last_hidden(model, [[1, 2, 3], [4]], 0).device == META


def test_the_cache(model: Transformer) -> None:
    cache = KVCache(model.config, 2, 9, model.output_weight)
    model.hidden(ids(2, 5), cache=cache)
    cache.reserve(3)
    assert cache.mask(Window(3)).device == META
    keys, values = cache.append(1, *torch.zeros(2, 2, 1, 3, 16, device=META))
    cache.keep(ids(1))
    assert {x.device for x in (keys, values, cache.keys, cache.lengths)} == {META}


def test_adapters_are_made_where_the_layer_is(model: Transformer) -> None:
    apply_lora(model, LoRAConfig(2), seed=1)
    assert {p.device for p in model.parameters()} == {META}
    assert model.hidden(ids(1, 4)).device == META


@dataclass(frozen=True)
class Counted:
    """A batch of another kind, as the preference methods have."""

    rows: PackedGroups
    count: float


class SeenError(Exception):
    """Where the objective has seen enough."""


def test_the_learner_moves_batches_to_its_model() -> None:
    learner, seen = Learner(nn.Linear(1, 1).to(META), OptimizerConfig()), list[set[str]]()

    def objective(model: nn.Linear, batch: Any) -> tuple[Tensor, dict[str, float]]:
        seen.append(devices(batch))
        raise SeenError

    assert learner.device == META
    batches: list[Any] = [text(), Counted(pack_groups([[1, 2]], [[[3], [4, 5]]]), 2.0)]
    for batch in batches:
        with pytest.raises(SeenError):
            learner.forward_backward([batch], objective)
        assert devices(batch) == {"cpu"}
    assert seen == [{"meta"}, {"meta"}]


def test_a_move_changes_nothing_else() -> None:
    for batch in (text(), pack_groups([[1, 2]], [[[3], [4, 5]]])):
        moved = to_device(batch, META)
        assert type(moved) is type(batch)
        assert devices(moved) == {"meta"}
        again = to_device(batch, torch.device("cpu"))
        assert all(
            torch.equal(getattr(again, f.name), getattr(batch, f.name))
            for f in fields(batch)
            if isinstance(getattr(batch, f.name), Tensor)
        )
