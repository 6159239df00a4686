"""One process or two: the same step, for every objective of preference learning."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from enumerated import ANSWERS, PROMPT, policy

from tercet.inference.generate import Completion
from tercet.model.heads import ValueHeadModel
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, ranking_loss
from tercet.posttraining.rl import rollouts as ro
from tercet.posttraining.rl.group_methods import GroupMethod
from tercet.posttraining.rl.ppo import value_objective
from tercet.posttraining.rl.rollouts import Rollouts, assemble
from tercet.posttraining.rl.stage import METHODS, GRPOConfig
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig

KINDS = ("ranking", "value", *METHODS)


def batches(kind: str) -> tuple[Any, Any, Any]:
    """(model, objective, two batches of unequal counts)."""
    answers = [list(a) for a in ANSWERS[3:51:4]]
    if kind == "ranking":
        model: Any = ValueHeadModel(policy(1), seed=2).double()
        ranked = [
            Ranked(PROMPT, tuple(map(tuple, answers[a : a + 3])), (1, 1, 1), ((0, 1), (2, 1), (0, 2)), (0.0, 0.0, 0.0))
            for a in range(0, 12, 3)
        ]
        return model, ranking_loss, [collate(ranked[:1]), collate(ranked[1:])]
    tokens, mask = assemble([PROMPT] * 12, [Completion(a) for a in answers], pad=0)
    g = torch.Generator().manual_seed(0)
    noise = [torch.randn(mask.shape, generator=g, dtype=torch.float64) * 0.1 * mask for _ in range(3)]
    model = policy(1).double()
    r = Rollouts(
        tokens,
        mask,
        noise[0],
        torch.zeros(12),
        torch.arange(3).repeat_interleave(4),
        torch.randn(12, generator=g).double(),
    )
    old = ro.logprobs(model, r, 1.0)
    r = dataclasses.replace(r, behaviour=old, logp=old + noise[0], ref_logp=old + noise[1], returns=noise[2])
    if kind == "value":
        return ValueHeadModel(model, seed=2).double(), value_objective, [r.rows(slice(0, 4)), r.rows(slice(4, 12))]
    config = GRPOConfig(model="-", reward=("-",), prompts=("-",), method=kind, group_size=4, max_new_tokens=4)
    method = GroupMethod(config, model)
    prepared = method.prepare(r, 0.1)
    return model, method.objective(0.1), [prepared.rows(slice(0, 4)), prepared.rows(slice(4, 12))]


def step(kind: str, mine: list[int]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """One optimizer step on some of the batches."""
    model, objective, every = batches(kind)
    learner = Learner(model, OptimizerConfig(lr=1e-2, muon_lr=0.0))
    metrics = learner.forward_backward([every[i] for i in mine], objective)
    norm = learner.optim_step(1.0)
    return {n: p.detach().clone() for n, p in model.named_parameters()}, {**metrics, "norm": norm}


def work(rank: int, port: int, folder: str) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({kind: step(kind, [rank]) for kind in KINDS}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder: Path = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_do_the_step_of_one(found: list[Any], kind: str) -> None:
    weights, metrics = step(kind, [0, 1])
    start, _, _ = batches(kind)
    assert any(not torch.equal(p, weights[n]) for n, p in start.named_parameters())
    for other_weights, other_metrics in (found[0][kind], found[1][kind]):
        for name, value in weights.items():
            torch.testing.assert_close(other_weights[name], value, atol=1e-9, rtol=0)
        if kind != "expert_iteration":  # micro-batches without a best answer are left out of its records
            assert other_metrics == pytest.approx(metrics, rel=1e-8)
