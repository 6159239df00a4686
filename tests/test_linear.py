"""Products by oneDNN are those of float64, with their gradients, and go to PyTorch where they should."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.model.ops import linear as kernels

needs = pytest.mark.skipif(not kernels.ONEDNN, reason="this processor has no AVX-512: PyTorch multiplies")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every size is worth it; the shapes that oneDNN was asked for."""
    monkeypatch.setattr(kernels, "WORTH", 1)
    seen: list[tuple[int, ...]] = []
    plain = kernels._by_onednn

    def noted(a: Tensor, b: Tensor) -> bool:
        if found := plain(a, b):
            seen.append((*a.shape, *b.shape))
        return found

    monkeypatch.setattr(kernels, "_by_onednn", noted)
    return seen


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@needs
@pytest.mark.parametrize("shape", [(5, 8), (1, 8), (2, 3, 8)])
@pytest.mark.parametrize("frozen", [False, True])
def test_outputs_and_gradients_are_those_of_float64(
    calls: list[tuple[int, ...]], shape: tuple[int, ...], frozen: bool
) -> None:
    x, w = drawn(*shape).requires_grad_(), drawn(7, 8).requires_grad_(not frozen)
    y = kernels.linear(x, w)
    y.backward(g := drawn(*shape[:-1], 7))
    wide_x, wide_w = x.detach().double().requires_grad_(), w.detach().double().requires_grad_()
    expected = F.linear(wide_x, wide_w)
    expected.backward(g.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(x.grad.double(), wide_x.grad, rtol=1e-5, atol=1e-5)
    if frozen:
        assert w.grad is None
    else:
        torch.testing.assert_close(w.grad.double(), wide_w.grad, rtol=1e-5, atol=1e-5)
    assert calls


@needs
def test_views_are_read_as_they_lie(calls: list[tuple[int, ...]]) -> None:
    a, b = drawn(9, 40).T[::2], drawn(9, 6).T  # strides of all kinds
    torch.testing.assert_close(kernels.matmul(a, b), a @ b.T)
    sliced, w = drawn(4, 6, 10)[:, ::2, :8], drawn(5, 8)
    torch.testing.assert_close(kernels.linear(sliced, w), F.linear(sliced, w))
    assert len(calls) >= 2


def test_what_is_not_plain_float32_goes_to_torch(calls: list[tuple[int, ...]]) -> None:
    x, w = drawn(4, 8), drawn(5, 8)
    assert torch.equal(kernels.linear(x.double(), w.double()), F.linear(x.double(), w.double()))
    assert torch.equal(kernels.matmul(x.bfloat16(), w.bfloat16()), x.bfloat16() @ w.bfloat16().T)
    assert not calls
    with torch.autocast("cpu", torch.bfloat16):
        assert kernels.linear(x, w).dtype == torch.bfloat16


def test_no_rows_are_no_rows(calls: list[tuple[int, ...]]) -> None:
    x, w = drawn(0, 8).requires_grad_(), drawn(7, 8).requires_grad_()
    kernels.linear(x, w).sum().backward()
    assert w.grad is not None
    assert not w.grad.any()


def test_small_products_go_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> Tensor:
        raise AssertionError

    monkeypatch.setattr(kernels, "_Linear", never)
    x, w = drawn(4, 8).requires_grad_(), drawn(5, 8)
    assert torch.equal(kernels.linear(x, w), F.linear(x, w))


@needs
@pytest.mark.parametrize(("outputs", "inputs"), [(5, 9), (9, 5)])
def test_the_gradient_of_a_weight_is_the_product(calls: list[tuple[int, ...]], outputs: int, inputs: int) -> None:
    grad, x = drawn(30, outputs), drawn(30, inputs)
    torch.testing.assert_close(kernels.weight_gradient(grad, x), grad.T @ x)
    assert len(calls) == 1


@needs
def test_a_gradient_of_a_gradient_is_refused(calls: list[tuple[int, ...]]) -> None:
    x, w = drawn(4, 8).requires_grad_(), drawn(5, 8).requires_grad_()
    (g,) = torch.autograd.grad(kernels.linear(x, w).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()
