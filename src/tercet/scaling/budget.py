"""The budget dial: from a time, a number of FLOPs or a loss to size, tokens, batch and learning rate.

This machine's speed is measured for one size after another; a scaling law says what loss each size would reach with the tokens
that it could read; the best is taken. The law is the user's own fit.json, or the one that comes with tercet.
"""

from __future__ import annotations

import dataclasses
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tercet.data.readers import BadRows, documents
from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.causal import must_agree
from tercet.pretraining.stage import PretrainConfig
from tercet.scaling.config import LadderConfig, batch_rows, shape_of
from tercet.scaling.fit import FAR, Choice, Law, best_choice, best_for_flops
from tercet.scaling.flops import ENDLESS, READINGS, Text
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch, sequences_per_pass
from tercet.training.run import threads
from tercet.training.settings import shares

DEFAULT_LAW = Path(__file__).with_name("default_law.json")
UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "hours": 3600.0}
PLANNED = (*shape_of(64), "steps", "batch_size", "lr", "muon_lr", "warmup", "minutes")
OVERHEAD = 0.08  # share of the time that reading and measuring may take: only a first guess, the clock decides
PLANNING, PLANNING_MOST = 0.05, 60.0  # share of the time, and seconds, after which no further size is measured
REPEATS = 3
SAMPLE = 200_000  # characters of each source from which its tokens are reckoned


@dataclass(frozen=True)
class BudgetPlan:
    """What will be trained and what is expected of it.

    `seconds` is of training at this machine's speed, `measured` or reckoned from that of a smaller model.
    """

    config: PretrainConfig
    shape: ModelConfig
    tokens: int
    seconds: float
    expected: Estimate
    measured: bool = True
    readings: float = 0.0  # of the text, or of its source that is read most often
    caveats: tuple[str, ...] = ()  # what makes this run unlike those that the law was fitted to

    def lines(self) -> list[str]:
        """For a person."""
        c = self.config
        return [
            f"plan: {self.shape.parameters():,} parameters ({self.shape.parameters(embeddings=False):,} without embeddings), "
            f"width {c.hidden_size}, {c.num_layers} layers",
            f"      {self.tokens:,} tokens, your text {self.readings:,.1f} times, in {c.steps:,} steps of {c.batch_size} rows, "
            f"learning rates {c.lr:g} and {c.muon_lr:g}",
            f"      {self.tokens * self.shape.flops_per_token():.2e} FLOPs, about {self.seconds:,.0f} s of training here"
            + ("" if self.measured else " (by the speed of a smaller model: there was no time to measure this one)"),
            f"      expected {self.expected.value:.3f} bits per byte, 90 % interval [{self.expected.low:.3f}, {self.expected.high:.3f}], "
            "if your text is like the law's",
            *(f"      a rough guess: {', '.join(self.caveats)}" for _ in self.caveats[:1]),
        ]


def parse_budget(text: str) -> tuple[float, float]:
    """(seconds, FLOPs), one of them 0, of "20min", "90s", "1.5h" or "1e15flops". Raises ConfigError for anything else."""
    found = re.fullmatch(r"(\d+\.?\d*(?:e\+?\d+)?)\s*(s|sec|min|h|hours|flops)", text.strip().lower())
    if found is None or not 0 < float(found[1]) < math.inf:
        raise ConfigError(f"--budget is {text!r}; wanted a time or FLOPs, such as 20min, 90s, 1.5h or 1e15flops")
    value, unit = float(found[1]), found[2]
    return (0.0, value) if unit == "flops" else (value * UNITS[unit], 0.0)


