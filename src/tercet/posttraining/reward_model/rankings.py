"""Rankings as the methods that learn from them need them: ids, ranks, and every pair that is not tied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tercet.data.formats.preferences import read_comparisons
from tercet.data.readers import BadRows
from tercet.data.types import Comparison, Conversation
from tercet.errors import DataError
from tercet.posttraining.held_out import question, split_heldout
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.statistics.intervals import Estimate, pair_accuracy
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render_prompt
from tercet.training.run import Run

RankingData = RewardConfig | DPOConfig  # the settings that say where comparisons are


@dataclass(frozen=True)
class Ranked:
    """One prompt's answers as ids (each ends with `<|im_end|>`), with their characters, ranks and scores."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    characters: tuple[int, ...]
    ranks: tuple[int, ...]  # 1 is best
    scores: tuple[float, ...]  # the higher the better; empty where not known

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """The prompt with each answer."""
        return tuple(self.prompt + answer for answer in self.answers)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """(better, worse) of every two answers of different rank; ties give none, nor do answers of the same text."""
        both = ((i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in combinations(range(len(self.ranks)), 2))
        return tuple((i, j) for i, j in both if self.ranks[i] != self.ranks[j] and self.answers[i] != self.answers[j])


def mean_size(prompts: Sequence[Ranked]) -> float:
    """Mean number of tokens of a prompt with all its answers."""
    return sum(len(p.prompt) + sum(map(len, p.answers)) for p in prompts) / len(prompts)


def encode_answer(tokenizer: Tokenizer, prompt: Conversation, answer: str) -> tuple[int, ...]:
    """Ids that the reward model reads: the prompt as chat sends it, the answer and its end."""
    return (*render_prompt(tokenizer, prompt), *tokenizer.encode(answer), tokenizer.im_end)


def encode_comparison(tokenizer: Tokenizer, comparison: Comparison) -> Ranked:
    """Ids of the prompt and of all answers."""
    return Ranked(
        tuple(render_prompt(tokenizer, comparison.prompt)),
        tuple((*tokenizer.encode(answer), tokenizer.im_end) for answer in comparison.responses),
        tuple(len(r) for r in comparison.responses),
        comparison.ranks,
        comparison.scores,
    )


def accuracy(prompts: Sequence[Ranked], scores: Sequence[Sequence[float]]) -> Estimate:
    """Share of strict pairs in which the better answer scores higher (equal scores count one half), clustered by prompt."""
    hits, groups = [], []
    for number, (p, s) in enumerate(zip(prompts, scores)):
        for better, worse in p.pairs:
            hits.append(1.0 if s[better] > s[worse] else 0.5 if s[better] == s[worse] else 0.0)
            groups.append(number)
    return pair_accuracy(hits, groups)


def load_rankings(
    config: RankingData, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Ranked], list[Ranked]]:
    """(training, held-out) prompts that have at least one strict pair. Others are counted and left out.

    Raises DataError where a side is empty.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    every = [c for _, c in read_comparisons(config.data, bad)]
    named = [c for _, c in read_comparisons(config.heldout, bad)] if config.heldout else None
    run.log_skipped(bad.count, bad.messages)
    out = []
    parts = split_heldout(every, named, lambda c: question(c.prompt), config.heldout_share, run)
    for name, side in zip(("training", "held-out"), parts):
        encoded = [encode_comparison(tokenizer, c) for c in side]
        fitting = [r for r in encoded if max(map(len, r.texts)) <= length]
        kept = [r for r in fitting if r.pairs]
        run.log_line(
            f"{name}: {len(kept)} prompts with {sum(len(r.pairs) for r in kept)} pairs; left out: {len(fitting) - len(kept)} with ties only, "
            f"{len(encoded) - len(fitting)} longer than the context of {length} tokens"
        )
        if not kept:
            raise DataError(
                f"no {name} prompt has two answers of different rank that fit; give more comparisons, or another heldout_share: "
                f"{len(every)} row(s) were split by prompt"
            )
        out.append(kept)
    return out[0], out[1]
