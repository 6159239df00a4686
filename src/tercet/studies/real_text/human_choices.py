"""People's choices between two sentences, predicted by a reward model that learned BLiMP's pairs."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from matplotlib.figure import Figure

from tercet.model.transformer import Transformer
from tercet.reporting.claims import Claim
from tercet.reporting.figures import COLOURS, GRID, INK, MARKERS
from tercet.statistics.intervals import mean
from tercet.studies.estimates import Json, above, cell, interval, table, text
from tercet.studies.folder import StudyFolder
from tercet.studies.real_text.data import HELD_OUT_PAIRS, Choice, ChoiceData, Pairs, choice_data, measured_pairs
from tercet.studies.real_text.models import BagOfWords, better, encode, load_base, prepare, reward_scores, train_reward
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.loader import permuted
from tercet.training.shared_prompts import pack_groups

if TYPE_CHECKING:
    from tercet.studies.real_text.human_choices_study import HumanChoicesConfig

REWARD_STEPS, REWARD_PAIRS = 300, 32
REWARD, GOLD = "reward model", "gold label"


def human_choices(config: HumanChoicesConfig, folder: StudyFolder) -> Json:
    """Pretrain the base model, measure the baselines, then train and measure the reward model of every seed."""
    prepared = prepare(config, folder)
    data, out = Path(config.data), folder.path
    baselines = folder.parts({"baselines": functools.partial(measure_baselines, data, out)}, 1)["baselines"]
    measure = functools.partial(measure_seed, data=data, out=out)
    seeds = folder.seeds(measure, config.seed, config.seeds, config.jobs)
    return {**prepared, "summary": summarise(choice_data(data), baselines, seeds)}


# -- one seed -----------------------------------------------------------------------------------------------------


def rights(score: Callable[[Sequence[str]], Sequence[float]], pairs: Pairs) -> list[float]:
    """Return for each pair 1 where the right sentence scores higher, 0 where the wrong one does, 1/2 for a tie."""
    scores = score([s for pair in pairs for s in pair])
    return better(scores[::2], scores[1::2])


def measure_seed(seed: int, data: Path, out: Path) -> Json:
    """Train the reward model of one seed; return which pairs it orders as the gold label does."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    choices = choice_data(data)
    ids = list(zip(*(encode(tokenizer, [p[side] for p in choices.training]) for side in (0, 1))))

    def pairs(step: int) -> list[tuple[list[int], list[int]]]:
        return [ids[permuted(i, len(ids), (seed, 3))] for i in range(step * REWARD_PAIRS, (step + 1) * REWARD_PAIRS)]

    model = train_reward(base, pairs, REWARD_STEPS, seed, lr=1e-3)
    ordered = rights(functools.partial(reward_scores, model, tokenizer), measured_pairs(choices))
    return {"seed": seed, "rights": ordered, "cpu_seconds": time.process_time() - began}


