"""Best-of-n: the best of n answers by a proxy reward, what it is worth by the proxy and by a scorer, for every n.

Its answers are data for rejection-sampling fine-tuning: `tercet best-of-n …`, then `tercet sft --data RUN/best/train.jsonl`.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from tercet.data.formats.conversations import to_messages, to_row
from tercet.data.formats.prompts import read_prompts
from tercet.data.readers import BadRows, write_jsonl
from tercet.data.types import Message
from tercet.errors import ConfigError
from tercet.evaluation.scoring.scorers import Scorer, scorers_for
from tercet.inference.chat import answer_params, fit_prompts
from tercet.inference.generate import generate
from tercet.posttraining.rewards.rewards import Answered, Rewards, question_of, scored
from tercet.posttraining.rewards.stage import BestOfNConfig
from tercet.statistics.intervals import mean
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text
from tercet.training.load import load_language_model
from tercet.training.run import Run

BATCH = 512  # answers sampled and scored together


def chances(scores: Sequence[float], k: int) -> list[float]:
    """For each of n answers the chance to be picked as the best of k that are drawn from the n without replacement.

    Sorted by score, the i-th of n is the best of k in C(i − 1, k − 1) of C(n, k) draws (Nakano et al. 2021; Gao et al.
    2022). Answers with one score share their chance: among equals the pick is by lot. Raises ConfigError unless 1 ≤ k ≤ n.
    """
    if not 1 <= k <= len(scores):
        raise ConfigError(f"best of {k} of {len(scores)} answers: wanted 1 to {len(scores)}")
    out = [0.0] * len(scores)
    draws, below = math.comb(len(scores), k), 0
    for _, tied in groupby(sorted(range(len(scores)), key=scores.__getitem__), key=scores.__getitem__):
        equal = list(tied)
        # all k are from these or from below, but not all are from below: Σ C(i − 1, k − 1) over these
        share = (math.comb(below + len(equal), k) - math.comb(below, k)) / draws / len(equal)
        for i in equal:
            out[i] = share
        below += len(equal)
    return out


def best_of_k(proxy: Sequence[float], scores: Sequence[float], k: int) -> float:
    """The expected score of the best of k answers by the proxy, from n ≥ k answers, without bias."""
    return math.fsum(chance * score for chance, score in zip(chances(proxy, k), scores))


def kl_bon(k: int) -> float:
    """KL(best-of-k ‖ model) in nats, ln k − (k − 1)/k: exact where no two answers tie, an upper bound otherwise."""
    return math.log(k) - (k - 1) / k


@dataclass(frozen=True)
class Judged:
    """The n answers to one prompt with their reward, and their scores by the scorers that can score them."""

    answers: list[Answered]
    proxy: list[float]
    scores: dict[str, list[float]]

    @property
    def best(self) -> int:
        """The answer with the highest proxy score among those that ended, or of all where none did; the first of several.

        What is cut off has no score of its own: missing_eos_score stands in, and may be above that of a whole answer.
        """
        return max(range(len(self.proxy)), key=lambda i: (self.answers[i].finished, self.proxy[i], -i))


def curve(judged: Sequence[Judged]) -> list[dict[str, Any]]:
    """A row for k = 1, 2, 4, … and n: KL, proxy and scores of the best of k, with intervals clustered by prompt."""
    n = min(len(one.proxy) for one in judged)
    names = dict.fromkeys(name for one in judged for name in one.scores)
    rows = []
    for k in sorted({*(2**i for i in range(n.bit_length())), n}):
        row: dict[str, Any] = {"k": k, "kl": kl_bon(k)}
        row["proxy"] = mean([best_of_k(one.proxy, one.proxy, k) for one in judged], groups=_prompts(judged)).to_json()
        for name in names:
            known = [one for one in judged if name in one.scores]
            values = [best_of_k(one.proxy, one.scores[name], k) for one in known]
            row.setdefault("scores", {})[name] = mean(values, groups=_prompts(known)).to_json()
        rows.append(row)
    return rows


def _prompts(judged: Sequence[Judged]) -> list[Hashable]:
    """A prompt that stands in several rows is one unit."""
    return [one.answers[0].prompt for one in judged]


def kept(judged: Sequence[Judged], minimum_score: float | None) -> tuple[list[Answered], dict[str, int]]:
    """The best answers that are worth learning from, and how many were left out for what."""
    out, left = [], {"unfinished": 0, "too_low": 0}
    for one in judged:
        best, score = one.answers[one.best], one.proxy[one.best]
        if not best.finished:
            left["unfinished"] += 1
        elif minimum_score is not None and not score > minimum_score:
            left["too_low"] += 1
        else:
            out.append(best)
    return out, left


def _judge(config: BestOfNConfig, parent: Run, bad: BadRows) -> Iterator[Judged]:
    """Sample and score, prompt by prompt; the samples depend on the seed and the number of the prompt and the answer."""
    model, tokenizer = load_language_model(parent), Tokenizer.load(parent.path)
    found = list(read_prompts(config.prompts, bad))
    prompts = fit_prompts(tokenizer, [(w, p) for w, p, _ in found], model.config.context_length, config.max_new_tokens)
    params = answer_params(tokenizer, config.max_new_tokens, config.temperature)
    with Rewards(config.reward, tokenizer, model.config, config.reward_timeout, config.reward_retries) as rewards:
        rewards.check((where, task) for where, _, task in found)
        scorers = scorers_for(config.scorer, [question_of(*row) for row in found])
        size = max(1, BATCH // config.answers)
        for begin in range(0, len(found), size):
            numbers = [i for i in range(begin, min(begin + size, len(found))) for _ in range(config.answers)]
            seeds = [config.seed * 1_000_003 + begin * config.answers + i for i in range(len(numbers))]
            done = generate(model, [prompts[i] for i in numbers], params, seeds, batch_size=128)
            answers = []
            for i, completion in zip(numbers, done):
                where, prompt, task = found[i]
                text, finished = answer_text(tokenizer, completion.tokens)
                answers.append(Answered(where, prompt, text, finished, (*prompts[i], *completion.tokens), task))
            totals, _ = rewards(answers)
            for a in range(0, len(answers), config.answers):
                part = slice(a, a + config.answers)
                yield _judged(answers[part], totals[part], config.missing_eos_score, scorers)


def _judged(
    answers: list[Answered], totals: Sequence[float], missing_eos_score: float, scorers: Sequence[Scorer]
) -> Judged:
    proxy = [total if one.finished else missing_eos_score for one, total in zip(answers, totals)]
    scores = {scorer.name: scored(scorer, answers) for scorer in scorers}
    return Judged(answers, proxy, {name: values for name, values in scores.items() if values})


def _row(one: Judged) -> dict[str, Any]:
    """A line of scores.jsonl."""
    row: dict[str, Any] = {"prompt": to_messages(one.answers[0].prompt), "answers": [a.text for a in one.answers]}
    row |= {"finished": [a.finished for a in one.answers], "proxy": one.proxy}
    return row | ({"scores": one.scores} if one.scores else {})


def best_of_n(config: BestOfNConfig, run: Run) -> None:
    """Sample n answers to each prompt and keep the best. The run has

    best/train.jsonl (conversations), scores.jsonl (every answer with its scores) and the curve under "best_of_n" in
    run.json.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    judged = list(_judge(config, run.parents["model"], bad))
    run.log_skipped(bad.count, bad.messages)
    write_jsonl(run.path / "scores.jsonl", map(_row, judged))
    best, left = kept(judged, config.minimum_score)
    rows = (to_row((*one.prompt, Message("assistant", one.text))) for one in best)
    write_jsonl(run.path / "best" / "train.jsonl", rows)
    counts = {"prompts": len(judged), "answers": config.answers, "kept": len(best), **left}
    run.update(best=counts, best_of_n=curve(judged))
    run.log_line(
        f"best of {config.answers}: {len(best)} of {len(judged)} prompts kept; left out: {left['unfinished']} whose best "
        f"answer has no end, {left['too_low']} whose best answer is not above the minimum score"
    )
