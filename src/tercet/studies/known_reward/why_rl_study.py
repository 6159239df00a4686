"""The study of methods that learn from the same comparisons (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.study import SeededSettings, Study

MODULE = "tercet.studies.known_reward.sweeps"


@dataclass(frozen=True, kw_only=True)
class WhyRLConfig(SeededSettings):
    """Compare SFT, DPO, PPO and best-of-n.

    Each learns from the same 1,000 comparisons, and the true reward of its answers is measured. Each seed is a small
    world of its own with a known true ("gold") reward, which none of the methods sees.
    """


WHY_RL = Study(
    name="why-rl",
    question="Why RL, and not SFT on the preferred answers alone?",
    settings=WhyRLConfig,
    body=f"{MODULE}:methods",
    claims=f"{MODULE}:method_claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:methods_figure",
    example="tercet study why-rl --seeds 4 --out runs/why-rl",
)
