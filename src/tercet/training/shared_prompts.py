"""Packed groups: several answers share one prompt, which is computed once, in one row without padding.

    tokens     P P P P a a a b b c c c c Q Q …
    positions  0 1 2 3 4 5 6 4 5 4 5 6 7 0 1 …      an answer's positions continue its prompt's

Only attention works on whole sequences, one row per answer (PPPPaaa, PPPPbb, …). The reward model, DPO and related
methods, and the group methods of RL all train on such batches. The results are the same as with one row per answer
(tested).
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
    """Prompts with their answers in one row of T tokens; answers are numbered 0 … N − 1 through the batch."""

    tokens: Tensor  # [1, T] i64
    positions: Tensor  # [1, T] i64: of each token within its sequence
    attention: SharedPrefix  # which tokens of the row make up each answer's sequence
    # [A] i64: for every answer token, the index of the token before it (for the first one, the prompt's last)
    before: Tensor
    target: Tensor  # [A] i64: the id of every answer token
    answer: Tensor  # [A] i64: the number of the answer that it belongs to
    last: Tensor  # [N] i64: the index of every answer's last token

    @property
    def answers(self) -> int:
        """The number of answers."""
        return len(self.last)

    def hidden(self, model: Transformer, at: Tensor) -> Tensor:
        """Compute the hidden states at the indices `at` of the row, [A, D]."""
        return model.hidden(self.tokens, positions_BT=self.positions, attention=self.attention, at=at)

    def token_logprobs(self, model: Transformer, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """Return log π of every answer token and the entropy of π there, both [A]; only log π is differentiable."""
        return token_logprobs(model, self.hidden(model, self.before), self.target, temperature)

    def logprobs(self, model: Transformer) -> Tensor:
        """Return log π(answer | prompt), summed over the answer's tokens, [N] float64."""
        return self.sum(self.token_logprobs(model)[0])

    def sum(self, per_token: Tensor) -> Tensor:
        """Sum values per token, [A], over each answer's tokens, [N] float64."""
        zeros = torch.zeros(self.answers, dtype=torch.float64, device=per_token.device)
        return zeros.index_add(0, self.answer, per_token.double())

    def lengths(self) -> Tensor:
        """Return the number of tokens of every answer, [N]."""
        return torch.bincount(self.answer, minlength=self.answers)

    def scores(self, model: ValueHeadModel) -> Tensor:
        """Return the value head's output at every answer's last token, [N] float64."""
        return model.read(self.hidden(model.backbone, self.last)).double()


def pack_groups(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[Sequence[int]]]) -> PackedGroups:
    """Pack `prompts` with their `answers`, a list for each prompt. Raises ValueError for an empty prompt or answer."""
    if not all(prompts) or not all(all(group) and group for group in answers):
        raise ValueError("every prompt and every answer needs at least one token, and every prompt an answer")
    sequences, size = [], 0  # (prompt, answer, the indices of both in the row)
    for prompt, group in zip(prompts, answers):
        shared, size = np.arange(size, size + len(prompt)), size + len(prompt)
        for ids in group:
            sequences.append((prompt, ids, np.concatenate([shared, np.arange(size, size + len(ids))])))
            size += len(ids)
    longest = max(len(index) for _, _, index in sequences)
    rows = np.zeros((len(sequences), longest), dtype=np.int64)
    tokens, positions, output_rows = (np.zeros(size, dtype=np.int64) for _ in range(3))
    for number, (prompt, ids, index) in enumerate(sequences):
        steps = np.arange(len(index))
        rows[number, : len(index)] = index
        tokens[index], positions[index], output_rows[index] = [*prompt, *ids], steps, number * longest + steps
    arrays = (  # before, target, answer, last
        np.concatenate([index[len(prompt) - 1 : -1] for prompt, _, index in sequences]),
        np.concatenate([ids for _, ids, _ in sequences]),
        np.repeat(np.arange(len(sequences)), [len(ids) for _, ids, _ in sequences]),
        np.array([index[-1] for _, _, index in sequences]),
    )
    return PackedGroups(
        torch.from_numpy(tokens)[None],
        torch.from_numpy(positions)[None],
        SharedPrefix((PrefixPart(torch.from_numpy(rows)),), torch.from_numpy(output_rows)),
        *map(torch.from_numpy, arrays),
    )