def measure_speed(shape: ModelConfig, config: PretrainConfig, until: float = math.inf) -> tuple[float, float]:
    """(seconds per row, seconds per optimizer step) of this machine for a model: the middle of a few, after one to warm up.

    At `until` (time.monotonic) no further one is begun, so that the first alone may have to do.
    """
    rows = sequences_per_pass(config.micro_batch, shape.context_length)
    tokens = torch.arange(rows * shape.context_length).reshape(rows, -1) % shape.vocab_size
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), torch.zeros(tokens.shape, dtype=torch.int32))
    learner = Learner(Transformer(shape), OptimizerConfig.of(config), config.precision)
    passes: list[float] = []
    updates: list[float] = []
    with threads(config.threads):
        while len(passes) <= REPEATS and (not passes or time.monotonic() < until):
            start = time.monotonic()
            learner.forward_backward([batch], next_token)
            middle = time.monotonic()
            learner.optim_step(1.0)
            passes.append((middle - start) / rows)
            updates.append(time.monotonic() - middle)
    passes, updates = (sorted(v[1:] or v) for v in (passes, updates))
    return passes[len(passes) // 2], updates[len(updates) // 2]


class Speeds:
    """What `measure_speed` gives for each shape, as long as there is time for it; after that reckoned from the largest one measured.

    A row is taken to cost in proportion to its FLOPs and an optimizer step to the parameters. Larger matrices are faster than that, so
    that what is reckoned errs towards smaller models; the training itself goes by the clock.
    """

    def __init__(self, config: PretrainConfig, until: float = math.inf) -> None:
        self.config, self.until = config, until
        self.measured: dict[ModelConfig, tuple[float, float]] = {}
        self._took = 0.0  # seconds, by the last measurement

    def __call__(self, shape: ModelConfig) -> tuple[float, float]:
        """(seconds per row, seconds per optimizer step)."""
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
    """Training time of `tokens` tokens at the batch that the rule gives, by what `measure_speed` gave."""
    rows = tokens / context_length
    return rows * (cost[0] + cost[1] / batch_rows(tokens, context_length))


def tokens_within(seconds: float, context_length: int, cost: tuple[float, float]) -> float:
    """The most tokens that take at most `seconds`: by bisection, since the batch grows with them."""
    low, high = 0.0, context_length * seconds / cost[0]
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if seconds_for(max(middle, 1.0), context_length, cost) <= seconds else (low, middle)
    return low


@dataclass
class _Sample:
    """The length of a source's text, and every n-th document of it, n growing with the source."""

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
        """Those of all documents, with the one that ends each."""
        rate = sum(map(len, tokenizer.encode_batch(self.kept))) / max(1, self.size)
        return self.count + self.characters * rate


def estimate_text(config: PretrainConfig, tokenizer: Tokenizer, until: float = math.inf) -> Text:
    """About how many tokens each source has, by the characters of all and the tokens of some. Raises DataError for bad rows, as training would.

    A text that takes longer than `until` (time.monotonic) to read is taken to have no end: it is read a hundred times as fast as a model learns.
    """
    found: dict[str, _Sample] = {}
    for document in documents(config.data, BadRows(skip=config.skip_bad_rows)):
        found.setdefault(document.source, _Sample()).add(document.text)
        if time.monotonic() > until:
            return ENDLESS
    own = {source: sample.tokens(tokenizer) for source, sample in found.items()}
    mixture = shares(config.mixture, "mixture")
    must_agree(mixture, own)
    mixture = mixture or own
    whole = sum(mixture.values())
    return Text(tuple((mixture[source] / whole, tokens) for source, tokens in own.items()))


def least_flops(law: Law, target: float, vocab_size: int, context_length: int) -> Choice:
    """The cheapest run that the law expects to reach `target` bits per byte. Raises ConfigError where none would."""
    low, high = math.log(1e8), math.log(1e24)
    if (best := best_for_flops(law, math.exp(high), vocab_size, context_length).loss) > target:
        mend = "a --law of your own data" if law.text == ENDLESS else "more text, or a --law of your own data"
        raise ConfigError(
            f"--target-bpb is {target:g}, but by the law 1e24 FLOPs on this text give {best:.3f}; ask for more bits, or give {mend}"
        )
    for _ in range(60):
        middle = (low + high) / 2
        good = best_for_flops(law, math.exp(middle), vocab_size, context_length).loss <= target
        low, high = (low, middle) if good else (middle, high)
    return best_for_flops(law, math.exp(high), vocab_size, context_length)


def plan(config: PretrainConfig, *, budget: str = "", target_bpb: float = 0.0, law: str | Path = "",
         began: float | None = None) -> BudgetPlan:  # fmt: skip
    """Choose size, tokens, batch and learning rate of `config`. `began` (time.monotonic) is when the time started to run.

    Raises ConfigError where not exactly one of `budget` and `target_bpb` is given, where `config` sets something that the budget
    chooses, or where the budget is too small; DataError where `law` is no fit.json.
    """
    began = time.monotonic() if began is None else began
    if bool(budget) == (target_bpb > 0):
        raise ConfigError("give --budget or --target-bpb, one of them and above 0")
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    if given := [f"--{n.replace('_', '-')}" for n in PLANNED if getattr(config, n) != fields[n]]:
        raise ConfigError(f"the budget chooses {', '.join(given)}; leave out the one or the other")
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
            raise ConfigError(f"--budget {budget}: planning alone took longer; give more time")
    new = dataclasses.replace(config, **values)
    tokens = new.steps * new.batch_size * context
    expected = laws.predict(choice.shape.parameters(), tokens)
    speed = cost(choice.shape)
    return BudgetPlan(
        new, choice.shape, tokens, seconds_for(tokens, context, speed), expected, choice.shape in cost.measured, laws.text.readings(tokens),
        _caveats(laws, choice.shape, tokens),
    )  # fmt: skip


def _caveats(law: Law, shape: ModelConfig, tokens: float) -> tuple[str, ...]:
    times = tokens * shape.flops_per_token() / law.flops
    found = {
        f"the law's runs have {law.vocab_size} token ids, this one {shape.vocab_size}": law.vocab_size != shape.vocab_size,
        f"the law's runs have a context of {law.context_length}, this one {shape.context_length}": law.context_length != shape.context_length,
        f"the law's runs have at most {law.flops:.1e} FLOPs, this one {times:,.0f} times as many": times > FAR,
        "the law's runs are too few to say how it strays from larger ones": law.drift is None,
        "readings of your text beyond four count for nothing: give more text, or a smaller budget": law.text.readings(tokens) > 1.1 * READINGS,
    }  # fmt: skip
    return tuple(text for text, true in found.items() if true)


def planned_settings(config: PretrainConfig, choice: Choice) -> dict[str, Any]:
    """The settings that a choice stands for, by the rules of the ladder."""
    ladder = LadderConfig(
        data=config.data,
        tokenizer=config.tokenizer,
        tokens=(1,),
        context_length=config.context_length,
        widths=(choice.width,),
    )
    point = ladder.point(choice.width, choice.tokens, config.seed)
    return {name: getattr(point, name) for name in PLANNED if name != "minutes"}
