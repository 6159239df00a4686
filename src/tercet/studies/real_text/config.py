"""Settings of the studies on real text (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.studies.study import SeededSettings
from tercet.training.settings import setting


@dataclass(frozen=True, kw_only=True)
class RealTextConfig(SeededSettings):
    """What the studies on real text share."""

    data: str = setting(
        ...,
        "Folder with sentiment/sentence_polarity.zip, blimp/blimp_data_67_paradigms.tar.gz, "
        "human-comparisons/blimp-human.jsonl.gz, text/state_union.zip and text/wikitext2-valid.txt.gz.",
    )
