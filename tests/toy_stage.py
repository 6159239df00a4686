"""A stage of one file, which tests/test_stages.py puts into a copy of the package: the way to add a stage.

It trains on from a language model with the loss of an ordinary text, and knows nothing of the rest of the program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.training.settings import FILES, LANGUAGE_MODEL, TuneSettings, setting
from tercet.training.stage import Stage

if TYPE_CHECKING:
    from tercet.diagnostics.findings import Finding, Records
    from tercet.reporting.blocks import Section
    from tercet.reporting.lineage import Member
    from tercet.training.run import Run


@dataclass(frozen=True, kw_only=True)
class ToyConfig(TuneSettings):
    """A toy: read some text again."""

    model: str = setting(..., "The run to start from.", reads=LANGUAGE_MODEL)
    data: tuple[str, ...] = setting(..., "The text to read.", reads=FILES)
    loudness: float = setting(1.0, "A setting of the toy's own.", minimum=0)


def toy(config: ToyConfig, run: Run) -> None:
    """Read the text for some steps."""
    from tercet.data.readers import BadRows, read_documents
    from tercet.pretraining.causal import build_loader
    from tercet.tokenizer.bpe import Tokenizer
    from tercet.training.learner import Learner
    from tercet.training.load import adapt, load_language_model
    from tercet.training.losses import next_token
    from tercet.training.optim import OptimizerConfig
    from tercet.training.trainer import training_steps

    model = adapt(load_language_model(run.parents["model"]), config)
    texts = {"toy": list(read_documents(config.data, BadRows()))}
    length = model.config.context_length
    feed = build_loader(Tokenizer.load(run.path), texts, None, length, config.batch_size, config.seed)
    learner = Learner(model, OptimizerConfig.of(config))
    for step in training_steps(run, config, learner, lambda done: run.log(done, heldout=1.0)):
        batches = [feed.batch(step.number)]
        metrics = learner.forward_backward(batches, next_token)
        step.update(learner, metrics | {"loudness": config.loudness}, batches)


def section(members: Sequence[Member]) -> Section:
    """The report's section."""
    from tercet.reporting.blocks import Prose, Section

    return Section("toy", "The toy stage", (), [Prose(f"{m.label} took {m.done} steps.") for m in members])


def check_loudness(records: Records) -> list[Finding]:
    """The doctor's check."""
    from tercet.diagnostics.findings import judged

    return [judged("loudness", records.series("loudness")[-1], "below 2", "turn it down", look=(0, 2))]


CHECKS = (check_loudness,)


def probe(run: Run, model: Any, tokenizer: Any) -> Iterator[Finding]:
    """The doctor's fresh measurement."""
    from tercet.diagnostics.findings import judged

    yield judged("parameters of the toy", model.config.parameters(), "for information")


TOY = Stage(
    "toy-reading", ToyConfig, f"{__name__}:toy", order=35, label="toy", makes=LANGUAGE_MODEL, deed="amused",
    example="tercet toy-reading --model runs/base --data books/ --out runs/toy",
    section=f"{__name__}:section", checks=f"{__name__}:CHECKS", probe=f"{__name__}:probe",
)  # fmt: skip
