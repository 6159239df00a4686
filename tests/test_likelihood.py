"""Bits per byte: token by token with plain forward passes, bytes of the source text, every token once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from tercet.data.types import Document
from tercet.errors import DataError
from tercet.evaluation.bits_per_byte import average, bits_per_byte, by_source, document_bits
from tercet.inference import language_model
from tercet.inference.language_model import TransformerLM
from tercet.model.transformer import Transformer
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer

Make = Callable[..., Transformer]
BEGIN = 0


class Numbers:
    """A tokenizer of texts that are ids already."""

    endoftext = BEGIN

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [[int(word) for word in text.split()] for text in texts]


def bits_of(model: Transformer, texts: Sequence[Sequence[int]]) -> Any:
    """`document_bits` of texts of ids."""
    tokenizer: Any = Numbers()
    return document_bits(TransformerLM(model, tokenizer), [" ".join(map(str, text)) for text in texts])


@torch.no_grad()
def naive_bits(model: Transformer, text: Sequence[int]) -> float:
    """Bits by one forward pass for each token, with the tokens of its window and the last token before it."""
    ids, size, bits = [BEGIN, *text], model.config.context_length, 0.0
    for target in range(1, len(ids)):
        first = (target - 1) // size * size
        p = model(torch.tensor([ids[first:target]]))[0, -1].double().softmax(-1)
        bits -= math.log2(float(p[ids[target]]))
    return bits


@pytest.mark.parametrize("context", [8, 64])
def test_bits_equal_a_naive_loop(make_model: Make, context: int) -> None:
    """Texts shorter than, as long as and longer than one and two windows, an empty one among them."""
    model = make_model(1, context_length=context)
    rng = np.random.default_rng(0)
    texts = [rng.integers(5, 300, n).tolist() for n in (5, 0, 1, 7, 8, 9, 15, 16, 17, 40, 63, 64, 65, 3, 2)]
    found = bits_of(model, texts)
    assert found.tolist() == pytest.approx([naive_bits(model, t) for t in texts], rel=1e-5)
    assert found[1] == 0


def test_every_token_counts_once(make_model: Make) -> None:
    """A model that knows nothing needs log₂ V bits for each token, however long the text is."""
    model = make_model(1, context_length=8)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    lengths = [1, 7, 8, 9, 16, 17, 100, 1_000]
    found = bits_of(model, [[9] * n for n in lengths])
    assert found.tolist() == pytest.approx([n * math.log2(300) for n in lengths], rel=1e-6)


@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_a_text_does_not_depend_on_its_company(make_model: Make, monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    model = make_model(1, context_length=16)
    texts = [np.random.default_rng(n).integers(5, 300, 1 + 5 * n % 43).tolist() for n in range(20)]
    alone = [bits_of(model, [t])[0] for t in texts]
    monkeypatch.setattr(language_model, "SCORING_PASS_TOKENS", tokens)
    assert bits_of(model, texts).tolist() == pytest.approx(alone, rel=1e-5)
    assert bits_of(model, texts[::-1])[::-1].tolist() == pytest.approx(alone, rel=1e-5)


TEXTS = {
    "ascii": ["The cat sat.", "On the mat, on the log."],
    "umlauts": ["Übermäßig öde Äpfel."],
    "mixed": ["日本語 is Japanese 🙂", "Добрый день <|endoftext|>", "e\u0301 = é"],
}
DOCUMENTS = [Document(text, source, f"{source}/{n}") for source, texts in TEXTS.items() for n, text in enumerate(texts)]


def test_the_denominator_is_the_bytes_of_the_source_text(make_model: Make, tokenizer: Tokenizer) -> None:
    model = make_model(1)
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    found = bits_per_byte(TransformerLM(model, tokenizer), DOCUMENTS)
    assert list(found) == ["ascii", "mixed", "umlauts"]
    for source, texts in TEXTS.items():
        size = sum(len(t.encode("utf-8")) for t in texts)
        assert (size > sum(map(len, texts))) is (source != "ascii")
        tokens = sum(len(tokenizer.encode(t)) for t in texts)
        assert found[source].value == pytest.approx(tokens * math.log2(300) / size, rel=1e-6)
        assert found[source].n == len(texts)
    assert average(found) == pytest.approx(sum(e.value for e in found.values()) / 3)


def test_bits_per_byte_is_a_ratio_of_sums(make_model: Make, tokenizer: Tokenizer) -> None:
    """Not a mean of the documents' ratios; begun with <|endoftext|>, as in training."""
    model = make_model(2)
    found = bits_per_byte(TransformerLM(model, tokenizer), DOCUMENTS)
    for source, texts in TEXTS.items():
        assert tokenizer.endoftext == BEGIN
        bits = sum(naive_bits(model, tokenizer.encode(t)) for t in texts)
        assert found[source].value == pytest.approx(bits / sum(len(t.encode()) for t in texts), rel=1e-5)
        if len(texts) > 1:
            assert found[source].low <= found[source].value <= found[source].high


def test_sources_are_grouped_and_none_is_an_error() -> None:
    groups = by_source(DOCUMENTS[::-1])
    assert list(groups) == ["ascii", "mixed", "umlauts"]
    assert all([d.text for d in groups[source]] == texts[::-1] for source, texts in TEXTS.items())
    with pytest.raises(DataError, match="no held-out documents"):
        by_source([])
    assert average({"a": Estimate(1.0, 0, 2, 3), "b": Estimate(2.0, 1, 3, 100)}) == 1.5
