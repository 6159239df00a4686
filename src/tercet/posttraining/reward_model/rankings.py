"""Rankings as ids with ranks, and their pairs without ties: the data of the reward model and of preference losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tercet.data.formats.preferences import read_comparisons
from tercet.data.types import Comparison, Conversation
from tercet.errors import DataError
from tercet.posttraining.held_out import read_sides, split_key
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.statistics.intervals import Estimate, pair_accuracy
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render_prompt
from tercet.training.run import Run

RankingData = RewardConfig | DPOConfig  # settings with comparisons


@dataclass(frozen=True)
class Ranked:
    """A prompt and its K answers as ids (each answer ends with `<|im_end|>`), with characters, ranks and scores."""

    prompt: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    characters: tuple[int, ...]
    ranks: tuple[int, ...]  # 1 is best
    scores: tuple[float, ...]  # higher is better; empty if unknown

    @property
    def texts(self) -> tuple[tuple[int, ...], ...]:
        """The ids of the prompt followed by each answer."""
        return tuple(self.prompt + answer for answer in self.answers)

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The pairs (better, worse) of answers with different ranks and different texts, as indices."""
        both = ((i, j) if self.ranks[i] < self.ranks[j] else (j, i) for i, j in combinations(range(len(self.ranks)), 2))
        return tuple((i, j) for i, j in both if self.ranks[i] != self.ranks[j] and self.answers[i] != self.answers[j])


def mean_size(prompts: Sequence[Ranked]) -> float:
    """Return the mean number of tokens of a prompt with all its answers."""
    return sum(len(p.prompt) + sum(map(len, p.answers)) for p in prompts) / len(prompts)


def encode_answer(tokenizer: Tokenizer, prompt: Conversation, answer: str) -> tuple[int, ...]:
    """Return the ids that a reward model reads: the rendered prompt, the answer and its end token."""
    return (*render_prompt(tokenizer, prompt), *tokenizer.encode(answer), tokenizer.im_end)


def encode_comparison(tokenizer: Tokenizer, comparison: Comparison) -> Ranked:
    """Return a comparison as ids, with its ranks and scores."""
    return Ranked(
        tuple(render_prompt(tokenizer, comparison.prompt)),
        tuple((*tokenizer.encode(answer), tokenizer.im_end) for answer in comparison.responses),
        tuple(len(r) for r in comparison.responses),
        comparison.ranks,
        comparison.scores,
    )


def accuracy(prompts: Sequence[Ranked], scores: Sequence[Sequence[float]]) -> Estimate:
    """Return the fraction of pairs in which the better answer scores higher; equal scores count one half.

    The interval is clustered by prompt.
    """
    hits, groups = [], []
    for number, (p, s) in enumerate(zip(prompts, scores)):
        for better, worse in p.pairs:
            hits.append(1.0 if s[better] > s[worse] else 0.5 if s[better] == s[worse] else 0.0)
            groups.append(number)
    return pair_accuracy(hits, groups)


def load_rankings(
    config: RankingData, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Ranked], list[Ranked]]:
    """Return (training, held-out) prompts that have a pair without ties and fit into `length` tokens.

    The log counts the others, which are left out. Raises DataError if a side is empty.
    """
    out = []
    parts = read_sides(config, read_comparisons, lambda c: split_key(c.prompt), run)
    for name, side in zip(("training", "held-out"), parts):
        encoded = [encode_comparison(tokenizer, c) for _, c in side]
        fitting = [r for r in encoded if max(map(len, r.texts)) <= length]
        paired = [r for r in fitting if r.pairs]
        run.log_line(
            f"{name}: {len(paired)} prompts with {sum(len(r.pairs) for r in paired)} pairs; left out: "
            f"{len(fitting) - len(paired)} with ties only, {len(encoded) - len(fitting)} longer than the context of "
            f"{length} tokens"
        )
        if not paired:
            raise DataError(
                f"none of the {len(side)} {name} rows (of {sum(map(len, parts))}, split by prompt) has two "
                f"answers of different rank that fit into {length} tokens; give more comparisons, or another "
                "--heldout-share"
            )
        out.append(paired)
    return out[0], out[1]
