"""Data of the preference losses: batches of answers with reference log-probabilities, which are computed once."""

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
from tercet.data.types import Comparison
from tercet.errors import DataError
from tercet.model.transformer import Transformer
from tercet.posttraining.held_out import read_sides, split_key
from tercet.posttraining.reward_model.rankings import Ranked, RankingData, encode_comparison
from tercet.posttraining.reward_model.train import collate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.checkpoints import load_tensors
from tercet.training.learner import Learner
from tercet.training.run import Run
from tercet.training.shared_prompts import PackedGroups, pack_groups

LOGPROB_PASS_TOKENS = 16_384  # tokens per forward pass outside of training
PromptAnswers = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]  # ids of a prompt and of its answers


@dataclass(frozen=True)
class PairBatch:
    """Several prompts with all their answers and their pairs without ties."""

    rows: PackedGroups
    reference: Tensor  # [N] f64, log π_ref of every answer; zeros for losses without a reference
    pairs: Tensor  # [P, 2] i64, answers (better, worse)
    weights: Tensor  # [P] f64, 1 / C(K, 2) of the pair's prompt
    shares: Tensor  # [P] f64, 1 / (pairs of the prompt): for means over pairs, which ties do not lower
    count: float  # number of prompts

    @property
    def tokens(self) -> Tensor:
        """All ids, with each prompt once, [1, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class LabelledBatch:
    """Several prompts with their answers, each of which is labelled desirable or undesirable."""

    rows: PackedGroups
    reference: Tensor  # [N] f64
    desirable: Tensor  # [N] bool
    shares: Tensor  # [N] f64: Σ shares · x / count is the mean of x over the step's answers with this label
    z0: float  # of the whole step, so that the loss does not depend on the micro-batches
    count: float  # number of answers

    @property
    def tokens(self) -> Tensor:
        """All ids, with each prompt once, [1, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class Labelled(Ranked):
    """One prompt's answers with KTO's labels: true (desirable), false (undesirable) or None (not trained on)."""

    labels: tuple[bool | None, ...]

    @property
    def labelled(self) -> list[int]:
        """The indices of the answers that are trained on."""
        return [i for i, label in enumerate(self.labels) if label is not None]

    @property
    def labelled_answers(self) -> tuple[tuple[int, ...], ...]:
        """The answers that are trained on."""
        return tuple(self.answers[i] for i in self.labelled)


def pair_batch(prompts: Sequence[Ranked], reference: Sequence[Tensor]) -> PairBatch:
    """Make a batch of several prompts; `reference` has a tensor [K] for each."""
    ranked = collate(prompts)
    pairs = [len(p.pairs) for p in prompts]
    shares = torch.tensor([1 / n for n in pairs for _ in range(n)], dtype=torch.float64)
    return PairBatch(
        ranked.rows, torch.cat(list(reference)), ranked.pairs, ranked.pair_weights, shares, float(len(prompts))
    )


def labelled_batches(
    prompts: Sequence[Labelled], reference: Sequence[Tensor], z0: float, micro: int
) -> list[LabelledBatch]:
    """Split a step's prompts into micro-batches of at most `micro`; `reference` has a tensor [K] for each prompt."""
    labels = [torch.tensor([label for label in p.labels if label is not None]) for p in prompts]
    total, desirable = sum(map(len, labels)), int(torch.cat(labels).sum())
    # a step in which all answers have the same label logs no means, because there is nothing to compare
    both = (total / desirable, total / (total - desirable)) if 0 < desirable < total else (0.0, 0.0)
    share = torch.tensor(both, dtype=torch.float64)
    out = []
    for a in range(0, len(prompts), micro):
        part, good = prompts[a : a + micro], torch.cat(labels[a : a + micro])
        rows = pack_groups([p.prompt for p in part], [p.labelled_answers for p in part])
        ref = torch.cat([r[p.labelled] for p, r in zip(part, reference[a : a + micro])])
        out.append(LabelledBatch(rows, ref, good, share[(~good).long()], z0, float(len(good))))
    return out


# -- from files -----------------------------------------------------------------------------------------------------


def encode_labelled(tokenizer: Tokenizer, item: Feedback | Comparison) -> Labelled:
    """Return the ids and labels of a row; a comparison keeps its ranks too, for evaluation."""
    plain = Comparison(item.prompt, (item.response,), (1,)) if isinstance(item, Feedback) else item
    ranked = encode_comparison(tokenizer, plain)
    return Labelled(ranked.prompt, ranked.answers, ranked.characters, ranked.ranks, ranked.scores, labels(item))


def load_labelled(
    config: RankingData, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Labelled], list[Labelled]]:
    """Return (training, held-out) prompts with at least one labelled answer, split as in `load_rankings`.

    Raises DataError if a side is empty, or if all training answers have the same label or the same prompt.
    """
    out = []
    parts = read_sides(config, read_feedback, lambda item: split_key(item.prompt), run)
    for name, side in zip(("training", "held-out"), parts):
        encoded = [encode_labelled(tokenizer, item) for _, item in side]
        fitting = [p for p in encoded if max(map(len, p.texts)) <= length]
        out.append([p for p in fitting if p.labelled])
        good, bad_ones = (sum(p.labels.count(label) for p in out[-1]) for label in (True, False))
        run.log_line(
            f"{name}: {len(out[-1])} prompts with {good} desirable and {bad_ones} undesirable answers; left out: "
            f"{len(fitting) - len(out[-1])} with ties only, {len(encoded) - len(fitting)} longer than the context of "
            f"{length} tokens"
        )
        if not out[-1]:
            raise DataError(
                f"none of the {len(side)} {name} rows has a labelled answer that fits into {length} tokens; give more "
                "rows, or another --heldout-share"
            )
        if name == "training" and not (good and bad_ones):
            raise DataError(
                f"the training rows have {good} desirable and {bad_ones} undesirable answers; KTO needs both: add rows "
                "with the missing label"
            )
    if len({p.prompt for p in out[0]}) < 2:
        raise DataError(
            "all training rows have the same prompt, but KTO also needs answers to other prompts; add rows with other "
            "prompts"
        )
    return out[0], out[1]


