"""PPO against a reward model of review sentences (Ziegler et al. 2019), measured by two other models."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure

from tercet.inference.generate import Completion, SamplingParams, generate
from tercet.inference.language_model import TransformerLM
from tercet.inference.reward_scores import score_texts
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.train import normalise_rewards
from tercet.posttraining.rl.ppo import PPO
from tercet.posttraining.rl.rollouts import Clock, generate_rollouts
from tercet.posttraining.rl.stage import PPOConfig
from tercet.reporting.claims import Claim
from tercet.reporting.figures import COLOURS, GRID, INK
from tercet.studies.estimates import Json, above, below, cell, interval, table, text
from tercet.studies.folder import StudyFolder
from tercet.studies.real_text.data import Sentences, sentiment_data
from tercet.studies.real_text.models import (
    BagOfWords,
    auc,
    better,
    encode,
    load_base,
    prepare,
    reward_scores,
    train_reward,
)
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.loader import permuted

if TYPE_CHECKING:
    from tercet.studies.real_text.sentiment_study import SentimentConfig

REWARD_STEPS, REWARD_PAIRS = 110, 32
PPO_STEPS, PPO_BATCH, BETA, NEW_TOKENS, MISSING_END = 45, 64, 0.15, 24, -1.0
PPO_LR = 1e-3
MEASURED_PREFIXES = 256  # prefixes that policies are measured on; PPO uses none of them
SCORERS = ("proxy", "gold", "words")  # PPO is trained against the first and never sees the others
MEASURES = (*SCORERS, "kl", "ended", "tokens")
FAR = 10.0  # nats of KL


def sentiment(config: SentimentConfig, folder: StudyFolder) -> Json:
    """Pretrain the base model, then train and measure the policy of every seed."""
    prepared = prepare(config, folder)
    measure = functools.partial(measure_seed, data=Path(config.data), out=folder.path)
    seeds = folder.seeds(measure, config.seed, config.seeds, config.jobs)
    return {**prepared, "summary": summarise(seeds)}


# -- one seed -----------------------------------------------------------------------------------------------------


def measure_seed(seed: int, data: Path, out: Path) -> Json:
    """Train the scorers on their halves, then a policy on the proxy; measure it before and after."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    split = sentiment_data(data, seed)
    held_out = [s for pair in zip(split.held_out["pos"], split.held_out["neg"]) for s in pair]
    proxy = sentiment_reward(base, tokenizer, split.proxy, held_out, seed)
    gold = sentiment_reward(base, tokenizer, split.gold, held_out, 1_000 + seed)
    scorers = Scorers(proxy, gold, BagOfWords(list(zip(split.gold["pos"], split.gold["neg"]))), tokenizer)
    reviews = {kind: scorers.scores(sentences) for kind, sentences in split.held_out.items()}
    prompts = prefixes(tokenizer, held_out)
    before = measure_policy(base, base, scorers, prompts[:MEASURED_PREFIXES])
    scored = time.process_time()
    policy, curve = align(seed, base, scorers, prompts[MEASURED_PREFIXES:])
    after = measure_policy(policy, base, scorers, prompts[:MEASURED_PREFIXES])
    samples = [{"before": b, "after": a} for b, a in zip(before.pop("texts")[:6], after.pop("texts")[:6])]
    return {
        "seed": seed,
        "before": before,
        "after": after,
        "curve": curve,
        "samples": samples,
        "auc": {n: auc(reviews["pos"][n], reviews["neg"][n]) for n in SCORERS},
        "accuracy": {n: float(np.mean(better(reviews["pos"][n], reviews["neg"][n]))) for n in SCORERS},
        "reviews": {k: {n: float(np.mean(v)) for n, v in by.items()} for k, by in reviews.items()},
        "cpu_seconds": time.process_time() - began,
        "cpu_seconds_ppo": time.process_time() - scored,
    }


