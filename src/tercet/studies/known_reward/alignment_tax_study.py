"""The study of the alignment tax (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.study import SeededSettings, Study

MODULE = "tercet.studies.known_reward.sweeps"


@dataclass(frozen=True, kw_only=True)
class AlignmentTaxConfig(SeededSettings):
    """Measure what PPO costs on held-out text.

    PPO is trained with four weights γ of the pretraining term and without a KL penalty. Its reward is a proxy that
    learned from 8,000 comparisons, in small worlds with a known true ("gold") reward. Each seed is a world of its own.
    """


ALIGNMENT_TAX = Study(
    name="alignment-tax",
    question="What does preference learning cost elsewhere, and what does the pretraining term save?",
    settings=AlignmentTaxConfig,
    body=f"{MODULE}:alignment_tax",
    claims=f"{MODULE}:tax_claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:tax_figure",
    example="tercet study alignment-tax --seeds 4 --out runs/tax",
)