def measure_baselines(data: Path, out: Path) -> Json:
    """Return the same for a bag of words of all training pairs and for the base model's likelihood."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    choices = choice_data(data)
    pairs, words = measured_pairs(choices), BagOfWords(choices.training)
    ordered = {"bag of words": rights(words.score, pairs)}
    likelihood = log_likelihood(base, tokenizer, [s for pair in pairs for s in pair])
    ordered |= {f"base, {kind}": better(v[::2], v[1::2]) for kind, v in likelihood.items()}
    return {"rights": ordered, "cpu_seconds": time.process_time() - began}


@torch.no_grad()
def log_likelihood(model: Transformer, tokenizer: Tokenizer, sentences: Sequence[str]) -> dict[str, list[float]]:
    """Return log π(sentence) in nats at the beginning of a text, as "sum" and "per token"."""
    answers = tokenizer.encode_batch(list(sentences))
    total: list[float] = []
    for a in range(0, len(answers), 64):
        batch = answers[a : a + 64]
        total += pack_groups([[tokenizer.endoftext]] * len(batch), [[ids] for ids in batch]).logprobs(model).tolist()
    return {"sum": total, "per token": [t / len(ids) for t, ids in zip(total, answers)]}


# -- over seeds ---------------------------------------------------------------------------------------------------


def agreement(rights: Mapping[tuple[str, str], float], choices: Sequence[Choice]) -> list[float]:
    """Return for each choice 1 where a model with these `rights` chooses like the person, 0 where it does not."""
    return [rights[c.pair] if c.gold_agrees else 1 - rights[c.pair] for c in choices]


def clustered(values: Sequence[float], choices: Sequence[Choice]) -> Json:
    """Return the mean over choices with an interval clustered by pair."""
    return mean(values, groups=[c.pair for c in choices]).to_json()


def summarise(data: ChoiceData, baselines: Json, seeds: Sequence[Json]) -> Json:
    """Return the accuracy on people's choices, clustered by pair, and on held-out paradigms, clustered by paradigm."""
    pairs = measured_pairs(data)
    people = len({c.pair for c in data.choices})
    every = {**baselines["rights"], REWARD: np.mean([r["rights"] for r in seeds], axis=0).tolist()}
    by_pair = {model: dict(zip(pairs[:people], ordered)) for model, ordered in every.items()}
    gold = {c.pair: 1.0 for c in data.choices}
    parts = {
        "all": data.choices,
        "seen paradigms": [c for c in data.choices if c.paradigm not in data.unseen],
        "unseen paradigms": [c for c in data.choices if c.paradigm in data.unseen],
    }
    predicted = {
        part: {m: clustered(agreement(table, choices), choices) for m, table in {**by_pair, GOLD: gold}.items()}
        for part, choices in parts.items()
    }
    owner = [name for name, those in data.held_out.items() for _ in those[:HELD_OUT_PAIRS]]
    learned = np.array(agreement(by_pair[REWARD], data.choices))
    others = {m: np.array(agreement(by_pair[m], data.choices)) for m in baselines["rights"]}
    chance = np.full(len(learned), 0.5)
    each = [dict(zip(pairs[:people], r["rights"])) for r in seeds]
    return {
        "choices": len(data.choices),
        "pairs": people,
        "people": predicted,
        "held_out_paradigms": {m: mean(ordered[people:], groups=owner).to_json() for m, ordered in every.items()},
        "gold": {m: mean(ordered[:people]).to_json() for m, ordered in every.items()},
        "reward model minus": {
            m: clustered((learned - other).tolist(), data.choices) for m, other in {**others, "chance": chance}.items()
        },
        "over seeds": interval([float(np.mean(agreement(table, data.choices))) for table in each]),
        "held out": sorted(data.held_out),
    }


def claims(results: Json) -> list[Claim]:
    """State that the reward model predicts people better than every baseline, and no better than people agree."""
    summary = results["summary"]
    people, minus = summary["people"]["all"], summary["reward model minus"]
    return [
        Claim(
            "the reward model predicts people's choices better than chance, a bag of words and the base's likelihood",
            all(above(difference) for difference in minus.values()),
            ", ".join(f"minus {name} {text(difference)}" for name, difference in minus.items()),
        ),
        Claim(
            "it does not predict them better than the gold label does",
            people[REWARD]["value"] < people[GOLD]["value"],
            f"reward model {text(people[REWARD])}, gold label {text(people[GOLD])}",
        ),
    ]


def tables(results: Json) -> str:
    """Return the accuracy of every model on every part of the choices as a Markdown table."""
    people = results["summary"]["people"]
    rows = [[model, *(cell(people[part][model], 3) for part in people)] for model in people["all"]]
    return table(["people's choices predicted", *people], rows)


def figures(results: Json) -> dict[str, Figure]:
    """Draw the accuracy of every model with its interval, for all, seen and unseen paradigms."""
    people = results["summary"]["people"]
    figure = Figure(figsize=(7.2, 2.6), layout="constrained")
    axes = figure.subplots()
    models = [REWARD, *(m for m in people["all"] if m not in (REWARD, GOLD)), GOLD]
    for number, part in enumerate(people):
        for row, model in enumerate(models):
            e, y = people[part][model], row + 0.2 * (number - 1)
            axes.plot([e["low"], e["high"]], [y, y], color=COLOURS[number], linewidth=1.4)
            label = None if row else part
            axes.plot(e["value"], y, MARKERS[number], color=COLOURS[number], markersize=5, label=label)
    axes.axvline(people["all"][GOLD]["value"], color=INK, linestyle="--", linewidth=1)
    axes.axvline(0.5, color=GRID, linestyle=":", linewidth=1)
    axes.set_yticks(range(len(models)), models)
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlabel("share of people's choices predicted (dotted: chance; dashed: the gold label)")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return {"human-choices": figure}
