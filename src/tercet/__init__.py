"""tercet: language models in three linked stages — pretraining, instruction tuning, preference learning.

The names below load on first use, so that `import tercet` stays fast and does not import torch.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# OpenMP's threads wait for each other by spinning. Where another program takes one of the cores they spin for nothing, and
# training becomes ten times slower, not two; spinning less costs nothing on an idle machine (docs/log.md). Read by libgomp
# when torch is imported, so it is set here, before.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.1.0"

_PUBLIC = {
    "pretrain": "tercet.pretraining.clm",
    "PretrainConfig": "tercet.pretraining.config",
    "sft": "tercet.posttraining.sft",
    "SFTConfig": "tercet.posttraining.config",
    "rank": "tercet.posttraining.annotator",
    "RankConfig": "tercet.posttraining.config",
    "reward": "tercet.posttraining.reward",
    "RewardConfig": "tercet.posttraining.config",
    "ppo": "tercet.posttraining.ppo",
    "PPOConfig": "tercet.posttraining.rl_config",
    "grpo": "tercet.posttraining.grpo",
    "GRPOConfig": "tercet.posttraining.rl_config",
    "best_of_n": "tercet.posttraining.best_of_n",
    "BestOfNConfig": "tercet.posttraining.best_config",
    "dpo": "tercet.posttraining.dpo",
    "DPOConfig": "tercet.posttraining.preference_config",
    "evaluate": "tercet.posttraining.scores",
    "EvalConfig": "tercet.posttraining.config",
    "LanguageModel": "tercet.inference.language_model",
    "TransformerLM": "tercet.inference.language_model",
    "export_model": "tercet.exchange.huggingface",
    "import_model": "tercet.exchange.importing",
    "ImportConfig": "tercet.exchange.config",
    "Chat": "tercet.inference.chat",
    "Tokenizer": "tercet.tokenizer.bpe",
    "train_tokenizer": "tercet.tokenizer.bpe",
    "Run": "tercet.training.run",
    "resume": "tercet.recipes.stages",
    "write_report": "tercet.reporting.report",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'tercet' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
