"""A space of answers that can be enumerated: 4 tokens, one of them the end, at most 4 of them: 121 answers.

40 end by themselves, at lengths 1 to 4, and 81 are cut off. The policy is a real transformer; what is compared is its
distribution over all answers with the optimum that theory gives.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tercet.inference.generate import Completion
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.training.packing import Batch
from tercet.training.shared_prompts import pack_groups

END, VOCABULARY, LONGEST, PROMPT = 0, 4, 4, (1, 3)
ANSWERS = tuple(
    answer
    for n in range(1, LONGEST + 1)
    for answer in itertools.product(range(VOCABULARY), repeat=n)
    if END not in answer[:-1] and (n == LONGEST or answer[-1] == END)
)
NUMBER = {answer: i for i, answer in enumerate(ANSWERS)}
LENGTHS = torch.tensor([len(a) for a in ANSWERS], dtype=torch.float64)
FINISHED = torch.tensor([a[-1] == END for a in ANSWERS])
ROWS = pack_groups([PROMPT], [[list(a) for a in ANSWERS]])


def logprobs(model: Transformer) -> Tensor:
    """log π of every answer, [121], with gradients; the probabilities add up to 1."""
    return ROWS.logprobs(model)


def distribution(model: Transformer) -> Tensor:
    """π of every answer, [121] float64."""
    with torch.no_grad():
        return logprobs(model).exp()


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation, ½ Σ |p − q|."""
    return 0.5 * float((p - q).abs().sum())


def policy(seed: int, scale: float = 0.35) -> Transformer:
    """A small transformer whose distribution is far from uniform."""
    shape = ModelConfig(
        vocab_size=VOCABULARY, context_length=8, hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=16,
        intermediate_size=64,
    )  # fmt: skip
    model = Transformer(shape, seed=seed)
    generator = torch.Generator().manual_seed(1_000 + seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    return model


@dataclass(frozen=True)
class Problem:
    """A reference, a reward for every answer, and the optimum for a β."""

    seed: int
    beta: float = 0.5
    missing_end: float = -1.0

    @property
    def reference(self) -> Transformer:
        """Where the policy starts: weights small enough to be moved far in a few hundred steps."""
        return policy(self.seed, 0.15)

    @property
    def scores(self) -> Tensor:
        """r of every answer, [121]: normal, but for those cut off, whose score is replaced."""
        drawn = torch.randn(
            len(ANSWERS), generator=torch.Generator().manual_seed(2_000 + self.seed), dtype=torch.float64
        )
        return torch.where(FINISHED, drawn, self.missing_end)

    def score(self, numbers: Sequence[int], done: Sequence[Completion]) -> list[float]:
        """What the rollouts are given: NaN-like nonsense for those cut off, which must be replaced."""
        table = torch.where(FINISHED, self.scores, 1e3).tolist()
        return [table[NUMBER[tuple(c.tokens)]] for c in done]

    def optimum(self) -> Tensor:
        """π* ∝ π_ref · exp(r / β)."""
        with torch.no_grad():
            return (logprobs(self.reference) + self.scores / self.beta).softmax(0)

    def text(self) -> Tensor:
        """q: the distribution of the pretraining text over the answers, [121]."""
        drawn = torch.randn(
            len(ANSWERS), generator=torch.Generator().manual_seed(3_000 + self.seed), dtype=torch.float64
        )
        return (1.5 * drawn).softmax(0)

    def optimum_with_text(self, gamma: float) -> Tensor:
        """The π that solves β log π − g q/π = r + β log π_ref − λ, Σ π = 1, by bisection per answer and on λ.

        The policy loss is a mean per action and the text's a mean per token, so per answer γ becomes
        g = γ · E_π[length] / E_q[length], which is found by iteration.
        """
        q, base = self.text(), self.scores + self.beta * logprobs(self.reference).detach()
        pi = self.optimum()
        for _ in range(60):
            g = gamma * float((pi * LENGTHS).sum() / (q * LENGTHS).sum())
            new = _solve(base, q, g, self.beta)
            if distance(new, pi) < 1e-9:
                break
            pi = 0.5 * (pi + new)
        return pi


def _solve(base: Tensor, q: Tensor, g: float, beta: float) -> Tensor:
    low, high = -1e3, 1e3
    for _ in range(50):
        middle = 0.5 * (low + high)
        if float(_per_answer(base - middle, q, g, beta).sum()) > 1:
            low = middle
        else:
            high = middle
    found = _per_answer(base - high, q, g, beta)
    return found / found.sum()


def _per_answer(target: Tensor, q: Tensor, g: float, beta: float) -> Tensor:
    """π with β log π − g q / π = target; the left side rises with π."""
    low, high = torch.full_like(target, -60.0), torch.full_like(target, 20.0)  # of log π
    for _ in range(45):
        middle = 0.5 * (low + high)
        above = beta * middle - g * q * (-middle).exp() > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (0.5 * (low + high)).exp()


class Text:
    """A feed whose every batch is the whole text distribution: each answer counts as often as q says."""

    def __init__(self, q: Tensor) -> None:
        rows = torch.zeros(len(ANSWERS), len(PROMPT) + LONGEST, dtype=torch.long)
        weights = torch.zeros(rows.shape)
        for i, answer in enumerate(ANSWERS):
            rows[i, : len(PROMPT) + len(answer)] = torch.tensor([*PROMPT, *answer])
            weights[i, len(PROMPT) : len(PROMPT) + len(answer)] = float(q[i])
        self._batch = Batch(rows[:, :-1], rows[:, 1:], weights[:, 1:], None)

    def batch(self, step: int) -> Batch:
        """The same for every step."""
        return self._batch
