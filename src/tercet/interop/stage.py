"""The stage `tercet import`: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.training.settings import FILES, LANGUAGE_MODEL, Settings, setting
from tercet.training.stage import Stage


@dataclass(frozen=True, kw_only=True)
class ImportConfig(Settings):
    """Import a llama2.c model as a run.

    The file must have llama2.c's format version 0 and tied embeddings.
    """

    model: str = setting(..., "File with the model's weights, such as stories15M.bin.", reads=FILES)
    tokenizer: str = setting(..., "File with the model's tokenizer, such as tokenizer.bin.", reads=FILES)


IMPORT = Stage(
    "import",
    ImportConfig,
    "tercet.interop.importing:import_model",
    order=10,
    label="imported",
    makes=LANGUAGE_MODEL,
    example="tercet import stories15M.bin --tokenizer tokenizer.bin --out runs/stories",
    positional="model",
)
