"""The study of over-optimisation (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.study import SeededSettings, Study
from tercet.training.settings import setting

MODULE = "tercet.studies.known_reward.over_optimisation"


@dataclass(frozen=True, kw_only=True)
class OverOptimisationConfig(SeededSettings):
    """Measure when optimising a reward model stops helping.

    The study measures at which KL the true reward falls, for reward models that learned from more or less data. In
    small worlds with a known true ("gold") reward, best-of-n and PPO without a KL penalty are optimised for proxies
    that learned from 125, 1,000 or 8,000 comparisons. Each seed is a world of its own.
    """

    seeds: int = setting(8, "Number of worlds. Intervals need at least 2; differences show from about 8.", minimum=2)


OVER_OPTIMISATION = Study(
    name="over-optimisation",
    question="When does the true reward fall while a learned reward rises?",
    settings=OverOptimisationConfig,
    body=f"{MODULE}:over_optimisation",
    claims=f"{MODULE}:claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:figures",
    example="tercet study over-optimisation --seeds 8 --out runs/gold",
)
