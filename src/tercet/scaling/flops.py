"""Counting parameters and FLOPs, and why Kaplan et al. (2020) and Hoffmann et al. (2022) disagree on the best size.

Kaplan: N* ∝ C^0.73. Hoffmann: N* ∝ C^0.50. Kaplan counts N without embeddings and C = 6 N D with that N; Hoffmann
counts all parameters. In small models most parameters are embeddings, so the same runs give another exponent (Pearce
and Song 2024). Porian et al. 2024 find further causes: the output layer's FLOPs, a warm-up that is too long for small
models, and an optimizer that is not tuned for each size. `local_exponents` computes the difference from Hoffmann's own
law, without any run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.scaling.laws import Reals

HOFFMANN = (1.69, 406.4, 410.7, 0.34, 0.28)  # E, A, B, alpha, beta: Hoffmann et al. 2022, eq. 10
BESIROGLU = (1.8172, 482.01, 2085.43, 0.3478, 0.3658)  # a new fit to the same points: Besiroglu et al. 2024, table 1
KAPLAN_SIZES = (768.0, 1.5e9)  # parameters without embeddings: Kaplan et al. 2020, section 1.3
OMEGA = 47491.0  # embeddings = OMEGA · N^(1/3): Pearce and Song 2024, fitted to Hoffmann's table of models
EPOCHS = 4  # epochs that are about as good as new text: Muennighoff et al. 2023


@dataclass(frozen=True)
class Text:
    """The available training text: `sources` has each source's share of the training tokens, and its size in tokens."""

    sources: tuple[tuple[float, float], ...]

    def tokens(self) -> float:
        """Return the number of tokens of all sources."""
        return sum(size for _, size in self.sources)

    def epochs(self, tokens: float) -> float:
        """Return the epochs of `tokens` training tokens; with several sources, of the one that is read most often."""
        return max(share * tokens / size for share, size in self.sources)

    def worth(self, tokens: float) -> float:
        """Return the number of new tokens that are worth as much as `tokens` training tokens of this text.

        Four epochs are nearly as good as new text (Muennighoff et al. 2023, "Scaling data-constrained language
        models"). Further epochs count as worthless here: they overfit, and a larger model uses the time better
        (Lovelace et al. 2026, "Prescriptive scaling laws for data constrained training").
        """
        return sum(min(share * tokens, EPOCHS * size) for share, size in self.sources)


ENDLESS = Text(((1.0, math.inf),))


@dataclass(frozen=True)
class Counts:
    """Parameters and FLOPs of one model and one number of tokens, as both papers count them."""

    total: int  # parameters
    hidden: int  # parameters without embeddings
    kaplan_flops: float  # 6 · N without embeddings · D
    hoffmann_flops: float  # 6 · N · D
    flops: float  # every matrix product: with the output layer and attention

    @classmethod
    def of(cls, shape: ModelConfig, tokens: float) -> Counts:
        """Count for a shape and a number of training tokens. Raises ConfigError unless tokens > 0."""
        if not tokens > 0:
            raise ConfigError(f"--tokens is {tokens:g}; wanted a number above 0")
        total, hidden = shape.parameters(), shape.parameters(embeddings=False)
        return cls(total, hidden, 6.0 * hidden * tokens, 6.0 * total * tokens, shape.flops_per_token() * tokens)


def best_tokens(total: Reals, constants: tuple[float, ...], growth: Reals) -> Reals:
    """Return the tokens D at which a model of `total` parameters is the best model of the same cost, [P].

    `growth` is d ln(counted parameters) / d ln(total), where C = 6 · counted · D. On the frontier
    alpha A N^-alpha = growth · beta B D^-beta: a larger model gains as much as the fewer tokens lose.
    """
    _, a, b, alpha, beta = constants
    out: Reals = (growth * beta * b * total**alpha / (alpha * a)) ** (1 / beta)
    return out


def local_exponents(sizes: Reals, constants: tuple[float, ...] = HOFFMANN, omega: float = OMEGA) -> tuple[Reals, Reals]:
    """Return the exponents d ln N* / d ln C along Hoffmann's frontier, with and without embeddings, both [P].

    `sizes` [P] are parameters without embeddings, n. The first result counts all parameters in N and C = 6 N D, the
    second those without embeddings. The law itself uses all parameters, N = n + omega · n^(1/3).
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


def fitted_exponents(constants: tuple[float, ...] = HOFFMANN) -> tuple[float, float]:
    """Return the exponent of a straight line through the frontier of Kaplan's model sizes, with and without embeddings.

    A study of such models would find these exponents.
    """
    log_n = np.linspace(np.log(KAPLAN_SIZES[0]), np.log(KAPLAN_SIZES[1]), 200)
    out = []
    for number, local in enumerate(local_exponents(np.exp(log_n), constants)):
        hidden = np.exp(log_n)
        size = np.log(hidden + OMEGA * hidden ** (1 / 3)) if number == 0 else log_n
        steps = np.diff(size) / ((local[1:] + local[:-1]) / 2)  # d ln C
        log_c = np.concatenate([[0.0], np.cumsum(steps)])
        out.append(float(np.polyfit(log_c, size, 1)[0]))
    return out[0], out[1]