def mismatched(prompts: Sequence[Labelled], length: int, seed: int) -> list[PromptAnswers]:
    """Return every prompt with the labelled answers of another prompt, truncated to `length` tokens in total.

    The distinct prompts are put in a circle, in a seeded order; each gets the answers of the next one.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    for i, p in enumerate(prompts):
        rows.setdefault(p.prompt, []).append(i)
    circle = [list(rows)[i] for i in np.random.default_rng([seed, 4]).permutation(len(rows))]
    out: dict[int, PromptAnswers] = {}
    for prompt, other in zip(circle, circle[1:] + circle[:1]):
        for i, j in zip(rows[prompt], itertools.cycle(rows[other])):
            out[i] = prompt, tuple(a[: length - len(prompt)] for a in prompts[j].labelled_answers)
    return [out[i] for i in range(len(prompts))]


# -- log-probabilities outside of training --------------------------------------------------------------------------


@torch.no_grad()
def answer_logprobs(learner: Learner[Transformer], prompts: Sequence[PromptAnswers]) -> list[Tensor]:
    """Return log π of every prompt's answers, one float64 tensor [K] per prompt; similar lengths share a pass."""
    size = [len(prompt) + sum(map(len, answers)) for prompt, answers in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -size[i])
    out = [torch.empty(0)] * len(prompts)
    while order:
        rows = max(1, LOGPROB_PASS_TOKENS // size[order[0]])
        part, order = order[:rows], order[rows:]
        with learner.autocast():
            logps = pack_groups([prompts[i][0] for i in part], [prompts[i][1] for i in part]).logprobs(learner.model)
        for i, own in zip(part, torch.split(logps, [len(prompts[i][1]) for i in part])):
            out[i] = own
    return out


def reference_logprobs(
    run: Run, learner: Learner[Transformer], splits: Mapping[str, Sequence[PromptAnswers]]
) -> dict[str, list[Tensor]]:
    """Return the `answer_logprobs` of every split under the policy before its first step.

    They are saved in RUN/reference.safetensors, from which a resumed run reads them.
    """
    file, temporary = run.path / "reference.safetensors", run.path / ".reference.tmp"
    if not file.is_file():
        save_file({name: torch.cat(answer_logprobs(learner, prompts)) for name, prompts in splits.items()}, temporary)
        os.replace(temporary, file)
    saved = load_tensors(file)
    return {
        name: list(torch.split(saved[name], [len(answers) for _, answers in prompts]))
        for name, prompts in splits.items()
    }
