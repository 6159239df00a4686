"""Settings of importing (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Settings):
    """Read a model of llama2.c (a version 0 file, with tied embeddings) into a run."""

    model: str = setting(..., "file of weights, such as stories15M.bin")
    tokenizer: str = setting(..., "its tokenizer file, such as tokenizer.bin")
