"""The study of the frontier between reward and KL (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.study import SeededSettings, Study

MODULE = "tercet.studies.known_reward.sweeps"


@dataclass(frozen=True, kw_only=True)
class FrontierConfig(SeededSettings):
    """Measure reward against KL for five KL penalties β.

    PPO is trained with five KL penalties β.
    In small worlds with a known true ("gold") reward, PPO is trained against a proxy that learned from 8,000
    comparisons. Each seed is a world of its own.
    """


FRONTIER = Study(
    name="reward-kl-frontier",
    question="How much reward does a smaller KL penalty buy?",
    settings=FrontierConfig,
    body=f"{MODULE}:frontier",
    claims=f"{MODULE}:frontier_claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:frontier_figure",
    example="tercet study reward-kl-frontier --seeds 4 --out runs/frontier",
)