def sentiment_reward(
    base: Transformer, tokenizer: Tokenizer, half: Mapping[str, Sentences], held_out: Sentences, seed: int
) -> ValueHeadModel:
    """Train a reward model to prefer positive sentences; held-out sentences get mean 0 and standard deviation 1."""
    ids = {kind: encode(tokenizer, sentences) for kind, sentences in half.items()}

    def pairs(step: int) -> list[tuple[list[int], list[int]]]:
        positive, negative = ids["pos"], ids["neg"]
        return [
            (positive[permuted(i, len(positive), (seed, 0))], negative[permuted(i, len(negative), (seed, 1))])
            for i in range(step * REWARD_PAIRS, (step + 1) * REWARD_PAIRS)
        ]

    model = train_reward(base, pairs, REWARD_STEPS, seed, lr=1e-3)
    normalise_rewards(model, [], reward_scores(model, tokenizer, held_out))
    return model


def prefixes(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """Return the first 4 to 6 words of every sentence of at least 9 words, as ids without an end of text."""
    words = [s.split() for s in sentences if len(s.split()) >= 9]
    texts = [" ".join(w[: 4 + i % 3]) for i, w in enumerate(words)]
    return [[tokenizer.endoftext, *ids] for ids in tokenizer.encode_batch(texts)]


@dataclass(frozen=True)
class Scorers:
    """The proxy that PPO is trained against, and two that it never sees: a reward model and a bag of words."""

    proxy: ValueHeadModel
    gold: ValueHeadModel
    words: BagOfWords
    tokenizer: Tokenizer

    def scores(self, sentences: Sequence[str]) -> dict[str, list[float]]:
        """Return every scorer's scores of whole sentences."""
        models = {"proxy": self.proxy, "gold": self.gold}
        scores = {name: reward_scores(model, self.tokenizer, sentences) for name, model in models.items()}
        return {**scores, "words": self.words.score(sentences)}


def align(
    seed: int, base: Transformer, scorers: Scorers, prompts: Sequence[list[int]]
) -> tuple[Transformer, list[dict[str, float]]]:
    """Train a policy by PPO against the proxy; return it and reward, KL and gold of each step before its update."""
    tokenizer = scorers.tokenizer
    method = PPO(ppo_config(seed), base, scorers.proxy)
    params = SamplingParams(NEW_TOKENS, 1.0, stop_ids=(tokenizer.endoftext,))
    end: dict[str, Any] = {"end_id": tokenizer.endoftext, "missing_eos_score": MISSING_END, "pad": tokenizer.pad}
    curve = []
    for step in range(PPO_STEPS):
        batch = [prompts[permuted(step * PPO_BATCH + i, len(prompts), (seed, 2))] for i in range(PPO_BATCH)]

        def score(numbers: Sequence[int], done: Sequence[Completion], batch: list[list[int]] = batch) -> list[float]:
            return score_texts(scorers.proxy, [[*batch[n], *c.tokens] for n, c in zip(numbers, done)], tokenizer.pad)

        seeds = [(seed * 1_000 + step) * 1_000 + i for i in range(PPO_BATCH)]
        policy, version = method.policy.model, method.policy.updates
        rollouts, done = generate_rollouts(
            policy, base, batch, params, seeds, score, group_size=1, version=version, clock=Clock(), **end
        )
        texts = [closed([*p, *c.tokens], tokenizer) for p, c in zip(batch, done)]
        row = {
            "reward": float(rollouts.rewards.mean()),
            "kl": float(rollouts.kl().sum(1).mean()),
            "gold": float(np.mean(score_texts(scorers.gold, texts, tokenizer.pad))),
        }
        curve.append(row)
        method.update(step, rollouts, BETA)
    return method.policy.ema_model().eval(), curve


def ppo_config(seed: int) -> PPOConfig:
    """Return the settings of PPO. No run folders are read or written: their names are placeholders."""
    return PPOConfig(
        model="-",
        reward=("-",),
        prompts=("-",),
        beta=BETA,
        gamma=0.0,
        steps=PPO_STEPS,
        batch_size=PPO_BATCH,
        minibatches=2,
        lr=PPO_LR,
        critic_lr=1e-3,
        warmup=3,
        max_new_tokens=NEW_TOKENS,
        missing_eos_score=MISSING_END,
        seed=seed,
        threads=1,
    )


def closed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """Return a text with an end, also where it was cut off: the scorers were trained on whole sentences."""
    return ids if ids[-1] == tokenizer.endoftext else [*ids, tokenizer.endoftext]


def measure_policy(
    policy: Transformer, base: Transformer, scorers: Scorers, prompts: Sequence[list[int]]
) -> dict[str, Any]:
    """Continue held-out prefixes, with the same random numbers for every policy, and measure each continuation."""
    tokenizer = scorers.tokenizer
    params = SamplingParams(NEW_TOKENS, 1.0, stop_ids=(tokenizer.endoftext,))
    done = generate(policy, prompts, params, list(range(len(prompts))), batch_size=128)
    ids = [closed([*p, *c.tokens], tokenizer) for p, c in zip(prompts, done)]
    requests = [(p, c.tokens) for p, c in zip(prompts, done)]
    scored = (TransformerLM(model, tokenizer).score(requests) for model in (policy, base))
    texts = [tokenizer.decode(t) for t in ids]
    words = [tokenizer.decode(c.tokens).split() for c in done]
    bigrams = [pair for w in words for pair in itertools.pairwise(w)]
    return {
        "proxy": score_texts(scorers.proxy, ids, tokenizer.pad),
        "gold": score_texts(scorers.gold, ids, tokenizer.pad),
        "words": scorers.words.score(texts),
        "kl": [a.logprob - b.logprob for a, b in zip(*scored)],
        "ended": [float(c.finish == "stop") for c in done],
        "tokens": [float(len(c.tokens)) for c in done],
        "distinct_bigrams": len(set(bigrams)) / max(1, len(bigrams)),
        "texts": texts,
    }


# -- over seeds ---------------------------------------------------------------------------------------------------


def threshold(result: Json, scorer: str) -> float:
    """Return the score above which a scorer judges positive: half way between held-out reviews of both kinds."""
    return float(result["reviews"]["pos"][scorer] + result["reviews"]["neg"][scorer]) / 2


def summarise(seeds: Sequence[Json]) -> Json:
    """Return means over seeds with Student's t intervals; differences are between policies of the same seed."""

    def means(when: str, name: str) -> list[float]:
        return [float(np.mean(r[when][name])) for r in seeds]

    def ended(when: str, name: str) -> list[float]:  # PPO also learns to end: is that all that it learns?
        return [float(np.mean(np.array(r[when][name])[np.array(r[when]["ended"]) > 0])) for r in seeds]

    def positive(when: str, name: str) -> list[float]:
        return [float(np.mean(np.array(r[when][name]) > threshold(r, name))) for r in seeds]

    def gain(measure: Any) -> Json:
        return {n: interval(np.subtract(measure("after", n), measure("before", n)).tolist()) for n in SCORERS}

    out: Json = {k: {n: interval([r[k][n] for r in seeds]) for n in SCORERS} for k in ("auc", "accuracy")}
    for when in ("before", "after"):
        out[when] = {n: interval(means(when, n)) for n in MEASURES}
        out[when]["distinct_bigrams"] = interval([r[when]["distinct_bigrams"] for r in seeds])
        out[when]["positive"] = {n: interval(positive(when, n)) for n in SCORERS}
    out["gain"] = {**gain(means), "positive": gain(positive), "of those that ended": gain(ended)}
    out["seeds"] = [{"kl": kl, "gold": gold} for kl, gold in zip(means("after", "kl"), means("after", "gold"))]
    out["reviews"] = {
        kind: {n: float(np.mean([r["reviews"][kind][n] for r in seeds])) for n in SCORERS} for kind in ("pos", "neg")
    }
    out["curves"] = [r["curve"] for r in seeds]
    out["samples"] = [r["samples"] for r in seeds]
    return out


def claims(results: Json) -> list[Claim]:
    """State that the scorers know sentiment and that PPO raises what it never saw, at a bounded KL."""
    summary = results["summary"]
    known, gain, kl = summary["auc"], summary["gain"], summary["after"]["kl"]
    each = [seed["kl"] for seed in summary["seeds"]]
    return [
        Claim(
            "all three scorers know held-out reviews (area under the ROC curve above 0.65)",
            all(above(known[n], 0.65) for n in SCORERS),
            ", ".join(f"{LABELS[n]} {text(known[n])}" for n in SCORERS),
        ),
        Claim("PPO raises the proxy that it is trained against", above(gain["proxy"]), text(gain["proxy"])),
        Claim("PPO raises the gold reward model's score, which it never saw", above(gain["gold"]), text(gain["gold"])),
        Claim(
            "more continuations are positive by the gold reward model",
            above(gain["positive"]["gold"]),
            f"share {text(gain['positive']['gold'])}",
        ),
        Claim(
            f"the policy stays within {FAR:g} nats of the base model",
            below(kl, FAR) and all(0 < value <= FAR for value in each),
            f"KL {text(kl)} nats per continuation, at most {max(each):.1f} in any seed",
        ),
    ]


LABELS = {"proxy": "proxy", "gold": "gold", "words": "bag of words"}


def tables(results: Json) -> str:
    """Return the scores before and after PPO, and the other measures, as Markdown tables."""
    summary = results["summary"]
    before, after, gain = (summary[k] for k in ("before", "after", "gain"))
    rows = {
        "positive above negative reviews (AUC)": summary["auc"],
        "score before": before,
        "score after": after,
        "gain, paired by seed": gain,
        "gain, only texts that ended by themselves": gain["of those that ended"],
        "share positive before": before["positive"],
        "share positive after": after["positive"],
    }
    other = {
        "KL (nats)": "kl",
        "share that ended": "ended",
        "tokens": "tokens",
        "distinct two-word phrases": "distinct_bigrams",
    }
    return "\n".join(
        [
            table(["", *LABELS.values()], [[label, *(cell(row[n]) for n in SCORERS)] for label, row in rows.items()]),
            table(["", "before", "after"], [[label, cell(before[n]), cell(after[n])] for label, n in other.items()]),
        ]
    )


def figures(results: Json) -> dict[str, Figure]:
    """Draw reward and gold against KL along PPO, a line for each seed, and the share positive before and after."""
    summary = results["summary"]
    figure = Figure(figsize=(7.2, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, curve in enumerate(summary["curves"]):
        smooth = {k: np.convolve([p[k] for p in curve], np.ones(5) / 5, "valid") for k in ("kl", "reward", "gold")}
        for hue, (name, label) in enumerate((("reward", "reward (proxy; no end: −1)"), ("gold", "gold"))):
            look = {"color": COLOURS[hue], "linewidth": 1.1}
            left.plot(smooth["kl"], smooth[name], label=None if number else label, **look)
    left.set(xlabel="KL from the base, nats per continuation", ylabel="score (sd of real reviews)")
    left.legend(fontsize=8)
    for number, scorer in enumerate(SCORERS):
        for shift, when, colour in ((-0.17, "before", GRID), (0.17, "after", COLOURS[1])):
            e = summary[when]["positive"][scorer]
            right.bar(number + shift, e["value"], 0.32, color=colour, label=None if number else f"{when} PPO")
            right.plot([number + shift] * 2, [e["low"], e["high"]], color=INK, linewidth=1)
    right.set_xticks(range(len(SCORERS)), ["proxy", "gold\n(other half)", "bag of words\n(other half)"])
    right.set(ylabel="share judged positive", ylim=(0, 1))
    right.legend(fontsize=8, loc="upper right", ncols=2)
    return {"sentiment": figure}
