"""The four measurements of one seed: over-optimisation, the β frontier, the alignment tax, and RL beside SFT and DPO."""

from __future__ import annotations

import copy
import functools
import time
from typing import Any

import numpy as np
import torch
from curves_world import END, SIZES, World, ppo_config, run_ppo

from tercet.model.transformer import Transformer
from tercet.posttraining.preference.data import answer_logprobs, pair_batch
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.preference.train import pair_objective
from tercet.posttraining.rewards.best_of_n import best_of_k, kl_bon
from tercet.training.learner import Learner
from tercet.training.loader import BatchLoader, permuted
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig, schedule
from tercet.training.packing import pack_whole

BETAS = (1.0, 0.3, 0.1, 0.03, 0.0)
GAMMAS = (0.0, 0.1, 1.0, 10.0)
LABELS = SIZES[1]  # comparisons that every method of curve (f) may use
BEST_OF, BEST_PROMPTS = 256, 64
BLOCK = 8  # PPO steps whose rollouts are one point
LONG = 12 * BLOCK


def over_optimisation(world: World) -> dict[str, Any]:
    """Gold and proxy against KL for every proxy size: of the best of n, and along a PPO run without a KL penalty."""
    prompts, done = world.draw(world.fresh[:BEST_PROMPTS], 4, each=BEST_OF)
    gold = world.gold(prompts, done).reshape(BEST_PROMPTS, -1)
    best: dict[str, list[dict[str, float]]] = {}
    ppo: dict[str, dict[str, list[dict[str, float]]]] = {}
    for size, judge in world.proxies.items():
        proxy = world.proxy_scores(judge, prompts, done).reshape(BEST_PROMPTS, -1)
        best[str(size)] = []
        for k in (2**i for i in range(BEST_OF.bit_length())):
            rows = [
                (best_of_k(p.tolist(), p.tolist(), k), best_of_k(p.tolist(), g.tolist(), k))
                for p, g in zip(proxy, gold)
            ]
            means = np.mean(rows, axis=0)
            best[str(size)].append({"k": k, "kl": kl_bon(k), "proxy": float(means[0]), "gold": float(means[1])})
        _, points = run_ppo(world, judge, ppo_config(steps=LONG), watch=True)
        ppo[str(size)] = {"points": blocks(points), "even": blocks(points, 0), "odd": blocks(points, 1)}
    return {"agreement": {str(n): r for n, r in world.agreement().items()}, "best_of_n": best, "ppo": ppo}


def blocks(points: list[dict[str, float]], half: int | None = None) -> list[dict[str, float]]:
    """Means over blocks of BLOCK steps; of their even or odd steps alone where `half` is 0 or 1."""
    out = []
    for a in range(0, len(points), BLOCK):
        part = points[a : a + BLOCK] if half is None else points[a + half : a + BLOCK : 2]
        row = {name: float(np.mean([p[name] for p in part])) for name in part[0]}
        for name in ("gold_error", "proxy_error"):  # of a mean over so many steps
            row[name] /= len(part) ** 0.5
        out.append(row)
    return out


@functools.cache
def unleashed(world: World) -> dict[str, float]:
    """PPO with β = 0 and γ = 0 against the largest proxy: the end of both sweeps, trained once."""
    judge = world.proxies[max(SIZES)]
    return world.measure(run_ppo(world, judge, ppo_config())[0], judge)


def frontier(world: World) -> dict[str, dict[str, float]]:
    """Reward and KL after PPO at every β."""
    judge = world.proxies[max(SIZES)]
    return {
        f"{beta:g}": world.measure(run_ppo(world, judge, ppo_config(beta=beta))[0], judge) if beta else unleashed(world)
        for beta in BETAS
    }


def alignment_tax(world: World) -> dict[str, dict[str, float]]:
    """Reward and held-out nats per token after PPO at every γ."""
    judge = world.proxies[max(SIZES)]
    return {
        f"{gamma:g}": world.measure(run_ppo(world, judge, ppo_config(gamma=gamma))[0], judge)
        if gamma
        else unleashed(world)
        for gamma in GAMMAS
    }


def methods(world: World) -> dict[str, dict[str, float]]:
    """The same comparisons for each: SFT on the preferred answers, DPO, PPO against a proxy of them; and its best of 16."""
    judge = world.proxies[LABELS]
    trained = {
        "base": world.base, "SFT": _sft(world), "DPO, β .1": _dpo(world, 0.1),
        "DPO, β .02": _dpo(world, 0.02), "PPO, β .1": run_ppo(world, judge, ppo_config(beta=0.1))[0],
    }  # fmt: skip
    out = {name: world.measure(policy, judge) for name, policy in trained.items()}
    prompts, done = world.draw(world.fresh[:256], 6, each=16)
    proxy, gold = world.proxy_scores(judge, prompts, done).reshape(-1, 16), world.gold(prompts, done).reshape(-1, 16)
    chosen = np.arange(len(proxy)), proxy.argmax(1)
    out["best of 16"] = {
        "kl": kl_bon(16),
        "proxy": float(proxy[chosen].mean()),
        "gold": float(gold[chosen].mean()),
        "tax": 0.0,
    }
    return out


def _sft(world: World, steps: int = 100, lr: float = 1e-3) -> Transformer:
    """Imitate the preferred answer of every comparison, about three times."""
    texts = []
    for item in world.comparisons[:LABELS]:
        answer = item.answers[item.ranks.index(1)]
        texts.append(((*item.prompt, *answer), [0.0] * len(item.prompt) + [1.0] * len(answer)))
    feed = BatchLoader({"best": pack_whole(texts, 16, END)}, None, 32, world.seed)
    learner = Learner(copy.deepcopy(world.base), OptimizerConfig(lr=lr, muon_lr=0.0))
    for step in range(steps):
        learner.forward_backward([feed.batch(step)], next_token)
        learner.optim_step(schedule(step, steps, 5, 0.8))
    return learner.model


def _dpo(world: World, beta: float, steps: int = 100, lr: float = 1e-3) -> Transformer:
    """DPO on the comparisons, about three times."""
    data = world.comparisons[:LABELS]
    learner = Learner(copy.deepcopy(world.base), OptimizerConfig(lr=lr, muon_lr=0.0))
    reference = answer_logprobs(learner, [(d.prompt, d.answers) for d in data])
    objective = pair_objective(DPOConfig(model="-", data=("-",), beta=beta))
    for step in range(steps):
        picks = [permuted(step * 32 + i, len(data), (world.seed, 3)) for i in range(32)]
        learner.forward_backward([pair_batch([data[i] for i in picks], [reference[i] for i in picks])], objective)
        learner.optim_step(schedule(step, steps, 5, 0.8))
    return learner.model


CURVES = {"a": over_optimisation, "b": frontier, "c": alignment_tax, "f": methods}


def measure(seed: int, only: str) -> dict[str, Any]:
    """The curves named in `only`, of one seed."""
    torch.set_num_threads(1)
    began = time.process_time()
    world = World(seed)
    out = {name: CURVES[name](world) for name in CURVES if name in only}
    return {**out, "processor_seconds": time.process_time() - began}
