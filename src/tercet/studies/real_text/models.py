"""The models of the studies on real text: a base model of a million parameters, reward models, a bag of words."""

from __future__ import annotations

import copy
import functools
import itertools
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from tercet.errors import CheckpointError
from tercet.inference.reward_scores import score_texts
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, ranking_loss
from tercet.pretraining.causal import build_loader
from tercet.studies.folder import StudyFolder
from tercet.studies.real_text.config import RealTextConfig
from tercet.studies.real_text.data import Pairs, base_text, fingerprints
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.learner import Learner
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig, schedule

CONTEXT, VOCABULARY = 64, 2048
BASE_STEPS, BASE_ROWS = 800, 32
MIXTURE = {"reviews": 0.35, "bible": 0.25, "speeches": 0.2, "wikipedia": 0.2}


def prepare(config: RealTextConfig, folder: StudyFolder) -> dict[str, Any]:
    """Pretrain the base model in the folder, unless it is there; return what is recorded of it and of the data.

    Raises ConfigError where a file of the data is missing, CheckpointError where one has changed since the study began.
    """
    now = fingerprints(config.data)
    inputs: dict[str, str] = folder.part("inputs", lambda: now)
    if changed := [file for file, digest in inputs.items() if now.get(file) != digest]:
        raise CheckpointError(
            f"{config.data}: {', '.join(changed)} changed since the study began; start it in another --out"
        )
    make = functools.partial(pretrain_base, Path(config.data), folder.path)
    return {"inputs": inputs, "base": folder.parts({"base": make}, 1)["base"]}


def shape(tokenizer: Tokenizer) -> ModelConfig:
    """Return the shape of the base model: about 1.1 million parameters."""
    return ModelConfig(tokenizer.vocab_size, CONTEXT, 128, 4, 2, 2, 64, 384)


def pretrain_base(data: Path, out: Path) -> dict[str, float]:
    """Train tokenizer and base model and save both in `out`; return size, tokens, loss and processor seconds."""
    began = time.process_time()
    sources = base_text(data)
    tokenizer = train_tokenizer((d.text for documents in sources.values() for d in documents), VOCABULARY)
    loader = build_loader(tokenizer, sources, MIXTURE, CONTEXT, BASE_ROWS, seed=0)
    model = Transformer(shape(tokenizer), seed=0)
    learner = Learner(model, OptimizerConfig(lr=3e-3, muon_lr=0.02), "bfloat16")
    losses = []
    for step in range(BASE_STEPS):
        losses.append(learner.forward_backward([loader.batch(step)], next_token)["loss"])
        learner.optim_step(schedule(step, BASE_STEPS, 20, 0.6))
    tokenizer.save(out / "tokenizer.json")
    save_file(dict(model.state_dict()), out / "base.safetensors")
    return {
        "parameters": model.config.parameters(),
        "tokens": BASE_STEPS * BASE_ROWS * CONTEXT,
        "loss": float(np.mean(losses[-50:])),
        "cpu_seconds": time.process_time() - began,
    }


def load_base(out: Path) -> tuple[Transformer, Tokenizer]:
    """Return the base model and the tokenizer that `pretrain_base` saved."""
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    model = Transformer(shape(tokenizer))
    model.load_state_dict(load_file(out / "base.safetensors"))
    return model, tokenizer


# -- models that score sentences ------------------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Return whole sentences as ids, between two end-of-text tokens and cut to the context."""
    eot = tokenizer.endoftext
    return [[eot, *ids[: CONTEXT - 2], eot] for ids in tokenizer.encode_batch(list(sentences))]


def train_reward(
    base: Transformer, pairs: Callable[[int], list[tuple[list[int], list[int]]]], steps: int, seed: int, lr: float
) -> ValueHeadModel:
    """Train a reward model by Bradley–Terry on `pairs(step)`, (better, worse) in ids; the prompt is the first token."""
    model = ValueHeadModel(copy.deepcopy(base), seed=seed)
    model.score.bias.requires_grad_(False)
    learner = Learner(model, OptimizerConfig(lr=lr), "bfloat16")
    for step in range(steps):
        ranked = [
            Ranked(tuple(a[:1]), (tuple(a[1:]), tuple(b[1:])), (len(a), len(b)), (1, 2), ()) for a, b in pairs(step)
        ]
        learner.forward_backward([collate(ranked)], ranking_loss)
        learner.optim_step(schedule(step, steps, 10, 1.0))
    return model.eval()


def reward_scores(model: ValueHeadModel, tokenizer: Tokenizer, sentences: Sequence[str]) -> list[float]:
    """Return a reward model's score of each whole sentence."""
    return score_texts(model, encode(tokenizer, sentences), tokenizer.pad)


class BagOfWords:
    """A weight for each word; a sentence scores their sum. Logistic regression on pairs' differences of word counts."""

    def __init__(self, pairs: Pairs, steps: int = 150, decay: float = 1e-3, lr: float = 0.05) -> None:
        """Fit the weights w to (better, worse) sentences with the penalty `decay` / 2 · |w|², full batches and Adam."""
        words = sorted({w for pair in pairs for s in pair for w in self.words(s)})
        self.number = {w: i for i, w in enumerate(words)}
        sides = [self._flat([p[side] for p in pairs]) for side in (0, 1)]
        weight = torch.zeros(len(words), 1, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=lr)
        for _ in range(steps):
            good, bad = (F.embedding_bag(ids, weight, offsets, mode="sum")[:, 0] for ids, offsets in sides)
            loss = -F.logsigmoid(good - bad).mean() + decay / 2 * weight.square().sum()
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        self.weight = weight.detach()

    @staticmethod
    def words(sentence: str) -> list[str]:
        """Return words and punctuation, in lower case."""
        return re.findall(r"[a-z0-9']+|[^\sa-z0-9']", sentence.lower())

    def _flat(self, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [[self.number[w] for w in self.words(s) if w in self.number] for s in sentences]
        offsets = np.cumsum([0, *(len(i) for i in ids[:-1])])
        return torch.tensor(list(itertools.chain(*ids)), dtype=torch.long), torch.from_numpy(offsets)

    def score(self, sentences: Sequence[str]) -> list[float]:
        """Return the log odds of each sentence; words that were not seen count 0."""
        ids, offsets = self._flat(sentences)
        scores: list[float] = F.embedding_bag(ids, self.weight, offsets, mode="sum")[:, 0].tolist()
        return scores


def better(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """Return 1 where a > b, 0 where a < b, and 1/2 where they are equal to a millionth."""
    return [0.5 if abs(x - y) < 1e-6 else float(x > y) for x, y in zip(a, b)]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Return P(a positive sentence scores above a negative one), over all pairs."""
    return float(((np.sign(np.subtract.outer(np.array(positive), np.array(negative))) + 1) / 2).mean())
