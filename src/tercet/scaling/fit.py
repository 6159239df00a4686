"""Fit all laws to a ladder, save them in fit.json, and use them to predict the loss of other runs."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tercet.errors import ConfigError, DataError
from tercet.model.config import ModelConfig
from tercet.scaling.config import shape_of
from tercet.scaling.flops import ENDLESS, Text
from tercet.scaling.ladder import Runs
from tercet.scaling.laws import (
    DRAWS,
    Fit,
    IsoFlop,
    Points,
    Reals,
    exponents,
    fit_kaplan,
    fit_parametric,
    fit_power,
    fit_simple,
    forecast,
    frontier,
    iso_flop,
)
from tercet.statistics.intervals import Estimate

FORMAT = 2
FORECAST = ("parametric", "simple")  # laws of N and D, with all parameters, whose mean is the prediction
FAR = 30.0  # beyond this many times the FLOPs of the largest run behind a law, a prediction is hardly more than a guess
HELD_BACK = 3.0  # runs above 1 / HELD_BACK of the largest run's FLOPs are held back to measure the laws' error
LARGEST = 16.0  # most parameters per token of the text; with many epochs, up to 8 were measured to be useful
SAME_BUDGET = 1.1  # runs whose FLOPs differ by less than this factor have one budget, because steps are whole numbers
# Widths to choose from. Above 64 all have heads of at least 32 dimensions (`shape_of`): 80 and 112, with 5 and 7 heads
# of 16, were up to 6 % worse than 96 on the same budget (docs/measurements/scaling.md), which a law of N and D ignores.
WIDTHS = (16, 32, 48, *range(64, 256, 32), *range(256, 1024, 64), *range(1024, 4097, 256))


@dataclass(frozen=True)
class LadderFit:
    """The laws of a ladder; `missing` has the reason for each law that could not be fitted."""

    runs: Runs
    laws: dict[str, Fit]  # by name in `laws.LAWS`; "parametric_hidden" uses N without embeddings
    iso: IsoFlop | None
    missing: dict[str, str]
    drift: float | None  # see `drift_of`; None if too few runs remain to fit

    def law(self, name: str = "parametric") -> Fit:
        """Return the law `name`. Raises DataError if it could not be fitted."""
        if name not in self.laws:
            raise DataError(f"the law {name!r} is not in this fit: {self.missing.get(name, 'it was not fitted')}")
        return self.laws[name]

    def to_json(self) -> dict[str, Any]:
        """Return the contents of fit.json."""
        return {
            "format": FORMAT,
            "vocab_size": self.runs.vocab_size,
            "context_length": self.runs.context_length,
            "runs": self.runs.rows(),
            "laws": {name: fit.to_json() for name, fit in self.laws.items()},
            "exponents": {
                name: {k: e.to_json() for k, e in exponents(fit).items()}
                for name, fit in self.laws.items()
                if name.startswith("parametric")
            },
            "iso_flop": self.iso.to_json() if self.iso else None,
            "missing": self.missing,
            "drift": self.drift,
        }


def budgets(flops: Reals) -> Reals:
    """Return the FLOP budget of each run: the geometric mean of all runs with nearly the same FLOPs, [P]."""
    order = np.argsort(flops)
    logs = np.log(flops[order])
    group = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log(SAME_BUDGET))])
    means = np.bincount(group, logs) / np.bincount(group)
    out = np.empty(len(flops))
    out[order] = np.exp(means[group])
    return out


def drift_of(points: Points) -> float | None:
    """Measure the prediction error in ln L per doubling of FLOPs beyond the largest fitted run.

    The laws are fitted without the ladder's largest runs; a line through 0 is fitted to the mean error on those runs.
    A bootstrap measures only the runs' noise, not whether losses follow another law at larger sizes. Returns None if
    the smaller runs are too few for a law.
    """
    small = points.flops <= points.flops.max() / HELD_BACK
    if not small.any():
        return None
    try:
        fits = [fit(points.take(small), draws=2) for fit in (fit_parametric, fit_simple)]
    except DataError:
        return None
    rest = points.take(~small)
    beyond = np.log2(rest.flops / points.flops[small].max())
    error = np.mean([fit.log_loss(rest.size, rest.tokens) for fit in fits], axis=0) - np.log(rest.loss)
    return float(abs(beyond @ error) / (beyond @ beyond))


def fit_ladder(runs: Runs, draws: int = DRAWS, seed: int = 0) -> LadderFit:
    """Fit every law for which there are enough runs. Raises DataError if no law can be fitted.

    Kaplan's laws use parameters without embeddings and C = 6 N D, Hoffmann's use all parameters and FLOPs.
    """
    every, kaplans = runs.points(), runs.points(embeddings=False)
    fits: dict[str, Callable[[], Fit]] = {
        "size": lambda: fit_power("size", frontier(kaplans, "size"), draws, seed),
        "tokens": lambda: fit_power("tokens", frontier(kaplans, "tokens"), draws, seed),
        "compute": lambda: fit_power("compute", frontier(kaplans, "flops"), draws, seed),
        "kaplan": lambda: fit_kaplan(kaplans, draws, seed),
        "parametric": lambda: fit_parametric(every, draws, seed),
        "simple": lambda: fit_simple(every, draws, seed),
        "parametric_hidden": lambda: fit_parametric(kaplans, draws, seed),
    }
    laws: dict[str, Fit] = {}
    missing: dict[str, str] = {}
    for name, fit in fits.items():
        try:
            laws[name] = fit()
        except DataError as error:
            missing[name] = str(error)
    iso = None
    try:
        iso = iso_flop(every, budgets(runs.flops), draws, seed)
    except DataError as error:
        missing["iso_flop"] = str(error)
    if not laws:
        raise DataError(f"{len(runs.paths)} runs are too few for any law: {missing['size']}")
    return LadderFit(runs, laws, iso, missing, drift_of(every))


@dataclass(frozen=True)
class Law:
    """The laws of a fit.json, with the vocabulary size and context length of their runs."""

    laws: dict[str, Fit]
    vocab_size: int
    context_length: int
    flops: float  # training FLOPs of the largest run behind the law
    drift: float | None = 0.0  # error in ln L per doubling of FLOPs beyond that run: `drift_of`
    text: Text = ENDLESS  # training text of the runs to predict

    def law(self, name: str = "parametric") -> Fit:
        """Return the law `name`. Raises DataError if fit.json lacks it."""
        if name not in self.laws:
            raise DataError(f"fit.json has no law {name!r}; it has {', '.join(self.laws)}")
        return self.laws[name]

    def forecasters(self) -> list[Fit]:
        """Return the laws whose mean is the prediction. Raises DataError if there is none."""
        return [self.laws[name] for name in FORECAST if name in self.laws] or [self.law()]

    def loss(self, size: float, tokens: float) -> float:
        """Return the expected loss in bits per byte: the geometric mean of the forecasters."""
        laws, tokens = self.forecasters(), self.text.worth(tokens)
        return math.exp(sum(float(fit.log_loss(size, tokens)[0]) for fit in laws) / len(laws))

    def predict(self, size: float, tokens: float, level: float = 0.9) -> Estimate:
        """Return the expected loss with an interval from all laws' draws, widened by the drift."""
        expected = forecast(self.forecasters(), size, self.text.worth(tokens), level)
        stray = math.exp((self.drift or 0) * max(0.0, math.log2(6 * size * tokens / self.flops)))
        return dataclasses.replace(expected, low=expected.low / stray, high=expected.high * stray)

    @classmethod
    def load(cls, path: str | Path) -> Law:
        """Read a fit.json, or the one in a folder. Raises DataError if there is none or it is damaged."""
        file = Path(path) / "fit.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such file; write it with `tercet scaling fit {path}`")
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(
                    f"its format is {value['format']}, wanted {FORMAT}; fit the laws again with that command"
                )
            drift = None if value["drift"] is None else float(value["drift"])
            if drift is not None and not 0 <= drift < 1:
                raise ValueError(f"drift is {drift}; wanted 0 to 1")
            laws = {name: Fit.from_json(fit, f"{file}: {name}") for name, fit in value["laws"].items()}
            flops = max(float(run["flops"]) for run in value["runs"])
            for name in FORECAST:
                fit = laws.get(name)
                if fit and (fit.law != name or len(fit.residuals) != len(value["runs"])):
                    raise ValueError(
                        f"{name} is the law {fit.law} of {len(fit.residuals)} runs; wanted {len(value['runs'])} runs"
                    )
            return cls(laws, int(value["vocab_size"]), int(value["context_length"]), flops, drift)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: not a fit.json of `tercet scaling fit`: {error!r}") from error


