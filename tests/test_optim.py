"""The optimizers against torch's own and against a derivation by singular values; clipping, state and schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tercet.errors import CheckpointError
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.training.learner import Learner
from tercet.training.losses import next_token, next_token_batch
from tercet.training.optim import NEWTON_SCHULZ, Optimizer, OptimizerConfig, orthogonalize, schedule, total_norm
from tercet.training.packing import PackedSequences
from tercet.training.settings import TrainSettings

Make = Callable[..., Transformer]
SHAPES = {
    "model.embed_tokens.weight": (7, 4),
    "model.layers.0.q.weight": (4, 6),
    "model.layers.1.q.weight": (4, 6),
    "model.layers.0.up.weight": (9, 4),
    "model.layers.0.norm.weight": (4,),
    "score.weight": (1, 4),
    "score.bias": (1,),
}


def draw(seed: int) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {n: torch.randn(s, generator=g, dtype=torch.float64) for n, s in SHAPES.items()}


def optimizer(config: OptimizerConfig) -> Optimizer:
    return Optimizer({n: nn.Parameter(x) for n, x in draw(0).items()}, config)


def set_gradients(parameters: dict[str, nn.Parameter], step: int, scale: float = 1.0) -> None:
    for name, gradient in draw(100 + step).items():
        parameters[name].grad = gradient * scale


def assert_parameters(got: Optimizer, wanted: dict[str, nn.Parameter], tolerance: float = 1e-10) -> None:
    for name, parameter in got.parameters.items():
        torch.testing.assert_close(parameter, wanted[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


# -- AdamW ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("eps", [1e-8, 1e-2])
def test_adamw_equals_torchs(decay: float, eps: float) -> None:
    """20 steps with a changing learning rate; only matrices decay."""
    mine = optimizer(OptimizerConfig(lr=0.05, muon_lr=0.0, eps=eps, weight_decay=decay, clip_norm=0.0))
    theirs = {n: nn.Parameter(x) for n, x in draw(0).items()}
    groups = [
        {"params": [p for p in theirs.values() if p.dim() == 2], "weight_decay": decay},
        {"params": [p for p in theirs.values() if p.dim() != 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, lr=0.05, betas=(0.9, 0.95), eps=eps)
    for step in range(20):
        set_gradients(mine.parameters, step)
        set_gradients(theirs, step)
        for group in adamw.param_groups:
            group["lr"] = 0.05 * (1 - step / 30)
        mine.step(1 - step / 30)
        adamw.step()
    assert_parameters(mine, theirs)
    assert mine.steps == 20


def test_a_parameter_without_a_gradient_stays() -> None:
    mine = optimizer(OptimizerConfig(lr=0.05, muon_lr=0.02, weight_decay=0.1))
    still = ("model.embed_tokens.weight", "model.layers.1.q.weight")
    before = {n: mine.parameters[n].detach().clone() for n in still}
    set_gradients(mine.parameters, 0)
    for name in still:
        mine.parameters[name].grad = None
    mine.step(1.0)
    assert all(torch.equal(mine.parameters[n], before[n]) for n in still)
    assert not torch.equal(mine.parameters["score.weight"], draw(0)["score.weight"])
    assert all(p.grad is None for p in mine.parameters.values())


# -- Muon -------------------------------------------------------------------------------------------------------------


def by_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """What the iteration is: the polynomial a s + b s³ + c s⁵, again and again, on every singular value."""
    a, b, c = NEWTON_SCHULZ
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    s = s / np.sqrt((s**2).sum())
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return torch.from_numpy(u @ np.diag(s) @ vh)


@pytest.mark.parametrize("size", [(4, 4), (4, 9), (9, 4), (1, 5), (32, 48)])
def test_orthogonalize_pulls_singular_values_to_one(size: tuple[int, int]) -> None:
    matrix = torch.randn(size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    result = orthogonalize(matrix, 5)
    torch.testing.assert_close(result, by_singular_values(matrix, 5), atol=1e-5, rtol=0)
    u, s, vh = np.linalg.svd(matrix.numpy(), full_matrices=False)
    inner = u.T @ result.numpy() @ vh.T  # diagonal where the singular vectors are the same
    assert np.abs(inner - np.diag(np.diag(inner))).max() < 1e-6
    strong = s / np.linalg.norm(s) > 0.02
    assert strong.sum() >= 0.9 * len(s)
    assert ((np.diag(inner)[strong] > 0.6) & (np.diag(inner)[strong] < 1.3)).all()


def test_orthogonalize_works_matrix_by_matrix_whatever_the_scale() -> None:
    stack = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    together = orthogonalize(stack, 5)
    for matrix, result in zip(stack, together):
        torch.testing.assert_close(result, orthogonalize(matrix * 1e3, 5), atol=1e-5, rtol=0)
    rough = orthogonalize(stack.float(), 5, low_precision=True)
    assert rough.dtype == torch.float32
    assert float((rough - together).norm() / together.norm()) < 0.05
    assert torch.equal(orthogonalize(torch.zeros(2, 3), 5), torch.zeros(2, 3))  # no division by zero


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_by_hand(decay: float) -> None:
    """12 steps of Muon on the layers' matrices and of AdamW on the rest: embeddings, heads, vectors."""
    config = OptimizerConfig(lr=0.05, muon_lr=0.02, weight_decay=decay, clip_norm=0.0)
    mine = optimizer(config)
    rest = optimizer(dataclasses.replace(config, muon_lr=0.0))
    hidden = [n for n in SHAPES if ".layers." in n and len(SHAPES[n]) == 2]
    assert len(hidden) == 3
    weights = {n: draw(0)[n] for n in hidden}
    momenta = {n: torch.zeros(SHAPES[n], dtype=torch.float64) for n in hidden}
    for step in range(12):
        scale = 1 - step / 20
        set_gradients(mine.parameters, step, 1e3)  # where the small number beside the norm is nothing
        set_gradients(rest.parameters, step, 1e3)
        for name in hidden:
            gradient = draw(100 + step)[name] * 1e3
            momenta[name] = 0.95 * momenta[name] + 0.05 * gradient
            update = by_singular_values(0.05 * gradient + 0.95 * momenta[name], 5)  # Nesterov
            rows, columns = SHAPES[name]
            size = max(1.0, rows / columns) ** 0.5
            weights[name] = weights[name] * (1 - 0.02 * scale * decay) - 0.02 * scale * size * update
        mine.step(scale)
        rest.step(scale)
    assert_parameters(mine, {**rest.parameters, **{n: nn.Parameter(w) for n, w in weights.items()}}, 1e-8)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_muon_equals_torchs(monkeypatch: pytest.MonkeyPatch, decay: float) -> None:
    """20 steps. torch rounds to bfloat16 inside, which would hide small differences; here it uses float64."""
    mine = optimizer(OptimizerConfig(lr=0.05, muon_lr=0.02, weight_decay=decay, clip_norm=0.0))
    hidden = {n: nn.Parameter(x) for n, x in draw(0).items() if ".layers." in n and x.dim() == 2}
    muon = torch.optim.Muon(
        list(hidden.values()), lr=0.02, weight_decay=decay, momentum=0.95, ns_coefficients=NEWTON_SCHULZ
    )
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    for step in range(20):
        set_gradients(mine.parameters, step, 1e3)
        for name, parameter in hidden.items():
            parameter.grad = draw(100 + step)[name] * 1e3
        mine.step(1.0)
        muon.step()
    for name, parameter in hidden.items():
        torch.testing.assert_close(mine.parameters[name], parameter, atol=1e-8, rtol=0)


