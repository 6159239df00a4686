"""The budget planner: choose size, tokens, batch and learning rate for a time, a number of FLOPs or a target loss.

The planner measures this machine's speed for several sizes. A scaling law predicts the loss of each size with the
tokens that fit into the budget, and the size with the lowest loss is selected. The law is the user's own fit.json, or
the one that comes with tercet.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.data.readers import BadRows, read_documents
from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.causal import check_mixture
from tercet.pretraining.stage import PretrainConfig
from tercet.scaling.config import LadderConfig, batch_rows, shape_of
from tercet.scaling.fit import FAR, Choice, Law, best_choice, best_for_flops
from tercet.scaling.flops import ENDLESS, EPOCHS, Text
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import sequences_per_pass
from tercet.training.run import threads
from tercet.training.settings import shares
from tercet.training.step_time import step_time

DEFAULT_LAW = Path(__file__).with_name("default_law.json")
UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hours": 3600.0}
PLANNED = (*shape_of(64), "steps", "batch_size", "lr", "muon_lr", "warmup", "minutes")
OVERHEAD = 0.08  # share of the time expected for reading and evaluating; the training itself follows the clock
PLANNING, PLANNING_MOST = 0.05, 60.0  # share of the time, and seconds, after which no further size is measured
REPEATS = 3
SAMPLE = 200_000  # characters of each source from which its number of tokens is estimated


@dataclass(frozen=True)
class BudgetPlan:
    """A planned run and its expected loss.

    `seconds` is the training time at this machine's speed, which is `measured` or estimated from a smaller model.
    """

    config: PretrainConfig
    shape: ModelConfig
    tokens: int
    seconds: float
    expected: Estimate
    measured: bool = True
    epochs: float = 0.0  # passes over the text; with several sources, over the one that is read most often
    caveats: tuple[str, ...] = ()  # differences between this run and the runs that the law was fitted to

    def lines(self) -> list[str]:
        """Return the plan as lines of text."""
        c, shape, e = self.config, self.shape, self.expected
        return [
            f"plan: {shape.parameters():,} parameters ({shape.parameters(embeddings=False):,} without embeddings), "
            f"width {c.hidden_size}, {c.num_layers} layers",
            f"      {self.tokens:,} tokens ({self.epochs:,.1f} epochs of your text) in {c.steps:,} steps of "
            f"{c.batch_size} rows, learning rates {c.lr:g} (AdamW) and {c.muon_lr:g} (Muon)",
            f"      {self.tokens * shape.flops_per_token():.2e} FLOPs, about {self.seconds:,.0f} s of training here"
            + ("" if self.measured else " (estimated from a smaller model: there was no time to measure this one)"),
            f"      expected loss {e.value:.3f} bits per byte, 90 % interval [{e.low:.3f}, {e.high:.3f}], "
            "if your text is like the law's",
            *(f"      a rough guess: {', '.join(self.caveats)}" for _ in self.caveats[:1]),
        ]


def parse_budget(text: str) -> tuple[float, float]:
    """Parse "20min", "90s", "1.5h" or "1e15flops" as (seconds, FLOPs), one of them 0. Raises ConfigError for others."""
    parts = re.fullmatch(r"(\d+\.?\d*(?:e\+?\d+)?)\s*(s|sec|min|h|hours|flops)", text.strip().lower())
    if parts is None or not 0 < float(parts[1]) < math.inf:
        raise ConfigError(f"--budget is {text!r}; wanted a time or FLOPs, such as 20min, 90s, 1.5h or 1e15flops")
    value, unit = float(parts[1]), parts[2]
    return (0.0, value) if unit == "flops" else (value * UNITS[unit], 0.0)


def measure_speed(shape: ModelConfig, config: PretrainConfig, until: float = math.inf) -> tuple[float, float]:
    """Measure (seconds per row, seconds per optimizer step) of training a shape as `config` would."""
    learner = Learner(Transformer(shape), OptimizerConfig.of(config), config.precision)
    with threads(config.threads):
        return step_time(learner, sequences_per_pass(config.micro_batch, shape.context_length), REPEATS, until)


class Speeds:
    """The results of `measure_speed` for each shape, or estimates from the largest measured shape if time is short.

    An estimate assumes that a row costs in proportion to its FLOPs, and an optimizer step to the parameters. Larger
    matrices are faster than that, so estimates favour smaller models. The training itself follows the clock.
    """

    def __init__(self, config: PretrainConfig, until: float = math.inf) -> None:
        self.config, self.until = config, until
        self.measured: dict[ModelConfig, tuple[float, float]] = {}
        self._took = 0.0  # seconds of the last measurement

    def __call__(self, shape: ModelConfig) -> tuple[float, float]:
        """Return (seconds per row, seconds per optimizer step) of a shape."""
        if shape in self.measured:
            return self.measured[shape]
        started, growth = time.monotonic(), 1.0
        if self.measured:
            last = max(self.measured, key=ModelConfig.flops_per_token)
            growth = shape.flops_per_token() / last.flops_per_token()
            if started + growth * self._took > self.until:
                row, step = self.measured[last]
                return row * growth, step * shape.parameters() / last.parameters()
        self.measured[shape] = measure_speed(shape, self.config, self.until)
        self._took = time.monotonic() - started
        return self.measured[shape]


def seconds_for(tokens: float, context_length: int, cost: tuple[float, float]) -> float:
    """Return the training time of `tokens` tokens with the batch size of `batch_rows` and the `cost` of a `Speeds`."""
    rows = tokens / context_length
    return rows * (cost[0] + cost[1] / batch_rows(tokens, context_length))


def tokens_within(seconds: float, context_length: int, cost: tuple[float, float]) -> float:
    """Return the largest number of tokens that take at most `seconds`; by bisection, since the batch depends on it."""
    low, high = 0.0, context_length * seconds / cost[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds_for(max(middle, 1.0), context_length, cost) <= seconds else (low, middle)
    return low


@dataclass
class _Sample:
    """The length of a source's text, and every n-th document, where n grows with the source."""

    count: int = 0
    characters: int = 0
    every: int = 1
    kept: list[str] = dataclasses.field(default_factory=list)
    size: int = 0  # characters of `kept`

    def add(self, text: str) -> None:
        if self.count % self.every == 0:
            self.kept.append(text[:SAMPLE])
            self.size += len(self.kept[-1])
            if self.size > 2 * SAMPLE:
                self.kept, self.every = self.kept[::2], 2 * self.every
                self.size = sum(map(len, self.kept))
        self.count += 1
        self.characters += len(text)

    def tokens(self, tokenizer: Tokenizer) -> float:
        """Estimate the tokens of all documents, with one end token each."""
        rate = sum(map(len, tokenizer.encode_batch(self.kept))) / max(1, self.size)
        return self.count + self.characters * rate


