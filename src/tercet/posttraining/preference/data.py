"""What preference losses learn from: batches of answers with their reference log-probabilities, computed once."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tercet.data.formats.feedback import Feedback, labels, read_feedback
from tercet.data.readers import BadRows
from tercet.data.types import Comparison
from tercet.errors import DataError
from tercet.model.transformer import Transformer
from tercet.posttraining.held_out import question, split_heldout
from tercet.posttraining.reward_model.rankings import Ranked, RankingData, encode_comparison
from tercet.posttraining.reward_model.train import collate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.checkpoints import load_tensors
from tercet.training.learner import Learner
from tercet.training.run import Run
from tercet.training.shared_prompts import PackedGroups, pack_groups

PASS_TOKENS = 16_384  # tokens per forward pass outside of training
Asked = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # a prompt and its answers, as ids


@dataclass(frozen=True)
class PairBatch:
    """Several prompts with all their answers, and the strict pairs."""

    rows: PackedGroups
    reference: Tensor  # [N] f64, log π_ref of every answer; zeros where the loss has no reference
    pairs: Tensor  # [P, 2] i64, answers (better, worse)
    weights: Tensor  # [P] f64, 1 / C(K, 2) of the pair's prompt
    shares: Tensor  # [P] f64, 1 / (strict pairs of the prompt): for means that ties do not lower
    count: float  # prompts

    @property
    def tokens(self) -> Tensor:
        """All ids, each prompt's once, [1, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class LabelledBatch:
    """Several prompts with their answers, which are desirable or undesirable one by one."""

    rows: PackedGroups
    reference: Tensor  # [N] f64
    desirable: Tensor  # [N] bool
    shares: Tensor  # [N] f64: Σ shares · x / count is the mean of x over the step's answers of this kind
    z0: float  # of the whole step, or its loss would depend on how it is split
    count: float  # answers

    @property
    def tokens(self) -> Tensor:
        """All ids, each prompt's once, [1, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class Labelled(Ranked):
    """One prompt's answers with KTO's labels: true (desirable), false (undesirable) or None (not trained on)."""

    labels: tuple[bool | None, ...]

    @property
    def labelled(self) -> list[int]:
        """The numbers of the answers that are trained on."""
        return [i for i, label in enumerate(self.labels) if label is not None]

    @property
    def labelled_answers(self) -> tuple[tuple[int, ...], ...]:
        """The answers that are trained on."""
        return tuple(self.answers[i] for i in self.labelled)


def pair_batch(prompts: Sequence[Ranked], reference: Sequence[Tensor]) -> PairBatch:
    """Prompts side by side; `reference` has a tensor [K] for each."""
    ranked = collate(prompts)
    found = [len(p.pairs) for p in prompts]
    shares = torch.tensor([1 / n for n in found for _ in range(n)], dtype=torch.float64)
    return PairBatch(
        ranked.rows, torch.cat(list(reference)), ranked.pairs, ranked.pair_weights, shares, float(len(prompts))
    )


def labelled_batches(
    prompts: Sequence[Labelled], reference: Sequence[Tensor], z0: float, micro: int
) -> list[LabelledBatch]:
    """A step's prompts in micro-batches of at most `micro`; `reference` has a tensor [K] for each prompt."""
    kinds = [torch.tensor([label for label in p.labels if label is not None]) for p in prompts]
    every = torch.cat(kinds)
    total, desirable = len(every), int(every.sum())
    # a step with one kind alone has no means to compare: it logs neither
    both = (total / desirable, total / (total - desirable)) if 0 < desirable < total else (0.0, 0.0)
    share = torch.tensor(both, dtype=torch.float64)
    out = []
    for a in range(0, len(prompts), micro):
        part, mine = prompts[a : a + micro], torch.cat(kinds[a : a + micro])
        rows = pack_groups([p.prompt for p in part], [p.labelled_answers for p in part])
        ref = torch.cat([r[p.labelled] for p, r in zip(part, reference[a : a + micro])])
        out.append(LabelledBatch(rows, ref, mine, share[(~mine).long()], z0, float(len(mine))))
    return out


# -- from files -----------------------------------------------------------------------------------------------------


