"""Best-of-n: pick the best of n answers by a proxy reward; measure its proxy reward and scores for every k ≤ n.

The best answers are data for rejection-sampling fine-tuning: `tercet best-of-n …`, then
`tercet sft --data RUN/best/train.jsonl`.
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
from tercet.posttraining.rewards.rewards import Rewards, SampledAnswer, apply_scorer, as_question
from tercet.posttraining.rewards.stage import BestOfNConfig
from tercet.statistics.intervals import mean
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text
from tercet.training.load import load_language_model
from tercet.training.run import Run

BATCH = 512  # answers sampled and scored together


def chances(scores: Sequence[float], k: int) -> list[float]:
    """Return, for each of n answers, the probability that it is the best of k drawn from the n without replacement.

    Sorted by score, the i-th of n is the best of k in C(i − 1, k − 1) of C(n, k) draws (Nakano et al. 2021; Gao et al.
    2022). Answers with equal scores share their probability, as if one of them were picked at random. Raises
    ConfigError unless 1 ≤ k ≤ n.
    """
    if not 1 <= k <= len(scores):
        raise ConfigError(f"best of {k} of {len(scores)} answers is not defined; wanted k from 1 to {len(scores)}")
    out = [0.0] * len(scores)
    draws, below = math.comb(len(scores), k), 0
    for _, tied in groupby(sorted(range(len(scores)), key=scores.__getitem__), key=scores.__getitem__):
        equal = list(tied)
        # draws with all k of this score or below, minus draws with all k below: Σ C(i − 1, k − 1) over these answers
        share = (math.comb(below + len(equal), k) - math.comb(below, k)) / draws / len(equal)
        for i in equal:
            out[i] = share
        below += len(equal)
    return out


def best_of_k(proxy: Sequence[float], scores: Sequence[float], k: int) -> float:
    """Return an unbiased estimate, from n ≥ k answers, of the expected score of the proxy's best of k answers."""
    return math.fsum(chance * score for chance, score in zip(chances(proxy, k), scores))


def kl_bon(k: int) -> float:
    """Return KL(best-of-k ‖ model) in nats, ln k − (k − 1)/k: exact without ties, an upper bound with ties."""
    return math.log(k) - (k - 1) / k


@dataclass(frozen=True)
class ScoredAnswers:
    """The n answers to one prompt with their proxy reward, and their scores by all scorers that can score them."""

    answers: list[SampledAnswer]
    proxy: list[float]
    scores: dict[str, list[float]]

    @property
    def best(self) -> int:
        """The index of the best finished answer by the proxy, or of the best of all if none finished.

        Of several best answers, the first is taken. Finished answers come first because an answer that was cut off has
        only missing_eos_score, which may be higher.
        """
        return max(range(len(self.proxy)), key=lambda i: (self.answers[i].finished, self.proxy[i], -i))


def score_curve(prompts: Sequence[ScoredAnswers]) -> list[dict[str, Any]]:
    """Return a row for k = 1, 2, 4, … and n: KL, proxy and scores of the best of k, intervals clustered by prompt."""
    n = min(len(one.proxy) for one in prompts)
    names = dict.fromkeys(name for one in prompts for name in one.scores)
    rows = []
    for k in sorted({*(2**i for i in range(n.bit_length())), n}):
        row: dict[str, Any] = {"k": k, "kl": kl_bon(k)}
        values = [best_of_k(one.proxy, one.proxy, k) for one in prompts]
        row["proxy"] = mean(values, groups=_groups(prompts)).to_json()
        for name in names:
            scored = [one for one in prompts if name in one.scores]
            values = [best_of_k(one.proxy, one.scores[name], k) for one in scored]
            row.setdefault("scores", {})[name] = mean(values, groups=_groups(scored)).to_json()
        rows.append(row)
    return rows


def _groups(prompts: Sequence[ScoredAnswers]) -> list[Hashable]:
    """Return the clusters of an interval: rows with the same prompt are one cluster."""
    return [one.answers[0].prompt for one in prompts]