def estimate_text(config: PretrainConfig, tokenizer: Tokenizer, until: float = math.inf) -> Text:
    """Estimate each source's number of tokens from the characters of all documents and the tokens of some.

    A text that cannot be read before `until` (time.monotonic) is treated as unlimited: reading is a hundred times as
    fast as training. Raises DataError for bad rows, as training would.
    """
    samples: dict[str, _Sample] = {}
    for document in read_documents(config.data, BadRows(skip=config.skip_bad_rows)):
        samples.setdefault(document.source, _Sample()).add(document.text)
        if time.monotonic() > until:
            return ENDLESS
    sizes = {source: sample.tokens(tokenizer) for source, sample in samples.items()}
    mixture = shares(config.mixture, "--mixture")
    check_mixture(mixture, sizes)
    mixture = mixture or sizes
    total = sum(mixture.values())
    return Text(tuple((mixture[source] / total, tokens) for source, tokens in sizes.items()))


def least_flops(law: Law, target: float, vocab_size: int, context_length: int) -> Choice:
    """Return the cheapest run whose expected loss is `target` bits per byte. Raises ConfigError if there is none."""
    low, high = math.log(1e8), math.log(1e24)
    if (best := best_for_flops(law, math.exp(high), vocab_size, context_length).loss) > target:
        mend = "a --law of your own data" if law.text == ENDLESS else "more text, or a --law of your own data"
        raise ConfigError(
            f"--target-bpb is {target:g}, but by the law even 1e24 FLOPs on this text give {best:.3f}; "
            f"set a higher --target-bpb, or give {mend}"
        )
    for _ in range(60):
        middle = (low + high) / 2
        good = best_for_flops(law, math.exp(middle), vocab_size, context_length).loss <= target
        low, high = (low, middle) if good else (middle, high)
    return best_for_flops(law, math.exp(high), vocab_size, context_length)