def test_muon_gets_the_layers_matrices_and_nothing_else(make_model: Make) -> None:
    for model in (make_model(), ValueHeadModel(make_model())):
        state = Learner(model, OptimizerConfig(muon_lr=0.02)).optimizer.state
        muon = {n.removeprefix("momentum/") for n in state if n.startswith("momentum/")}
        assert {n.rpartition("layers.")[2].partition(".")[2] for n in muon} == {
            *(f"self_attn.{p}_proj.weight" for p in "qkvo"), *(f"mlp.{p}_proj.weight" for p in ("gate", "up", "down")),
        }  # fmt: skip
        assert len(muon) == 14
        adam = {n.removeprefix("m/") for n in state if n.startswith("m/")}
        assert adam == {n.removeprefix("v/") for n in state if n.startswith("v/")}
        assert adam | muon == {n for n, _ in model.named_parameters()}
        assert not adam & muon


# -- clipping, state, schedule ----------------------------------------------------------------------------------------


def test_clipping_is_by_the_norm_of_the_whole_gradient() -> None:
    norm = float(np.sqrt(sum((g.numpy() ** 2).sum() for g in draw(100).values())))
    assert total_norm(draw(100).values()) == pytest.approx(norm)
    for clip, factor in ((norm / 4, 0.25), (norm * 2, 1.0), (0.0, 1.0)):
        config = OptimizerConfig(
            lr=0.05, muon_lr=0.02, eps=1e-2, clip_norm=clip
        )  # an eps by which AdamW feels the scale
        clipped, scaled = optimizer(config), optimizer(dataclasses.replace(config, clip_norm=0.0))
        set_gradients(clipped.parameters, 0)
        set_gradients(scaled.parameters, 0, factor)
        assert clipped.step(1.0) == pytest.approx(norm)  # what is returned is the norm before clipping
        scaled.step(1.0)
        assert_parameters(clipped, scaled.parameters)