def select_best(
    prompts: Sequence[ScoredAnswers], minimum_score: float | None
) -> tuple[list[SampledAnswer], dict[str, int]]:
    """Return the best answers that are worth training on, and the number of those left out by reason."""
    out, left = [], {"unfinished": 0, "too_low": 0}
    for one in prompts:
        best, score = one.answers[one.best], one.proxy[one.best]
        if not best.finished:
            left["unfinished"] += 1
        elif minimum_score is not None and not score > minimum_score:
            left["too_low"] += 1
        else:
            out.append(best)
    return out, left


def _sample(config: BestOfNConfig, parent: Run, bad: BadRows) -> Iterator[ScoredAnswers]:
    """Sample and score answers, prompt by prompt. A sample depends on the seed and on its prompt and answer number."""
    model, tokenizer = load_language_model(parent), Tokenizer.load(parent.path)
    rows = list(read_prompts(config.prompts, bad))
    prompts = fit_prompts(tokenizer, [(w, p) for w, p, _ in rows], model.config.context_length, config.max_new_tokens)
    params = answer_params(tokenizer, config.max_new_tokens, config.temperature)
    with Rewards(config.reward, tokenizer, model.config, config.reward_timeout, config.reward_retries) as rewards:
        rewards.check((where, question) for where, _, question in rows)
        scorers = scorers_for(config.scorer, [as_question(*row) for row in rows])
        size = max(1, BATCH // config.answers)
        for begin in range(0, len(rows), size):
            numbers = [i for i in range(begin, min(begin + size, len(rows))) for _ in range(config.answers)]
            seeds = [config.seed * 1_000_003 + begin * config.answers + i for i in range(len(numbers))]
            done = generate(model, [prompts[i] for i in numbers], params, seeds, batch_size=128)
            answers = []
            for i, completion in zip(numbers, done):
                where, prompt, question = rows[i]
                text, finished = answer_text(tokenizer, completion.tokens)
                answers.append(
                    SampledAnswer(where, prompt, text, finished, (*prompts[i], *completion.tokens), question)
                )
            totals, _ = rewards(answers)
            for a in range(0, len(answers), config.answers):
                part = slice(a, a + config.answers)
                yield _score(answers[part], totals[part], config.missing_eos_score, scorers)


def _score(
    answers: list[SampledAnswer], totals: Sequence[float], missing_eos_score: float, scorers: Sequence[Scorer]
) -> ScoredAnswers:
    proxy = [total if one.finished else missing_eos_score for one, total in zip(answers, totals)]
    scores = {scorer.name: apply_scorer(scorer, answers) for scorer in scorers}
    return ScoredAnswers(answers, proxy, {name: values for name, values in scores.items() if values})


def _row(one: ScoredAnswers) -> dict[str, Any]:
    """Return a row of scores.jsonl."""
    row: dict[str, Any] = {"prompt": to_messages(one.answers[0].prompt), "answers": [a.text for a in one.answers]}
    row |= {"finished": [a.finished for a in one.answers], "proxy": one.proxy}
    return row | ({"scores": one.scores} if one.scores else {})


def best_of_n(config: BestOfNConfig, run: Run) -> None:
    """Sample n answers to each prompt and keep the best.

    Writes best/train.jsonl (conversations), scores.jsonl (every answer with its scores), and the curve under
    "best_of_n" in run.json.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    prompts = list(_sample(config, run.parents["model"], bad))
    run.log_skipped(bad.count, bad.messages)
    write_jsonl(run.path / "scores.jsonl", map(_row, prompts))
    best, left = select_best(prompts, config.minimum_score)
    rows = (to_row((*one.prompt, Message("assistant", one.text))) for one in best)
    write_jsonl(run.path / "best" / "train.jsonl", rows)
    counts = {"prompts": len(prompts), "answers": config.answers, "kept": len(best), **left}
    run.update(best=counts, best_of_n=score_curve(prompts))
    run.log_line(
        f"best of {config.answers}: {len(best)} of {len(prompts)} prompts kept; left out: {left['unfinished']} whose "
        f"best answer was cut off, {left['too_low']} whose best answer is not above the minimum score"
    )
