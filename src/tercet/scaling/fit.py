"""All laws of one ladder: fitted, kept in fit.json, and asked about runs that have not been made."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
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
FORECAST = ("parametric", "simple")  # laws of N and D, all parameters counted, that predict together
FAR = 30.0  # times the FLOPs of the largest run behind a law: beyond, a prediction is hardly more than a guess
HELD_BACK = 3.0  # runs of more than a third of the largest run's FLOPs are held back to see how far the laws stray
LARGEST = 16.0  # parameters for each token of a text: where little is read again and again, up to 8 were measured to be of use
SAME_BUDGET = 1.1  # runs whose FLOPs differ by less than this factor are of one budget: steps are whole
# to choose from: beyond 64 only such as have heads of at least 32 dimensions (`shape_of`). 80 and 112, with 5 and 7 heads of 16, were
# up to 6 % worse than 96 on the same budget (docs/measurements/scaling.md), which a law of N and D cannot know
WIDTHS = (16, 32, 48, *range(64, 256, 32), *range(256, 1024, 64), *range(1024, 4097, 256))


@dataclass(frozen=True)
class LadderFit:
    """The laws of a ladder. `missing` says of each that could not be fitted why."""

    runs: Runs
    laws: dict[str, Fit]  # by their names in `laws.LAWS`, and "parametric_hidden": of N without embeddings
    iso: IsoFlop | None
    missing: dict[str, str]
    drift: float | None  # see `drift_of`; None where too few runs are left to fit

    def law(self, name: str = "parametric") -> Fit:
        """Raises DataError where it could not be fitted."""
        if name not in self.laws:
            raise DataError(f"the law {name!r} is not in this fit: {self.missing.get(name, 'it was not fitted')}")
        return self.laws[name]

    def to_json(self) -> dict[str, Any]:
        """The content of fit.json."""
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
    """For each run the budget that it belongs to: the geometric mean of all runs of nearly the same FLOPs, [P]."""
    order = np.argsort(flops)
    logs = np.log(flops[order])
    group = np.concatenate([[0], np.cumsum(np.diff(logs) > np.log(SAME_BUDGET))])
    means = np.bincount(group, logs) / np.bincount(group)
    out = np.empty(len(flops))
    out[order] = np.exp(means[group])
    return out


def drift_of(points: Points) -> float | None:
    """How far the forecast of `points` strays from what came, in ln L per doubling of FLOPs beyond the runs fitted to.

    Seen on the ladder itself: the laws are fitted without the largest runs, and the line through 0 is taken of their mean error on those.
    A bootstrap knows the runs' noise, but not that losses follow another law further on; this is what can be known of that.
    None where the smaller runs are too few for a law.
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
    """Fit every law that the runs allow. Raises DataError where they allow none.

    Kaplan's laws count parameters without embeddings and C = 6 N D, Hoffmann's all of both.
    """
    ours, kaplans = runs.points(), runs.points(embeddings=False)
    fits: dict[str, Callable[[], Fit]] = {
        "size": lambda: fit_power("size", frontier(kaplans, "size"), draws, seed),
        "tokens": lambda: fit_power("tokens", frontier(kaplans, "tokens"), draws, seed),
        "compute": lambda: fit_power("compute", frontier(kaplans, "flops"), draws, seed),
        "kaplan": lambda: fit_kaplan(kaplans, draws, seed),
        "parametric": lambda: fit_parametric(ours, draws, seed),
        "simple": lambda: fit_simple(ours, draws, seed),
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
        iso = iso_flop(ours, budgets(runs.flops), draws, seed)
    except DataError as error:
        missing["iso_flop"] = str(error)
    if not laws:
        raise DataError(f"{len(runs.paths)} runs are too few for any law: {missing['size']}")
    return LadderFit(runs, laws, iso, missing, drift_of(ours))


@dataclass(frozen=True)
class Law:
    """A fit.json: the laws, and for which vocabulary and context their models were."""

    laws: dict[str, Fit]
    vocab_size: int
    context_length: int
    flops: float  # of the largest run behind the law
    drift: float | None = 0.0  # of the forecast for each doubling beyond that: `drift_of`
    text: Text = ENDLESS  # that the runs asked about would read

    def law(self, name: str = "parametric") -> Fit:
        """Raises DataError where fit.json lacks it."""
        if name not in self.laws:
            raise DataError(f"fit.json has no law {name!r}; it has {', '.join(self.laws)}")
        return self.laws[name]

    def forecasters(self) -> list[Fit]:
        """The laws to predict with. Raises DataError where there is none."""
        return [self.laws[name] for name in FORECAST if name in self.laws] or [self.law()]

    def loss(self, size: float, tokens: float) -> float:
        """What they expect: their geometric mean."""
        laws, tokens = self.forecasters(), self.text.worth(tokens)
        return math.exp(sum(float(fit.log_loss(size, tokens)[0]) for fit in laws) / len(laws))

    def predict(self, size: float, tokens: float, level: float = 0.9) -> Estimate:
        """The same with an interval: of the draws of all, and as much wider as the laws strayed on the ladder itself."""
        found = forecast(self.forecasters(), size, self.text.worth(tokens), level)
        stray = math.exp((self.drift or 0) * max(0.0, math.log2(6 * size * tokens / self.flops)))
        return dataclasses.replace(found, low=found.low / stray, high=found.high * stray)

    @classmethod
    def load(cls, path: str | Path) -> Law:
        """Read fit.json, or a folder that has one. Raises DataError where it is none."""
        file = Path(path) / "fit.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise DataError(f"{file}: no such file; write it with `tercet scaling fit {path}`")
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
            if value["format"] != FORMAT:
                raise ValueError(
                    f"it has the format {value['format']}, wanted {FORMAT}; make it again with that command"
                )
            drift = None if value["drift"] is None else float(value["drift"])
            if drift is not None and not 0 <= drift < 1:
                raise ValueError(f"drift is {drift}; wanted 0 to 1")
            laws = {name: Fit.from_json(fit, f"{file}: {name}") for name, fit in value["laws"].items()}
            flops = max(float(run["flops"]) for run in value["runs"])
            for name in FORECAST:
                fit = laws.get(name)
                if fit and (fit.law != name or len(fit.residuals) != len(value["runs"])):
                    raise ValueError(f"{name} is {fit.law} of {len(fit.residuals)} runs, of {len(value['runs'])}")
            return cls(laws, int(value["vocab_size"]), int(value["context_length"]), flops, drift)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{file}: not a fit.json of `tercet scaling fit`: {error!r}") from error


@dataclass(frozen=True)
class Choice:
    """A size with its tokens, and what the law expects of it."""

    width: int
    shape: ModelConfig
    tokens: float
    loss: float


def best_choice(law: Law, vocab_size: int, context_length: int, tokens_of: Callable[[ModelConfig], float],
                widths: Sequence[int] = WIDTHS) -> Choice:  # fmt: skip
    """The width of least expected loss, where `tokens_of(shape)` says how many tokens that size can have.

    Beyond the smallest none has more than `LARGEST` parameters for each token that there is to read.

    Widths are tried upwards until the law says three times in a row that larger is worse. Raises ConfigError where not even the smallest
    gets one row of tokens.
    """
    best: Choice | None = None
    worse = 0
    for width in widths:
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
        raise ConfigError("the budget is too small for a single step of the smallest model; give more")
    return best


def best_for_flops(law: Law, flops: float, vocab_size: int = 0, context_length: int = 0) -> Choice:
    """The best size for a number of training FLOPs, every matrix product counted."""
    return best_choice(
        law,
        vocab_size or law.vocab_size,
        context_length or law.context_length,
        lambda s: flops / s.flops_per_token(),
    )
