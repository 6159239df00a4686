"""Faster float32 matrix products for inference: the same numbers up to rounding, by oneDNN instead of MKL.

PyTorch gives dense float32 products to MKL, which does not use the widest vectors of every processor; oneDNN does (its
products were 2.4 times as fast on an AMD EPYC with AVX-512). Elsewhere it costs a copy of each layer's input and output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tercet.model.transformer import MLP, Attention, Transformer


def _product(weight: Tensor) -> Callable[[Tensor], Tensor]:
    packed = weight.detach().to_mkldnn()
    return lambda x: F.linear(x.to_mkldnn(), packed).to_dense()


@contextmanager
def packed(model: Transformer) -> Iterator[None]:
    """While this lasts, `model`'s plain float32 layers and its output layer work by oneDNN; adapters stay as they are.

    No gradients, and weights must not change meanwhile: they are copied. Where oneDNN or float32 is not had, and inside another
    such block, nothing changes.
    """
    done: list[tuple[nn.Module, str]] = []
    can = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    can = can and model.output_weight.dtype == torch.float32
    if can and model.output_weight.device.type == "cpu" and "logits" not in vars(model):
        for parent in model.modules():
            for layer in parent.children() if isinstance(parent, (Attention, MLP)) else ():
                if type(layer) is nn.Linear:
                    setattr(layer, "forward", _product(layer.weight))  # noqa: B010 (mypy refuses a plain assignment)
                    done.append((layer, "forward"))
        setattr(model, "logits", _product(model.output_weight))  # noqa: B010
        done.append((model, "logits"))
    try:
        yield
    finally:
        for module, name in done:
            delattr(module, name)
