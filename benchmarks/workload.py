"""What both tools work on: one tokenizer, one set of weights, the same conversations, in each tool's own file format.

FOLDER/text.jsonl, tokenizer.json          out of the docstrings of Python's library
FOLDER/chats.jsonl, varied.jsonl, pairs.jsonl, tasks.jsonl and held-out.*.jsonl
FOLDER/base, FOLDER/judge                  tercet's runs: a model at its initial weights, and a reward model of it
FOLDER/hf/base, FOLDER/hf/head, FOLDER/hf/judge   the same weights as transformers reads them

Every step of a comparison sees the same rows, so that the first loss of both tools can be held against each other.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tercet.data.types import Message
from tercet.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tercet.tokenizer.chat_template import render, render_prompt

# ChatML without the line feed after the last message, so that an answer ends with its end token in both tools; the
# marks tell TRL which tokens are the assistant's
TEMPLATE = (
    "{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message.role + '\\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """The model and the sizes of the batches, the same for both tools."""

    vocab_size: int = 2048
    layers: int = 4
    hidden: int = 256
    heads: int = 4
    head_dim: int = 64
    feed_forward: int = 768
    context: int = 256  # tokens of an SFT row
    rows: int = 16  # of SFT, each one conversation that fills it
    varied: int = 28  # conversations of a step of SFT of a quarter to the whole of a row
    packed: int = 0  # rows into which tercet packs those; counted when they are made
    pairs: int = 16  # of DPO and of the reward model
    prompt: int = 64  # tokens of a prompt, its turn marks included
    answer: int = 64  # tokens of a chosen or rejected answer, its end included
    prompts: int = 8  # of a GRPO step
    group: int = 8  # answers to each of them
    rollouts: int = 64  # of a PPO step
    new_tokens: int = 32  # sampled for every answer
    threads: int = 2
    steps: int = 6  # of every process; the first one is not timed but counted as start-up
    lr: float = 1e-5


class _Words:
    """Texts of an exact number of tokens, out of words that are one token each."""

    def __init__(self, tokenizer: Tokenizer, seed: int) -> None:
        self.tokenizer, self.rng = tokenizer, random.Random(seed)
        pieces = [tokenizer.token(i) for i in range(len(SPECIAL_TOKENS), tokenizer.vocab_size)]
        whole = [p for p in pieces if p.isascii() and tokenizer.encode(p) and len(tokenizer.encode(p)) == 1]
        self.first = [p for p in whole if p.isalpha() and len(p) > 1]
        self.rest = [p for p in whole if p.startswith(" ") and p[1:].isalpha()]

    def text(self, tokens: int) -> str:
        """Random words, `tokens` ids in all."""
        found = self.rng.choice(self.first) + "".join(self.rng.choices(self.rest, k=tokens - 1))
        assert len(self.tokenizer.encode(found)) == tokens
        return found

    def prompt(self, tokens: int) -> str:
        """A question that is `tokens` ids long as the model is asked it."""
        marks = len(render_prompt(self.tokenizer, (Message("user", "a"),))) - 1
        return self.text(tokens - marks)


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _data(folder: Path, shape: Shape) -> Shape:
    from tercet.data.documents import python_docs
    from tercet.training.packing import pack_whole

    texts = [asdict(d) for d, _ in zip(python_docs(), range(400))]
    _write(folder / "text.jsonl", texts)
    tokenizer = train_tokenizer((row["text"] for row in texts), shape.vocab_size)
    assert tokenizer.vocab_size == shape.vocab_size, tokenizer.vocab_size
    tokenizer.save(folder / "tokenizer.json")
    words, packed = _Words(tokenizer, 1), list[tuple[list[int], list[float]]]()

    def chat(length: int = shape.context, prompt: int = shape.prompt) -> dict[str, Any]:
        question, answer = words.prompt(prompt), words.text(length - prompt - 1)
        rendered = render(tokenizer, (Message("user", question), Message("assistant", answer)))
        assert len(rendered) == length + 1  # the line feed at the end is only predicted, and never trained on
        packed.append((rendered.tokens, rendered.weights))
        return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}

    def pair() -> dict[str, str]:
        chosen, rejected = (words.text(shape.answer - 1) for _ in range(2))
        return {"prompt": words.prompt(shape.prompt), "chosen": chosen, "rejected": rejected}

    _write(folder / "chats.jsonl", (chat() for _ in range(shape.rows)))
    _write(folder / "heldout.chats.jsonl", [chat()])
    packed.clear()
    shortest, step = shape.context // 4, shape.context * 3 / 4 / (shape.varied - 1)
    lengths = [round(shortest + i * step) for i in range(shape.varied)]
    _write(folder / "varied.jsonl", [chat(n, shortest // 2) for n in lengths])
    packed_rows = len(pack_whole(packed, shape.context, tokenizer.pad))
    _write(folder / "pairs.jsonl", (pair() for _ in range(shape.pairs)))
    _write(folder / "heldout.pairs.jsonl", [pair()])
    asked = (words.prompt(shape.prompt) for _ in range(max(shape.rollouts, shape.prompts)))
    _write(folder / "tasks.jsonl", ({"prompt": text} for text in asked))
    return replace(shape, packed=packed_rows)


def _runs(folder: Path, shape: Shape) -> None:
    """A model at its initial weights and a reward model of it: one step each, at a learning rate of 0."""
    from tercet import pretrain, reward
    from tercet.posttraining.reward_model.stage import RewardConfig
    from tercet.pretraining.stage import PretrainConfig

    still: dict[str, Any] = {"steps": 1, "lr": 0.0, "batch_size": 2, "threads": shape.threads}
    pretrain(
        PretrainConfig(
            data=(str(folder / "text.jsonl"),), tokenizer=str(folder / "tokenizer.json"), heldout_bytes=1, muon_lr=0.0,
            context_length=shape.context, hidden_size=shape.hidden, num_layers=shape.layers, num_heads=shape.heads,
            num_kv_heads=shape.heads, head_dim=shape.head_dim, intermediate_size=shape.feed_forward, **still,
        ),
        folder / "base",
    )  # fmt: skip
    pairs, heldout = str(folder / "pairs.jsonl"), str(folder / "heldout.pairs.jsonl")
    reward(RewardConfig(model=str(folder / "base"), data=(pairs,), heldout=(heldout,), **still), folder / "judge")


def _for_transformers(folder: Path) -> None:
    """The export of both runs, with TRL's marks in the template, and a fresh head on the language model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForSequenceClassification

    from tercet.interop.huggingface import export_model
    from tercet.model.heads import ValueHeadModel
    from tercet.training.load import load_language_model
    from tercet.training.run import Run

    for name in ("base", "judge"):
        export_model(folder / name, folder / "hf" / name)
    base = AutoModelForCausalLM.from_pretrained(folder / "hf" / "base")
    base.config.num_labels = 1
    head = Qwen3ForSequenceClassification(base.config)
    head.model.load_state_dict(base.model.state_dict())
    with torch.no_grad():
        head.score.weight.copy_(ValueHeadModel(load_language_model(Run(folder / "base")), seed=0).score.weight)
    head.save_pretrained(folder / "hf" / "head")
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf" / "base", chat_template=TEMPLATE)
    for name in ("base", "head", "judge"):
        tokenizer.save_pretrained(folder / "hf" / name)
        # conversations do not begin like texts: without the token that the export puts before a text
        shutil.copy(folder / "tokenizer.json", folder / "hf" / name)


def make(folder: Path, shape: Shape, with_trl: bool) -> None:
    """Write everything into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = _data(folder, shape)
    (folder / "shape.json").write_text(json.dumps(asdict(shape), indent=2), encoding="utf-8")
    _runs(folder, shape)
    if with_trl:
        _for_transformers(folder)


def read_shape(folder: Path) -> Shape:
    """The shape that `make` wrote."""
    return Shape(**json.loads((folder / "shape.json").read_text(encoding="utf-8")))


def rows_of(folder: Path, name: str) -> list[dict[str, Any]]:
    """The objects of a JSONL file of `folder`."""
    lines = (folder / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
