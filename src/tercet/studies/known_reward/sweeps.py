"""Studies that compare policies of one world: by their KL penalty β, by their pretraining term γ, by their method."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from tercet.model.transformer import Transformer
from tercet.posttraining.preference.data import answer_logprobs, pair_batch
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.preference.train import pair_objective
from tercet.posttraining.rewards.best_of_n import kl_bon
from tercet.reporting.claims import Claim
from tercet.reporting.figures import COLOURS, DASHES, GRID, MARKERS
from tercet.studies.estimates import Json, above, below, cell, intervals, table, text
from tercet.studies.folder import StudyFolder
from tercet.studies.known_reward.world import END, SIZES, World, ppo_config, run_ppo
from tercet.studies.study import SeededSettings
from tercet.training.learner import Learner
from tercet.training.loader import BatchLoader, permuted
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig, schedule
from tercet.training.packing import pack_whole

Points = dict[str, dict[str, float]]  # name of a policy → {"kl", "proxy", "gold", "tax"}
BETAS = (1.0, 0.3, 0.1, 0.03, 0.0)
GAMMAS = (0.0, 0.1, 1.0, 10.0)
LABELS = SIZES[1]  # comparisons that every method may use
OPTIMIZER = OptimizerConfig(lr=1e-3, muon_lr=0.0)  # of SFT and DPO
REWARD = "reward (base policy: 0 ± 1)"


def frontier(config: SeededSettings, folder: StudyFolder) -> Json:
    """Measure PPO at every β in every world."""
    return sweep(folder.seeds(frontier_of, config.seed, config.seeds, config.jobs))


def alignment_tax(config: SeededSettings, folder: StudyFolder) -> Json:
    """Measure PPO at every γ in every world."""
    return sweep(folder.seeds(alignment_tax_of, config.seed, config.seeds, config.jobs))


def methods(config: SeededSettings, folder: StudyFolder) -> Json:
    """Measure every method that learns from the same comparisons, in every world."""
    return sweep(folder.seeds(methods_of, config.seed, config.seeds, config.jobs))


# -- one world ----------------------------------------------------------------------------------------------------


def frontier_of(seed: int) -> Points:
    """Return reward and KL after PPO at every β, against the largest proxy."""
    return _ppo_by("beta", BETAS, seed)


def alignment_tax_of(seed: int) -> Points:
    """Return reward and alignment tax after PPO at every γ, against the largest proxy."""
    return _ppo_by("gamma", GAMMAS, seed)


def _ppo_by(name: str, values: Sequence[float], seed: int) -> Points:
    world = World(seed)
    proxy = world.proxies[max(SIZES)]
    policies = {f"{value:g}": run_ppo(world, proxy, ppo_config(**{name: value}))[0] for value in values}
    return {value: world.measure(policy, proxy) for value, policy in policies.items()}


def methods_of(seed: int) -> Points:
    """Return what SFT, DPO, PPO and best of 16 reach with the same comparisons."""
    world = World(seed)
    proxy = world.proxies[LABELS]
    policies = {
        "base": world.base,
        "SFT": sft(world),
        "DPO, β 0.1": dpo(world, 0.1),
        "DPO, β 0.02": dpo(world, 0.02),
        "PPO, β 0.1": run_ppo(world, proxy, ppo_config(beta=0.1))[0],
    }
    points = {name: world.measure(policy, proxy) for name, policy in policies.items()}
    prompts, done = world.draw(world.fresh[:256], 6, each=16)
    scores, gold = world.proxy_scores(proxy, prompts, done).reshape(-1, 16), world.gold(prompts, done).reshape(-1, 16)
    best = np.arange(len(scores)), scores.argmax(1)
    means = {"proxy": float(scores[best].mean()), "gold": float(gold[best].mean())}
    return {**points, "best of 16": {"kl": kl_bon(16), **means, "tax": 0.0}}


def sft(world: World) -> Transformer:
    """Imitate the preferred answer of every comparison, about three times."""
    texts = []
    for item in world.comparisons[:LABELS]:
        answer = item.answers[item.ranks.index(1)]
        texts.append(((*item.prompt, *answer), [0.0] * len(item.prompt) + [1.0] * len(answer)))
    loader = BatchLoader({"best": pack_whole(texts, 16, END)}, None, 32, world.seed)
    return _tuned(Learner(copy.deepcopy(world.base), OPTIMIZER), loader.batch, next_token)


def dpo(world: World, beta: float) -> Transformer:
    """Train by DPO on every comparison, about three times."""
    data = world.comparisons[:LABELS]
    learner = Learner(copy.deepcopy(world.base), OPTIMIZER)
    reference = answer_logprobs(learner, [(d.prompt, d.answers) for d in data])

    def batch(step: int) -> Any:
        picks = [permuted(step * 32 + i, len(data), (world.seed, 3)) for i in range(32)]
        return pair_batch([data[i] for i in picks], [reference[i] for i in picks])

    return _tuned(learner, batch, pair_objective(DPOConfig(model="-", data=("-",), beta=beta)))


def _tuned(learner: Learner[Transformer], batch: Callable[[int], Any], objective: Any, steps: int = 100) -> Transformer:
    for step in range(steps):
        learner.forward_backward([batch(step)], objective)
        learner.optim_step(schedule(step, steps, 5, 0.8))
    return learner.model


# -- over worlds --------------------------------------------------------------------------------------------------


def sweep(worlds: Sequence[Points]) -> Json:
    """Return every policy's means with intervals ("points") and all differences, paired by world ("differences")."""
    names = list(worlds[0])
    differences = {
        f"{later} - {earlier}": intervals([{k: w[later][k] - w[earlier][k] for k in w[later]} for w in worlds])
        for earlier, later in itertools.combinations(names, 2)
    }
    return {"points": {n: intervals([w[n] for w in worlds]) for n in names}, "differences": differences}