def test_a_learner_that_was_saved_goes_on_as_if_never_stopped(make_model: Make, tmp_path: Path) -> None:
    """Bit for bit, through files."""
    tokens = np.random.default_rng(0).integers(0, 300, (6, 17)).astype(np.int32)
    rows = PackedSequences(tokens, np.zeros_like(tokens), np.ones(tokens.shape, dtype=np.float32))
    config = OptimizerConfig(lr=0.01, muon_lr=0.01, weight_decay=0.01)

    def train(learner: Learner, steps: range) -> None:
        for step in steps:
            learner.forward_backward([next_token_batch(rows.take([step % 6]))], next_token)
            learner.optim_step(1 - step / 10)

    whole = Learner(make_model(1), config)
    train(whole, range(8))
    first = Learner(make_model(1), config)
    train(first, range(4))
    for name, group in first.state().items():
        save_file({k: v.detach().contiguous() for k, v in group.items()}, tmp_path / f"{name}.safetensors")
    second = Learner(make_model(2), config)
    second.load({n: load_file(tmp_path / f"{n}.safetensors") for n in ("model", "optimizer")}, {"step": 4})
    assert second.step == 4
    train(second, range(4, 8))
    for name, group in whole.state().items():
        for key, tensor in group.items():
            assert torch.equal(second.state()[name][key], tensor), key
    assert not torch.equal(first.state()["model"]["model.norm.weight"], whole.state()["model"]["model.norm.weight"])


def test_state_of_another_optimizer_is_refused() -> None:
    muon, adam = optimizer(OptimizerConfig(muon_lr=0.02)), optimizer(OptimizerConfig(muon_lr=0.0))
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        adam.load_state(muon.state, 3)
    wrong = {n: torch.zeros(2, 2) for n in adam.state}
    with pytest.raises(CheckpointError, match="another model or optimizer"):
        adam.load_state(wrong, 3)
    assert adam.steps == 0


def test_settings_reach_the_optimizer() -> None:
    settings = TrainSettings(lr=0.1, muon_lr=0.2, weight_decay=0.3, clip_norm=0.4)
    config = OptimizerConfig.of(settings, eps=1e-5)
    assert (config.lr, config.muon_lr, config.weight_decay, config.clip_norm, config.eps) == (0.1, 0.2, 0.3, 0.4, 1e-5)


@pytest.mark.parametrize(
    ("steps", "warmup", "decay", "values"),
    [
        (5, 0, 0.0, [1, 1, 1, 1, 1]),
        (4, 0, 1.0, [4 / 5, 3 / 5, 2 / 5, 1 / 5]),  # never 0: the last step would be lost
        (10, 4, 0.0, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        (10, 4, 0.5, [1 / 4, 2 / 4, 3 / 4, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
        (4, 2, 1.0, [1 / 2 * 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        (1, 1, 1.0, [1 / 2]),
        (3, 10, 0.0, [0.1, 0.2, 0.3]),
    ],
)
def test_schedule(steps: int, warmup: int, decay: float, values: list[float]) -> None:
    assert [schedule(step, steps, warmup, decay) for step in range(steps)] == pytest.approx(values)