def plan(
    config: PretrainConfig,
    *,
    budget: str = "",
    target_bpb: float = 0.0,
    law: str | Path = "",
    began: float | None = None,
) -> BudgetPlan:
    """Choose size, tokens, batch and learning rate of `config`. A time budget is counted from `began` (time.monotonic).

    Raises ConfigError unless exactly one of `budget` and `target_bpb` is given, if `config` sets a value that the
    planner chooses, or if the budget is too small; DataError if `law` is not a fit.json.
    """
    began = time.monotonic() if began is None else began
    if bool(budget) == (target_bpb > 0):
        raise ConfigError("wanted either --budget or --target-bpb, above 0; give exactly one of them")
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    if given := [f"--{n.replace('_', '-')}" for n in PLANNED if getattr(config, n) != fields[n]]:
        raise ConfigError(
            f"{', '.join(given)} cannot be combined with --budget or --target-bpb, "
            "which choose these themselves; leave them out"
        )
    seconds, flops = parse_budget(budget) if budget else (0.0, 0.0)
    tokenizer = Tokenizer.load(config.tokenizer)
    planning = min(PLANNING * seconds or PLANNING_MOST, PLANNING_MOST)
    ends = time.monotonic() + planning
    text = estimate_text(config, tokenizer, ends - planning / 2 if seconds else math.inf)
    laws = dataclasses.replace(Law.load(law or DEFAULT_LAW), text=text)
    vocab, context = tokenizer.vocab_size, config.context_length
    cost = Speeds(config, ends)
    if seconds:
        choice = best_choice(laws, vocab, context, lambda s: tokens_within(seconds * (1 - OVERHEAD), context, cost(s)))
    elif flops:
        choice = best_for_flops(laws, flops, vocab, context)
    else:
        choice = least_flops(laws, target_bpb, vocab, context)
    values = planned_settings(config, choice)
    if seconds:
        values["minutes"] = (seconds - (time.monotonic() - began)) / 60
        if values["minutes"] <= 0:
            raise ConfigError(f"--budget is {budget}, but planning alone took longer; give more time")
    new = dataclasses.replace(config, **values)
    tokens = new.steps * new.batch_size * context
    expected = laws.predict(choice.shape.parameters(), tokens)
    training = seconds_for(tokens, context, cost(choice.shape))
    measured, epochs = choice.shape in cost.measured, laws.text.epochs(tokens)
    caveats = _caveats(laws, choice.shape, tokens)
    return BudgetPlan(new, choice.shape, tokens, training, expected, measured, epochs, caveats)


def _caveats(law: Law, shape: ModelConfig, tokens: float) -> tuple[str, ...]:
    """Return the differences between this run and those that the law was fitted to."""
    times, theirs = tokens * shape.flops_per_token() / law.flops, "the law's runs have"
    caveats = []
    if law.vocab_size != shape.vocab_size:
        caveats.append(f"{theirs} {law.vocab_size} token ids, this one {shape.vocab_size}")
    if law.context_length != shape.context_length:
        caveats.append(f"{theirs} a context of {law.context_length}, this one {shape.context_length}")
    if times > FAR:
        caveats.append(f"{theirs} at most {law.flops:.1e} FLOPs, this one {times:,.0f} times as many")
    if law.drift is None:
        caveats.append("the law's runs are too few to measure its error on larger runs")
    if law.text.epochs(tokens) > 1.1 * EPOCHS:
        caveats.append("epochs beyond the fourth are not expected to help: give more text, or a smaller budget")
    return tuple(caveats)


def planned_settings(config: PretrainConfig, choice: Choice) -> dict[str, Any]:
    """Return the settings of a choice, by the rules of the ladder."""
    ladder = LadderConfig(
        data=config.data,
        tokenizer=config.tokenizer,
        tokens=(1,),
        context_length=config.context_length,
        widths=(choice.width,),
    )
    point = ladder.point(choice.width, choice.tokens, config.seed)
    return {name: getattr(point, name) for name in PLANNED if name != "minutes"}
