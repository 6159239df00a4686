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
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tercet.data.types import Message
from tercet.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tercet.tokenizer.chat import render, render_prompt

# ChatML without the line feed after the last message, so that an answer ends with its end token in both tools; the marks
# tell TRL which tokens are the assistant's
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
    from tercet.data.sources import python_docs
    from tercet.training.batch import pack_whole

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
    from tercet.posttraining.config import RewardConfig
    from tercet.posttraining.reward import reward
    from tercet.pretraining.clm import pretrain
    from tercet.pretraining.config import PretrainConfig

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
    """Tercet's weights under transformers' classes: the language model, a fresh head on it, and the reward model."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, Qwen3ForSequenceClassification

    from tercet.model.transformer import ScalarModel
    from tercet.training.load import load_language_model, load_reward_model
    from tercet.training.run import Run

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), eos_token="<|im_end|>", pad_token="<|pad|>",
        chat_template=TEMPLATE, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    base = load_language_model(Run(folder / "base"))
    ours = base.config
    config = Qwen3Config(
        vocab_size=ours.vocab_size, hidden_size=ours.hidden_size, intermediate_size=ours.intermediate_size,
        num_hidden_layers=ours.num_layers, num_attention_heads=ours.num_heads, num_key_value_heads=ours.num_kv_heads,
        head_dim=ours.head_dim, rope_theta=ours.rope_theta, rms_norm_eps=ours.norm_eps, tie_word_embeddings=True,
        max_position_embeddings=ours.context_length, pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id, bos_token_id=None, num_labels=1,
    )  # fmt: skip
    language = Qwen3ForCausalLM(config)
    language.load_state_dict({**base.state_dict(), "lm_head.weight": base.output_weight})
    judges = {"head": ScalarModel(base, seed=0), "judge": load_reward_model(Run(folder / "judge"))}
    saved: dict[str, Any] = {"base": language}
    for name, judge in judges.items():
        saved[name] = Qwen3ForSequenceClassification(config)
        saved[name].model.load_state_dict(judge.backbone.model.state_dict())
        with torch.no_grad():  # a bias would change no comparison, and transformers has none
            saved[name].score.weight.copy_(judge.gain * judge.score.weight)
    for name, model in saved.items():
        model.save_pretrained(folder / "hf" / name)
        tokenizer.save_pretrained(folder / "hf" / name)


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
