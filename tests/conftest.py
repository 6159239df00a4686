"""Shared by the tests: a tiny tokenizer and a tiny model, one thread, hypothesis without clock and dice."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, which the tests of `data` never do

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from tercet.model.config import ModelConfig
    from tercet.model.transformer import Transformer
    from tercet.tokenizer.bpe import Tokenizer

settings.register_profile("tercet", deadline=None, derandomize=True, database=None)
settings.load_profile("tercet")

SENTENCES = (
    "The cat sat on the mat, and the dog sat on the log.",
    "What is the capital of France? The capital of France is Paris.",
    "def add(a, b):\n    return a + b\n",
    "Twenty-one and 34 make 55; the answer is 55.",
    "Übermäßig viele naïve Cafés öffnen früh. Добрый день! 日本語も少し。",
)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """300 ids: 256 bytes, 5 special tokens, 39 merges."""
    from tercet.tokenizer.bpe import train_tokenizer

    return train_tokenizer(SENTENCES * 4, 300)


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """261 ids, no merges: every byte is one token, so expected ids can be written by hand."""
    from tercet.tokenizer.bpe import train_tokenizer

    return train_tokenizer(["a"], 261)


@pytest.fixture(scope="session")
def shape() -> ModelConfig:
    """The tiny model's shape: two query heads share one key/value head."""
    from tercet.model.config import ModelConfig

    return ModelConfig(
        vocab_size=300, context_length=64, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        intermediate_size=48,
    )  # fmt: skip


@pytest.fixture(scope="session")
def make_model(shape: ModelConfig) -> Callable[..., Transformer]:
    """Make a tiny model: `make_model(seed, torch.float64, vocab_size=12)`.

    Its weights are larger than at initialisation and its norm gains differ from 1, so that its distributions are far
    from uniform and no weight can be left out unnoticed.
    """
    import dataclasses

    import torch

    from tercet.model.transformer import Transformer

    torch.set_num_threads(1)

    def make(seed: int = 0, dtype: torch.dtype = torch.float32, **changes: Any) -> Transformer:
        model = Transformer(dataclasses.replace(shape, **changes), seed=seed)
        generator = torch.Generator().manual_seed(1_000 + seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.25 * noise if parameter.dim() == 2 else 1 + 0.3 * noise)
        return model.to(dtype)

    return make
