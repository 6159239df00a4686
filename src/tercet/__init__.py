"""tercet: language models in three linked stages — pretraining, instruction tuning, preference learning.

The names below load on first use, so that `import tercet` stays fast and does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# OpenMP's threads spin while they wait for each other. Where another program takes one of the cores, training becomes
# ten times slower instead of twice; spinning less costs nothing on an idle machine (docs/log.md). libgomp reads this
# when torch is imported, so it is set before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_PUBLIC = {
    "evaluate": "tercet.evaluation.evaluate",
    "EvalConfig": "tercet.evaluation.config",
    "LanguageModel": "tercet.inference.language_model",
    "TransformerLM": "tercet.inference.language_model",
    "export_model": "tercet.interop.huggingface",
    "Chat": "tercet.inference.chat",
    "Tokenizer": "tercet.tokenizer.bpe",
    "train_tokenizer": "tercet.tokenizer.bpe",
    "Run": "tercet.training.run",
    "Stage": "tercet.training.stage",
    "resume": "tercet.training.stage",
    "write_report": "tercet.reporting.report",
}


def __getattr__(name: str) -> Any:
    """Return a public name: one of the table above, or a stage or its settings (`pretrain`, `PretrainConfig`, …)."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'tercet' has no attribute {name!r}")
    from tercet.training.stage import public_names

    stages = public_names()
    if name == "__all__":
        return ["__version__", *_PUBLIC, *stages]
    if name not in stages:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}; it has {', '.join([*_PUBLIC, *stages])}")
    return stages[name]


def __dir__() -> list[str]:
    return sorted(__getattr__("__all__"))
