"""Real text, split so that nothing held out is trained on; each reader checks that itself.

sentiment_data()   labelled review sentences: two halves, and a fifth that is held out
choice_data()      BLiMP's pairs without those that people chose from and without ten whole paradigms; the choices
base_text()        text to pretrain on that contains no held-out sentence
"""

from __future__ import annotations

import gzip
import itertools
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tercet.data.documents import bible
from tercet.data.types import Document
from tercet.errors import ConfigError, DataError
from tercet.training.provenance import file_hash

SENTIMENT_FILE = "sentiment/sentence_polarity.zip"
BLIMP_FILE = "blimp/blimp_data_67_paradigms.tar.gz"
CHOICES_FILE = "human-comparisons/blimp-human.jsonl.gz"
SPEECHES_FILE = "text/state_union.zip"
WIKIPEDIA_FILE = "text/wikitext2-valid.txt.gz"
FILES = (SENTIMENT_FILE, BLIMP_FILE, CHOICES_FILE, SPEECHES_FILE, WIKIPEDIA_FILE)
HELD_OUT_PARADIGMS, HELD_OUT_PAIRS = 10, 200  # paradigms, and pairs of each that are measured
Sentences = list[str]
Pairs = list[tuple[str, str]]  # (better, worse)


def fingerprints(folder: str) -> dict[str, str]:
    """Return the hash of every file of the data. Raises ConfigError where the folder lacks one."""
    for file in FILES:
        if not (Path(folder) / file).is_file():
            raise ConfigError(f"--data {folder}: there is no {file}; the folder must hold {', '.join(FILES)}")
    return {file: file_hash(Path(folder) / file) for file in FILES}


def plain(text: str) -> str:
    """Return the words alone, in lower case. Sentences are compared like this, so that no comma hides a copy."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


def must_be_apart(training: Iterable[str], held_out: Iterable[str], what: str) -> None:
    """Check that no held-out sentence is in training. Raises DataError, which names `what`, where one is."""
    if shared := {plain(s) for s in training} & {plain(s) for s in held_out}:
        raise DataError(
            f"{what}: {len(shared)} held-out sentence(s) are also in training, for example {min(shared)!r}; "
            "nothing held out may be trained on: leave them out of the training text"
        )


def reviews(folder: Path) -> dict[str, Sentences]:
    """Return {"pos": sentences, "neg": sentences}, shuffled; each sentence is there once and none in both."""
    with zipfile.ZipFile(folder / SENTIMENT_FILE) as file:
        sentences = {
            kind: file.read(f"sentence_polarity/rt-polarity.{kind}").decode().split("\n") for kind in ("pos", "neg")
        }
    both = {plain(s) for s in sentences["pos"]} & {plain(s) for s in sentences["neg"]}
    out: dict[str, Sentences] = {}
    for kind, lines in sentences.items():
        unique = {plain(s): s.strip() for s in lines if plain(s) not in both and plain(s)}
        order = np.random.default_rng(0).permutation(len(unique))
        out[kind] = [list(unique.values())[i] for i in order]
    return out


@dataclass(frozen=True)
class SentimentData:
    """The same fifth of the sentences is held out for every seed; the rest is split into halves anew for each seed."""

    proxy: dict[str, Sentences]
    gold: dict[str, Sentences]
    held_out: dict[str, Sentences]

    @property
    def training(self) -> Sentences:
        """All sentences that are not held out."""
        return [s for part in (self.proxy, self.gold) for kind in ("pos", "neg") for s in part[kind]]


def sentiment_data(folder: Path, seed: int) -> SentimentData:
    """Return the split of a seed. Raises DataError where its parts share a sentence."""
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
        """(right, wrong) by the gold label; intervals are clustered by it."""
        return (self.chosen, self.rejected) if self.gold_agrees else (self.rejected, self.chosen)


@dataclass(frozen=True)
class ChoiceData:
    """Training pairs, people's choices, and held-out paradigms with their pairs."""

    training: Pairs
    choices: list[Choice]
    held_out: dict[str, Pairs]
    unseen: frozenset[str]  # paradigms of people's choices without any training pair


def choice_data(folder: Path) -> ChoiceData:
    """Return BLiMP's pairs without any sentence that people saw and without ten whole paradigms, and the choices."""
    paradigms: dict[str, Pairs] = {}
    with tarfile.open(folder / BLIMP_FILE) as file:
        for member in sorted(file.getnames()):
            if member.endswith(".jsonl") and (stream := file.extractfile(member)):
                rows = [json.loads(line) for line in stream]
                paradigms[Path(member).stem] = [(r["sentence_good"], r["sentence_bad"]) for r in rows]
    with gzip.open(folder / CHOICES_FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    choices = [Choice(r["phenomenon"], r["chosen"], r["rejected"], r["gold_agrees"]) for r in rows]
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
    """Return the text to pretrain on, by source: reviews that are not held out, the Bible, speeches, Wikipedia."""
    data = sentiment_data(folder, 0)
    with zipfile.ZipFile(folder / SPEECHES_FILE) as file:
        speeches = [file.read(n).decode("utf-8", "replace") for n in sorted(file.namelist()) if n.endswith(".txt")]
    with gzip.open(folder / WIKIPEDIA_FILE, "rt", encoding="utf-8") as file:
        articles = re.split(r"\n (?== [^=]+ = \n)", file.read())
    texts = {"reviews": data.training, "bible": [d.text for d in bible()], "speeches": speeches, "wikipedia": articles}
    sentences = [s for name in texts if name != "reviews" for t in texts[name] for s in re.split(r"[.!?;:\n]", t)]
    held_out = [s for kind in data.held_out.values() for s in kind]
    must_be_apart([*data.training, *sentences], held_out, "pretraining (reviews)")
    must_be_apart([*data.training, *sentences], (s for c in choice_data(folder).choices for s in c.pair), "pretraining")
    return {name: [Document(t, name, f"{name}/{i}") for i, t in enumerate(parts)] for name, parts in texts.items()}


def measured_pairs(data: ChoiceData) -> Pairs:
    """Return the pairs that people chose from, each once, then the first 200 of every held-out paradigm."""
    people = list(dict.fromkeys(c.pair for c in data.choices))
    return people + [pair for pairs in data.held_out.values() for pair in pairs[:HELD_OUT_PAIRS]]
