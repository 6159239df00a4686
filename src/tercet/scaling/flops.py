"""Counting parameters and FLOPs, and why Kaplan et al. (2020) and Hoffmann et al. (2022) disagree on the best size.

Kaplan: N* ∝ C^0.73. Hoffmann: N* ∝ C^0.50. Kaplan counts N without embeddings and C = 6 N D with that N; Hoffmann counts all. Where
models are small the embeddings are most of them, and the same runs give another exponent (Pearce and Song 2024; Porian et al. 2024,
who find also the output layer's FLOPs, a warm-up too long for small models, and an optimizer not tuned for each size). `local_exponents` computes
it from Hoffmann's own law: no run is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.scaling.laws import Reals

HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, alpha, beta: Hoffmann et al. 2022, eq. 10
BESIROGLU = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # the same points fitted again: Besiroglu et al. 2024, table 1
KAPLAN_SIZES = (768.0, 1.5e9)  # parameters without embeddings: Kaplan et al. 2020, section 1.3
OMEGA = 47491.0  # embeddings = OMEGA · N^(1/3): Pearce and Song 2024, fitted to Hoffmann's table of models
READINGS = 4  # of the same text that teach about as much as new text: Muennighoff et al. 2023


@dataclass(frozen=True)
class Text:
    """The text that there is: of each source its share of what is read, and how many tokens it has."""

    sources: tuple[tuple[float, float], ...]

    def tokens(self) -> float:
        """How many there are."""
        return sum(own for _, own in self.sources)

    def readings(self, tokens: float) -> float:
        """How often `tokens` tokens read the source that is read most often."""
        return max(share * tokens / own for share, own in self.sources)

    def worth(self, tokens: float) -> float:
        """How many tokens read once teach as much as `tokens` tokens of this text.

        Four readings are nearly as good as new text (Muennighoff et al. 2023, "Scaling data-constrained language models"). Further ones
        count for nothing here: they overfit, and the time is better spent on a larger model (Lovelace et al. 2026, "Prescriptive scaling
        laws for data constrained training").
        """
        return sum(min(share * tokens, READINGS * own) for share, own in self.sources)


ENDLESS = Text(((1.0, math.inf),))


@dataclass(frozen=True)
class Counts:
    """One model and one number of tokens, counted in both papers' ways."""

    total: int
    hidden: int  # without embeddings
    kaplan_flops: float  # 6 · N without embeddings · D
    hoffmann_flops: float  # 6 · N · D
    flops: float  # every matrix product: with the output layer and attention

    @classmethod
    def of(cls, shape: ModelConfig, tokens: float) -> Counts:
        """Raises ConfigError unless tokens > 0."""
        if not tokens > 0:
            raise ConfigError(f"{tokens:g} tokens; wanted more than 0")
        total, hidden = shape.parameters(), shape.parameters(embeddings=False)
        return cls(total, hidden, 6.0 * hidden * tokens, 6.0 * total * tokens, shape.flops_per_token() * tokens)


def best_tokens(total: Reals, constants: tuple[float, ...], growth: Reals) -> Reals:
    """D at which a model of `total` parameters is the best of all that cost the same, [P].

    `growth` is d ln(counted parameters) / d ln(total), so that C = 6 · counted · D. On the frontier
    alpha A N^-alpha = growth · beta B D^-beta: what more size gains is what the tokens lost for it would have gained.
    """
    _, a, b, alpha, beta = constants
    out: Reals = (growth * beta * b * total**alpha / (alpha * a)) ** (1 / beta)
    return out


def local_exponents(sizes: Reals, constants: tuple[float, ...] = HOFFMANN, omega: float = OMEGA) -> tuple[Reals, Reals]:
    """The exponents d ln N* / d ln C along Hoffmann's frontier, at models of `sizes` parameters without embeddings, [P].

    First counted with embeddings (N and C = 6 N D of all parameters), then without. The law itself is of all parameters,
    N = n + omega · n^(1/3).
    """
    log_n = np.log(sizes)

    def counted(log_hidden: Reals, embeddings: bool) -> tuple[Reals, Reals]:
        hidden = np.exp(log_hidden)
        total = hidden + omega * hidden ** (1 / 3)
        slope = (hidden + omega / 3 * hidden ** (1 / 3)) / total  # d ln total / d ln hidden
        size, growth = (total, np.ones_like(total)) if embeddings else (hidden, 1 / slope)
        return np.log(size), np.log(6 * size * best_tokens(total, constants, growth))

    out = []
    for embeddings in (True, False):
        (n0, c0), (n1, c1) = counted(log_n - 1e-4, embeddings), counted(log_n + 1e-4, embeddings)
        out.append((n1 - n0) / (c1 - c0))
    return out[0], out[1]


def fitted_exponents(constants: tuple[float, ...] = HOFFMANN, sizes: tuple[float, float] = KAPLAN_SIZES,
                     omega: float = OMEGA, count: int = 200) -> tuple[float, float]:  # fmt: skip
    """The one exponent that a straight line through the frontier of models of `sizes` has: with, and without embeddings.

    This is what a study of such models would have published.
    """
    log_n = np.linspace(np.log(sizes[0]), np.log(sizes[1]), count)
    out = []
    for number, local in enumerate(local_exponents(np.exp(log_n), constants, omega)):
        hidden = np.exp(log_n)
        size = np.log(hidden + omega * hidden ** (1 / 3)) if number == 0 else log_n
        steps = np.diff(size) / ((local[1:] + local[:-1]) / 2)  # d ln C
        log_c = np.concatenate([[0.0], np.cumsum(steps)])
        out.append(float(np.polyfit(log_c, size, 1)[0]))
    return out[0], out[1]
