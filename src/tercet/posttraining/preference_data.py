"""What preference losses learn from: batches of answers with their reference log-probabilities, computed once."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from tercet.data.conversations import to_messages
from tercet.data.feedback import Feedback, feedback, labels
from tercet.data.readers import BadRows
from tercet.data.splits import in_split
from tercet.data.types import Comparison
from tercet.errors import DataError
from tercet.model.transformer import Transformer
from tercet.posttraining.rankings import Ranked, RankingData, encode_comparison
from tercet.posttraining.reward import collate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.grouped import Grouped, group
from tercet.training.run import Run, load_tensors

PASS_TOKENS = 16_384  # tokens per forward pass outside of training
Ids = Sequence[int]


@dataclass(frozen=True)
class PairBatch:
    """Several prompts, each a row with all its answers, and their strict pairs."""

    rows: Grouped
    reference: Tensor  # [N] f64, log π_ref of every answer; zeros where the loss has no reference
    pairs: Tensor  # [P, 2] i64, answers (better, worse)
    weights: Tensor  # [P] f64, 1 / C(K, 2) of the pair's prompt
    shares: Tensor  # [P] f64, 1 / (strict pairs of the prompt): for means that ties do not lower
    count: float  # prompts

    @property
    def tokens(self) -> Tensor:
        """Ids of the rows, [B, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class LabelledBatch:
    """Several prompts, each a row with its answers, which are desirable or undesirable one by one."""

    rows: Grouped
    reference: Tensor  # [N] f64
    desirable: Tensor  # [N] bool
    shares: Tensor  # [N] f64: Σ shares · x / count is the mean of x over the step's answers of this kind
    z0: float  # of the whole step, or its loss would depend on how it is split
    count: float  # answers

    @property
    def tokens(self) -> Tensor:
        """Ids of the rows, [B, T]."""
        return self.rows.tokens


@dataclass(frozen=True)
class Labelled(Ranked):
    """One prompt's answers with KTO's labels: true (desirable), false (undesirable) or None (not trained on)."""

    labels: tuple[bool | None, ...]

    def chosen(self) -> list[int]:
        """The numbers of the answers that are trained on."""
        return [i for i, label in enumerate(self.labels) if label is not None]


def pair_batch(prompts: Sequence[Ranked], reference: Sequence[Tensor], pad: int) -> PairBatch:
    """Prompts side by side; `reference` has a tensor [K] for each."""
    ranked = collate(prompts, pad)
    shares = torch.tensor([1 / len(p.pairs) for p in prompts for _ in p.pairs], dtype=torch.float64)
    return PairBatch(
        ranked.rows, torch.cat(list(reference)), ranked.pairs, ranked.pair_weights, shares, float(len(prompts))
    )


def labelled_batches(
    prompts: Sequence[Labelled], reference: Sequence[Tensor], z0: float, rows: int, pad: int
) -> Iterator[LabelledBatch]:
    """A step's prompts in micro-batches of at most `rows`; `reference` has a tensor [K] for each prompt."""
    kept = [p.chosen() for p in prompts]
    good = [torch.tensor([bool(p.labels[i]) for i in k]) for p, k in zip(prompts, kept)]
    every = torch.cat(good)
    total, desirable = len(every), int(every.sum())
    # a step with one kind alone has no means to compare: it logs neither
    share = (total / desirable, total / (total - desirable)) if 0 < desirable < total else (0.0, 0.0)
    for a in range(0, len(prompts), rows):
        s = slice(a, a + rows)
        mine = torch.cat(good[s])
        yield LabelledBatch(
            group(
                [p.prompt for p in prompts[s]], [[p.answers[i] for i in k] for p, k in zip(prompts[s], kept[s])], pad
            ),
            torch.cat([r[k] for r, k in zip(reference[s], kept[s])]),
            mine,
            torch.where(mine, *share).double(),
            z0,
            float(len(mine)),
        )


# -- from files -----------------------------------------------------------------------------------------------------


def encode_labelled(tokenizer: Tokenizer, item: Feedback | Comparison) -> Labelled:
    """Ids and labels of a row; of a comparison all strict pairs too, for measuring."""
    if isinstance(item, Feedback):
        ranked = encode_comparison(tokenizer, Comparison(item.prompt, (item.response,), (1,)))
    else:
        ranked = encode_comparison(tokenizer, item)
    return Labelled(ranked.prompt, ranked.answers, ranked.characters, ranked.ranks, ranked.scores, labels(item))


def load_labelled(
    config: RankingData, tokenizer: Tokenizer, length: int, run: Run
) -> tuple[list[Labelled], list[Labelled]]:
    """(training, held-out) prompts with at least one labelled answer, split as `load_rankings` does.

    Raises DataError where a side is empty, where the training side has one kind of answer alone, or one prompt alone.
    """
    bad = BadRows(skip=config.skip_bad_rows)
    every = [item for _, item in feedback(config.data, bad)]
    if config.heldout:
        sides = every, [item for _, item in feedback(config.heldout, bad)]
    else:
        kept = [in_split(json.dumps(to_messages(i.prompt)), config.heldout_share) for i in every]
        sides = [i for i, k in zip(every, kept) if not k], [i for i, k in zip(every, kept) if k]
    run.log_skipped(bad.count, bad.messages)
    out = []
    for name, side in zip(("training", "held-out"), sides):
        encoded = [encode_labelled(tokenizer, item) for item in side]
        fitting = [p for p in encoded if max(map(len, p.texts)) <= length]
        out.append([p for p in fitting if p.chosen()])
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


def mismatched(prompts: Sequence[Labelled], length: int, seed: int) -> list[list[Ids]]:
    """For each prompt the labelled answers of another prompt, always the same one, cut to the context of `length` tokens.

    The prompts stand in a circle in a seeded order, each before the one whose answers it gets.
    """
    rows: dict[Ids, list[int]] = {}
    for i, p in enumerate(prompts):
        rows.setdefault(p.prompt, []).append(i)
    circle = [list(rows)[i] for i in np.random.default_rng([seed, 4]).permutation(len(rows))]
    out: list[list[Ids]] = [[] for _ in prompts]
    for prompt, other in zip(circle, circle[1:] + circle[:1]):
        for i, j in zip(rows[prompt], itertools.cycle(rows[other])):
            out[i] = [prompts[j].answers[k][: length - len(prompt)] for k in prompts[j].chosen()]
    return out


# -- log-probabilities outside of training --------------------------------------------------------------------------


@torch.no_grad()
def answer_logprobs(
    model: Transformer, prompts: Sequence[Ids], answers: Sequence[Sequence[Ids]], pad: int
) -> list[Tensor]:
    """log π of every prompt's answers, a float64 tensor [K] for each prompt; rows of like length go together."""
    size = [len(p) + sum(map(len, mine)) for p, mine in zip(prompts, answers)]
    order = sorted(range(len(prompts)), key=lambda i: -size[i])
    out = [torch.empty(0)] * len(prompts)
    while order:
        rows = max(1, PASS_TOKENS // size[order[0]])
        part, order = order[:rows], order[rows:]
        found = group([prompts[i] for i in part], [answers[i] for i in part], pad).logprobs(model)
        for i, mine in zip(part, found.split([len(answers[i]) for i in part])):
            out[i] = mine
    return out


def kept_references(run: Run, compute: Callable[[], Mapping[str, list[Tensor]]]) -> dict[str, list[Tensor]]:
    """What `compute` gives, written to RUN/reference.safetensors and read from there when the run is resumed."""
    file = run.path / "reference.safetensors"
    if not file.is_file():
        aside = run.path / ".reference.tmp"
        found = {name: (torch.cat(each), torch.tensor([len(x) for x in each])) for name, each in compute().items()}
        save_file({f"{n}/{k}": t for n, pair in found.items() for k, t in zip(("logp", "answers"), pair)}, aside)
        os.replace(aside, file)
    tensors = load_tensors(file)
    names = [name.removesuffix("/logp") for name in tensors if name.endswith("/logp")]
    return {n: list(tensors[f"{n}/logp"].split(tensors[f"{n}/answers"].tolist())) for n in names}