def frontier_claims(results: Json) -> list[Claim]:
    """State that a smaller penalty buys reward with KL."""
    # the step from 0.03 to 0 is too small to be told from chance; that from 0.1 to 0 is not
    pairs = [*itertools.pairwise(f"{beta:g}" for beta in BETAS[:-1]), ("0.1", "0")]
    return [
        _every(results, f"a smaller β gives more {what}", pairs, name, above)
        for what, name in (("KL", "kl"), ("proxy reward", "proxy"))
    ]


def tax_claims(results: Json) -> list[Claim]:
    """State that the pretraining term lowers the alignment tax."""
    tax = results["points"]["0"]["tax"]
    gammas = [f"{gamma:g}" for gamma in GAMMAS]
    without = [("0", gamma) for gamma in gammas[1:]]
    return [
        Claim("without the pretraining term there is a tax", above(tax), f"γ 0: {text(tax)} nats per token"),
        _every(results, "every γ has a lower tax than γ = 0", without, "tax", below),
        _every(results, "every larger γ has a lower tax", list(itertools.pairwise(gammas)), "tax", below),
    ]


def method_claims(results: Json) -> list[Claim]:
    """State that the same comparisons are worth more to DPO and PPO than to imitation."""
    pairs = {
        "SFT on the preferred answers raises the true reward": ("base", "SFT"),
        "DPO on the same comparisons reaches more than SFT": ("SFT", "DPO, β 0.1"),
        "PPO against a proxy of the same comparisons reaches more than SFT": ("SFT", "PPO, β 0.1"),
    }
    return [_every(results, sentence, [pair], "gold", above) for sentence, pair in pairs.items()]


def _every(
    results: Json, sentence: str, pairs: Sequence[tuple[str, str]], name: str, holds: Callable[[Json], bool]
) -> Claim:
    """The claim that `holds` is true of later − earlier in the measure `name`, for every pair (earlier, later)."""
    differences = {f"{b} − {a}": results["differences"][f"{b} - {a}"][name] for a, b in pairs}
    numbers = "; ".join(f"{pair}: {text(difference)}" for pair, difference in differences.items())
    return Claim(sentence, all(map(holds, differences.values())), numbers)


