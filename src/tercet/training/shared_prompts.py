"""Several answers to one prompt, which is read once: a batch's prompts and answers end to end, without padding.

    tokens     P P P P a a a b b c c c c Q Q …
    positions  0 1 2 3 4 5 6 4 5 4 5 6 7 0 1 …      an answer's positions continue its prompt's

Attention alone works on whole sequences, a row for each answer (PPPPaaa, PPPPbb, …). The reward model, DPO and related
methods, and the group methods of RL all learn from such batches. The results are the same as with one row for each
answer (tested).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tercet.model.attention import PrefixPart, SharedPrefix
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.training.losses import token_logprobs


@dataclass(frozen=True)
class PackedGroups:
    """Prompts with their answers as T positions of one row; answers are numbered 0 … N − 1 through the batch."""

    tokens: Tensor  # [1, T] i64
    positions: Tensor  # [1, T] i64
    attention: SharedPrefix  # which positions make up the sequence of each answer
    # [A] i64: for every answer token, the position of the token before it (for the first: the prompt's last)
    before: Tensor
    target: Tensor  # [A] i64: that answer token's id
    answer: Tensor  # [A] i64: the answer that it belongs to
    last: Tensor  # [N] i64: the position of every answer's last token

    @property
    def answers(self) -> int:
        """How many answers there are."""
        return len(self.last)

    def hidden(self, model: Transformer, at: Tensor) -> Tensor:
        """Hidden states of the positions `at`, [A, D]."""
        return model.hidden(self.tokens, positions_BT=self.positions, attention=self.attention, at=at)

    def token_logprobs(self, model: Transformer, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """log π of every answer token, and the entropy of π there, both [A]; log π with gradients."""
        return token_logprobs(model, self.hidden(model, self.before), self.target, temperature)

    def logprobs(self, model: Transformer) -> Tensor:
        """log π(answer | prompt), summed over the answer's tokens, [N] float64."""
        return self.sum(self.token_logprobs(model)[0])

    def sum(self, per_token: Tensor) -> Tensor:
        """[A] summed over each answer's tokens, [N] float64."""
        zeros = torch.zeros(self.answers, dtype=torch.float64, device=per_token.device)
        return zeros.index_add(0, self.answer, per_token.double())

    def lengths(self) -> Tensor:
        """Tokens of every answer, [N]."""
        return torch.bincount(self.answer, minlength=self.answers)

    def scores(self, model: ValueHeadModel) -> Tensor:
        """The scalar model's number at every answer's last token, [N] float64."""
        return model.read(self.hidden(model.backbone, self.last)).double()


def pack_groups(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> PackedGroups:
    """A batch of `prompts` with their `answers`, a list for each. Raises ValueError for an empty prompt or answer."""
    if not all(prompts) or not all(all(mine) and mine for mine in answers):
        raise ValueError("every prompt and every answer needs at least one token, and every prompt an answer")
    sequences, at = [], 0  # (prompt, answer, their positions in the row)
    for prompt, mine in zip(prompts, answers):
        shared, at = np.arange(at, at + len(prompt)), at + len(prompt)
        for ids in mine:
            sequences.append((prompt, ids, np.concatenate([shared, np.arange(at, at + len(ids))])))
            at += len(ids)
    longest = max(len(places) for _, _, places in sequences)
    rows = np.zeros((len(sequences), longest), dtype=np.int64)
    tokens, positions, home = (np.zeros(at, dtype=np.int64) for _ in range(3))
    for number, (prompt, ids, places) in enumerate(sequences):
        steps = np.arange(len(places))
        rows[number, : len(places)] = places
        tokens[places], positions[places], home[places] = [*prompt, *ids], steps, number * longest + steps
    arrays = (  # before, target, answer, last
        np.concatenate([places[len(prompt) - 1 : -1] for prompt, _, places in sequences]),
        np.concatenate([ids for _, ids, _ in sequences]),
        np.repeat(np.arange(len(sequences)), [len(ids) for _, ids, _ in sequences]),
        np.array([places[-1] for _, _, places in sequences]),
    )
    return PackedGroups(
        torch.from_numpy(tokens)[None],
        torch.from_numpy(positions)[None],
        SharedPrefix((PrefixPart(torch.from_numpy(rows)),), torch.from_numpy(home)),
        *map(torch.from_numpy, arrays),
    )