def encode_labelled(tokenizer: Tokenizer, item: Feedback | Comparison) -> Labelled:
    """Ids and labels of a row; of a comparison the ranks too, for measuring."""
    plain = Comparison(item.prompt, (item.response,), (1,)) if isinstance(item, Feedback) else item
    ranked = encode_comparison(tokenizer, plain)
    return Labelled(ranked.prompt, ranked.answers, ranked.characters, ranked.ranks, ranked.scores, labels(item))


def load_labelled(
    config: RankingData, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Labelled], list[Labelled]]:
    """(training, held-out) prompts with at least one labelled answer, split as `load_rankings` does.

    Raises DataError where a side is empty, where the training side has one kind of answer alone, or one prompt alone.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    every = [item for _, item in read_feedback(config.data, bad)]
    named = [item for _, item in read_feedback(config.heldout, bad)] if config.heldout else None
    run.log_skipped(bad.count, bad.messages)
    out = []
    parts = split_heldout(every, named, lambda item: question(item.prompt), config.heldout_share, run)
    for name, side in zip(("training", "held-out"), parts):
        encoded = [encode_labelled(tokenizer, item) for item in side]
        fitting = [p for p in encoded if max(map(len, p.texts)) <= length]
        out.append([p for p in fitting if p.labelled])
        good, bad_ones = (sum(p.labels.count(label) for p in out[-1]) for label in (True, False))
        run.log_line(
            f"{name}: {len(out[-1])} prompts with {good} desirable and {bad_ones} undesirable answers; left out: "
            f"{len(fitting) - len(out[-1])} with ties only, {len(encoded) - len(fitting)} longer than the context of {length} tokens"
        )
        if not out[-1]:
            raise DataError(f"no {name} row has a labelled answer that fits; give more rows")
        if name == "training" and not (good and bad_ones):
            raise DataError(
                f"the training rows have {good} desirable and {bad_ones} undesirable answers; KTO needs both kinds"
            )
    if len({p.prompt for p in out[0]}) < 2:
        raise DataError("all training rows have the same prompt; KTO needs others, whose answers do not belong to it")
    return out[0], out[1]


def mismatched(prompts: Sequence[Labelled], length: int, seed: int) -> list[Asked]:
    """Each prompt with the labelled answers of another, always the same one, cut to the context of `length` tokens.

    The prompts stand in a circle in a seeded order, each before the one whose answers it gets.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(prompts):
        rows.setdefault(p.prompt, []).append(i)
    circle = [list(rows)[i] for i in np.random.default_rng([seed, 4]).permutation(len(rows))]
    out: dict[int, Asked] = {}
    for prompt, other in zip(circle, circle[1:] + circle[:1]):
        for i, j in zip(rows[prompt], itertools.cycle(rows[other])):
            out[i] = prompt, tuple(a[: length - len(prompt)] for a in prompts[j].labelled_answers)
    return [out[i] for i in range(len(prompts))]


# -- log-probabilities outside of training --------------------------------------------------------------------------


@torch.no_grad()
def answer_logprobs(learner: Learner[Transformer], asked: Sequence[Asked]) -> list[Tensor]:
    """log π of every prompt's answers, a float64 tensor [K] for each prompt; those of like length go together."""
    size = [len(prompt) + sum(map(len, answers)) for prompt, answers in asked]
    order = sorted(range(len(asked)), key=lambda i: -size[i])
    out = [torch.empty(0)] * len(asked)
    while order:
        rows = max(1, PASS_TOKENS // size[order[0]])
        part, order = order[:rows], order[rows:]
        with learner.autocast():
            found = pack_groups([asked[i][0] for i in part], [asked[i][1] for i in part]).logprobs(learner.model)
        for i, mine in zip(part, torch.split(found, [len(asked[i][1]) for i in part])):
            out[i] = mine
    return out


def reference_logprobs(
    run: Run, learner: Learner[Transformer], sides: Mapping[str, Sequence[Asked]]
) -> dict[str, list[Tensor]]:
    """`answer_logprobs` of every side before the first step, kept in RUN/reference.safetensors for when it is resumed."""
    file, aside = run.path / "reference.safetensors", run.path / ".reference.tmp"
    if not file.is_file():
        save_file({name: torch.cat(answer_logprobs(learner, asked)) for name, asked in sides.items()}, aside)
        os.replace(aside, file)
    kept = load_tensors(file)
    return {
        name: list(torch.split(kept[name], [len(answers) for _, answers in asked])) for name, asked in sides.items()
    }