def tables(results: Json) -> str:
    """Return every policy's measures, and the differences in them, as Markdown tables."""
    head = ["KL (nats)", "proxy", "gold", "tax (nats per token)"]
    return "\n".join(
        table([label, *head], [[name, *(cell(row[m]) for m in ("kl", "proxy", "gold", "tax"))] for name, row in rows])
        for label, rows in (
            ("policy", results["points"].items()),
            ("difference, paired by world", results["differences"].items()),
        )
    )


# -- figures ------------------------------------------------------------------------------------------------------


def _bars(axes: Any, x: Sequence[float], estimates: Sequence[Json], number: int, label: str) -> None:
    middle = np.array([e["value"] for e in estimates])
    spread = [middle - [e["low"] for e in estimates], np.array([e["high"] for e in estimates]) - middle]
    look = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": DASHES[number]}
    axes.errorbar(x, middle, yerr=spread, capsize=3, label=label, **look)


def frontier_figure(results: Json) -> dict[str, Figure]:
    """Draw proxy and gold reward against KL, a point for every β."""
    figure = Figure(figsize=(4.4, 3.0), layout="constrained")
    axes, points = figure.add_subplot(), results["points"]
    x = [p["kl"]["value"] for p in points.values()]
    for number, name in enumerate(("proxy", "gold")):
        _bars(axes, x, [p[name] for p in points.values()], number, name)
    look: dict[str, Any] = {"xytext": (0, 7), "textcoords": "offset points", "ha": "center", "fontsize": 8}
    for beta, kl, p in zip(points, x, points.values()):
        axes.annotate(f"β {beta}", (kl, p["proxy"]["value"]), **look)
    axes.set(xlabel="KL to the base policy (nats)", ylabel=REWARD)
    axes.margins(y=0.15)
    axes.legend()
    return {"reward-kl-frontier": figure}


def tax_figure(results: Json) -> dict[str, Figure]:
    """Draw the alignment tax and the reward against γ."""
    figure = Figure(figsize=(6.6, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = results["points"]
    x = list(range(len(points)))
    _bars(left, x, [p["tax"] for p in points.values()], 0, "tax")
    left.set_ylabel("alignment tax (nats per token)")
    left.set_yscale("symlog", linthresh=0.1)
    left.set_yticks([0, 0.1, 1, 3], ["0", "0.1", "1", "3"])
    for number, name in enumerate(("proxy", "gold")):
        _bars(right, x, [p[name] for p in points.values()], number, name)
    right.set_ylabel(REWARD)
    right.legend()
    for axes in (left, right):
        axes.set_xticks(x, list(points))
        axes.set_xlabel("γ")
    return {"alignment-tax": figure}


def methods_figure(results: Json) -> dict[str, Figure]:
    """Draw gold reward and KL of every method: the mean with its interval, and each world as a mark."""
    figure = Figure(figsize=(6.6, 2.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    points = results["points"]
    for axes, name, label in zip(panels, ("gold", "kl"), (f"gold {REWARD}", "KL (nats)")):
        for y, row in enumerate(points.values()):
            estimate = row[name]
            axes.plot([estimate["low"], estimate["high"]], [y, y], color=COLOURS[0], linewidth=1.4)
            axes.plot([estimate["value"]], [y], MARKERS[0], color=COLOURS[0], markersize=5)
            axes.plot(estimate["seeds"], [y + 0.25] * len(estimate["seeds"]), "|", color=COLOURS[1], markersize=6)
        axes.set_xlabel(label)
        axes.axvline(0, color=GRID, linewidth=1)
    panels[0].set_yticks(range(len(points)), list(points))
    panels[0].set_ylim(len(points) - 0.5, -0.5)
    return {"methods": figure}