@dataclass(frozen=True)
class Choice:
    """A model size with its number of training tokens and its expected loss in bits per byte."""

    width: int
    shape: ModelConfig
    tokens: float
    loss: float


def best_choice(law: Law, vocab_size: int, context_length: int, tokens_of: Callable[[ModelConfig], float]) -> Choice:
    """Return the width with the lowest expected loss, where a shape can be trained on `tokens_of(shape)` tokens.

    Widths are tried upwards until three in a row are worse. Except for the smallest, no size has more than `LARGEST`
    parameters per token of the text. Raises ConfigError if even the smallest size gets less than one row of tokens.
    """
    best: Choice | None = None
    worse = 0
    for width in WIDTHS:
        shape = ModelConfig(vocab_size, context_length, **shape_of(width))
        tokens = tokens_of(shape)
        if tokens < context_length or (best and shape.parameters() > LARGEST * law.text.tokens()):
            break
        loss = law.loss(shape.parameters(), tokens)
        if best is None or loss < best.loss:
            best, worse = Choice(width, shape, tokens, loss), 0
        else:
            worse += 1
        if worse == 3:
            break
    if best is None:
        raise ConfigError("the budget is too small for a single step of the smallest model; give a larger one")
    return best


def best_for_flops(law: Law, flops: float, vocab_size: int = 0, context_length: int = 0) -> Choice:
    """Return the best size for a number of training FLOPs, where every matrix product counts."""
    return best_choice(
        law,
        vocab_size or law.vocab_size,
        context_length or law.context_length,
        lambda s: flops / s.flops_per_token(),
    )
