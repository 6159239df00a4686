"""oneDNN's products in place of MKL's: the same logits, for as long as the block lasts, and only there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tercet.model.config import LoRAConfig
from tercet.model.lora import apply_lora
from tercet.model.packed import packed
from tercet.model.transformer import Transformer

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.mark.parametrize("adapted", [False, True])
def test_the_logits_stay_and_the_layers_come_back(make_model: Callable[..., Transformer], adapted: bool) -> None:
    model = make_model()
    if adapted:
        apply_lora(model, LoRAConfig(2, 4.0, ("q_proj", "down_proj")), seed=0)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_()
    before, layers = model(IDS), sum(type(m) is nn.Linear for m in model.modules())
    with torch.no_grad(), packed(model):
        assert model.hidden(IDS).isfinite().all()
        used = sum("forward" in vars(m) for m in model.modules())
        torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
        with packed(model):
            pass
        assert ("logits" in vars(model)) == torch.backends.mkldnn.is_available()
    assert 0 < used < layers if adapted else used == layers or not torch.backends.mkldnn.is_available()
    with pytest.raises(ZeroDivisionError), packed(model):
        1 / 0  # noqa: B018
    assert not any({"forward", "logits"} & vars(m).keys() for m in model.modules())
    assert torch.equal(model(IDS), before)
    model(IDS).sum().backward()  # gradients as ever
    with torch.no_grad():
        model.output_weight.mul_(2)
        other = model(IDS)
        with packed(model):  # the weights as they are now
            torch.testing.assert_close(model(IDS), other, atol=1e-5, rtol=1e-5)


def test_other_kinds_of_number_are_left_alone(make_model: Callable[..., Transformer]) -> None:
    for kind in (torch.float64, torch.bfloat16):
        model = make_model().to(kind)
        before = model(IDS)
        with packed(model):
            assert torch.equal(model(IDS), before)
