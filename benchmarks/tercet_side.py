"""Tercet's side of the comparison: a stage as a user calls it, with a progress that notes when a step is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workload import Shape


class Stamps:
    """A progress that keeps the time, the processor's seconds and the loss of every step."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.cpu: list[float] = []
        self.losses: list[float] = []

    def begin(self, stage: str, steps: int) -> None:
        """Not needed."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Note it."""
        self.stamp()
        self.losses.append(metrics.get("loss", float("nan")))

    def stamp(self) -> None:
        """A step is done."""
        self.times.append(time.time())
        self.cpu.append(time.process_time())

    def say(self, text: str) -> None:
        """Not needed."""

    def end(self) -> None:
        """Not needed."""


def run(task: str, folder: Path, shape: Shape, out: Path, stamps: Stamps) -> None:
    """Do `task` with the data in `folder`; the run goes to `out`."""

    def path(name: str) -> str:
        return str(folder / name)

    common: dict[str, Any] = {
        "model": path("base"), "steps": shape.steps, "lr": shape.lr, "threads": shape.threads, "warmup": 0,
        "cooldown": 0.0,
        "checkpoint_every": 0,
    }  # fmt: skip
    pairs: dict[str, Any] = {
        "data": (path("pairs.jsonl"),),
        "heldout": (path("heldout.pairs.jsonl"),),
        "batch_size": shape.pairs,
    }
    rollout: dict[str, Any] = {"prompts": (path("tasks.jsonl"),), "max_new_tokens": shape.new_tokens, "gamma": 0.0}
    stage: Callable[..., Any]
    config: Any
    if task.startswith("sft"):
        from tercet import sft as stage
        from tercet.posttraining.sft.stage import SFTConfig

        data, rows = ("chats", shape.rows) if task == "sft" else ("varied", shape.packed)
        chats: dict[str, Any] = {"data": (path(f"{data}.jsonl"),), "heldout": (path("heldout.chats.jsonl"),)}
        config = SFTConfig(**common, **chats, batch_size=rows, muon_lr=0.0)
    elif task == "reward":
        from tercet import reward as stage
        from tercet.posttraining.reward_model.stage import RewardConfig

        config = RewardConfig(**common, **pairs)
    elif task.startswith("dpo"):
        from tercet import dpo as stage
        from tercet.posttraining.preference.stage import DPOConfig

        config = DPOConfig(**common, **pairs)
    elif task == "grpo":
        from tercet import grpo as stage
        from tercet.posttraining.rl.stage import GRPOConfig

        rule = f"python:{Path(__file__).with_name('rule.py')}:rule"
        config = GRPOConfig(
            **common,
            **rollout,
            reward=(rule,),
            batch_size=shape.prompts,
            group_size=shape.group,
            beta=0.0,
            log_kl=False,
        )
    else:
        from tercet import ppo as stage
        from tercet.posttraining.rl.stage import PPOConfig

        config = PPOConfig(**common, **rollout, reward=(path("judge"),), batch_size=shape.rollouts)
    stage(config, out, progress=stamps)
