"""`tercet report`: run directories, scores and baselines to one page that needs nothing but a browser."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from tercet.errors import DataError
from tercet.evaluation.scoring.score_files import scorer_label
from tercet.evaluation.scoring.scorers import is_share
from tercet.reporting.blocks import Cell, Row, Section, Table, compact, duration, listed, measured, memory, plain
from tercet.reporting.compare import answering, labels, main_scorer, prompting, rows_of, scoring
from tercet.reporting.lineage import Member, command, family
from tercet.reporting.story import against_counting
from tercet.training.records import write_text
from tercet.training.stage import load_object, stage_of, stages

TITLE = "How a language model was made"
PRETRAINING = stages()["pretrain"].order  # prompting comes after it
UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters and lone surrogates


def write_report(paths: Sequence[str | Path], out: str | Path, scores: dict[str, Any] | None = None, asking: list[dict[str, Any]] | None = None,
                 baselines: dict[str, Any] | None = None, title: str = TITLE) -> Path:  # fmt: skip
    """Write the report of the runs at `paths` and all their ancestors to the HTML file `out`, and return its path.

    `scores` is what posttraining.scores.evaluate returns; `asking` the rows of evaluation.prompting.ask, each with a
    "form" (a name) added; `baselines` is {"sources": {source: {"model", "unigram", "bigram", "trigram", "xz" (bits per
    byte), "bytes_per_token"}}}. What is missing leaves its section out. The same input gives the same bytes.

    Raises CheckpointError where a path is no run, ConfigError where a run has unknown settings, DataError where `out`
    cannot be written.
    """
    members = family(paths)
    folder = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = folder.get_template("page.html.jinja").render(
        title=title, subtitle=_subtitle(members), numbers=_key_numbers(members, scores), levels=_levels(members), members=members,
        sections=_sections(members, scores, asking, baselines), commands=[(m.label, command(m.run)) for m in members],
        versions=_versions(members), limits=_limits(members, scores), duration=duration, memory=memory,
    )  # fmt: skip
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, UNSHOWABLE.sub("\ufffd", page.lstrip()))
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}; choose another --out") from error
    return target


def _sections(members: Sequence[Member], scores: Mapping[str, Any] | None, asking: Sequence[Mapping[str, Any]] | None,
              baselines: Mapping[str, Any] | None) -> list[Section]:  # fmt: skip
    """In the order of the lecture: pretraining, prompting, instruction tuning, preferences, RLHF, comparison."""
    by_section: dict[str, list[Member]] = {}
    for member in members:
        by_section.setdefault(stage_of(member.run).section, []).append(member)
    sections: list[tuple[int, Section]] = []
    for name, mine in by_section.items():
        if name:
            sections.append((stage_of(mine[0].run).order, load_object(name)(mine)))
    if baselines:
        counted = against_counting(baselines)
        if found := next((s for _, s in sections if s.id == counted.id), None):
            found.blocks.extend(counted.blocks)
        else:
            sections.append((PRETRAINING, counted))
    if asking:
        sections.append((PRETRAINING, prompting(asking)))
    out = [section for _, section in sorted(sections, key=lambda pair: pair[0])]
    if scores and scores["models"]:
        out += [s for s in (scoring(scores, members), answering(scores, members)) if s is not None]
    return out


def _subtitle(members: Sequence[Member]) -> str:
    """What was done, in one sentence."""
    deeds = dict.fromkeys(stage.deed for m in members if (stage := stage_of(m.run)).deed)
    return f"A small language model, {listed(list(deeds))}."


def _key_numbers(members: Sequence[Member], scores: Mapping[str, Any] | None) -> list[tuple[str, Cell]]:
    """The header: (what, how much)."""
    numbers: list[tuple[str, Cell]] = []
    first = members[0]
    if (first.run.path / "model.json").is_file():
        numbers.append(("parameters", Cell(compact(first.run.model_config().parameters()))))
    if first.verb == "pretrain":
        config = first.run.config
        numbers.append(
            ("tokens read in pretraining", Cell(compact(first.done * config["batch_size"] * config["context_length"])))
        )
        if found := first.run.metrics("heldout"):
            numbers.append(("bits per byte of held-out text", plain(found[-1]["heldout"])))
    for member in members:
        if member.verb == "reward" and (accuracy := member.run.manifest.get("accuracy")):
            numbers.append((f"accuracy of the {member.label}", measured(accuracy, percent=True)))
    if scores:
        rows = rows_of(scores)
        main = main_scorer(rows)
        for path, label in labels(scores, members).items():
            if value := (rows[path].get("scores") or {}).get(main, {}).get("greedy"):
                numbers.append((f"{scorer_label(main)}, {label}", measured(value, percent=is_share(main))))
    runs = f", {len(members)} runs" if len(members) > 1 else ""
    numbers.append((f"computing time{runs}", Cell(duration(sum(m.run.manifest["seconds"] for m in members)))))
    if peaks := [m.run.manifest["peak_memory_mb"] for m in members if m.run.manifest.get("peak_memory_mb")]:
        numbers.append(("largest memory", Cell(memory(max(peaks)))))
    return numbers


def _levels(members: Sequence[Member]) -> list[list[Member]]:
    """The rows of the lineage diagram: every run below all runs that it was made from."""
    return [[m for m in members if m.level == level] for level in sorted({m.level for m in members})]


def _versions(members: Sequence[Member]) -> Table:
    """Everything that decides the numbers and does not stand in the command: one row a run."""
    rows = []
    for member in members:
        manifest = member.run.manifest
        git = manifest.get("git") or {}
        code = (git.get("commit", "")[:8] or "–") + (" with changes" if git.get("diff") else "")
        versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
        peak = manifest.get("peak_memory_mb")
        cells = (
            str(manifest["seed"]), str(manifest["threads"]), manifest["device"], manifest["status"], duration(manifest["seconds"]),
            memory(peak) if peak else "–", str(len(manifest.get("resumed", []))), str(manifest.get("skipped_rows", 0)), manifest["created"][:10], code, versions,
        )  # fmt: skip
        rows.append(Row(member.label, tuple(Cell(c) for c in cells)))
    columns = (
        "run",
        "seed",
        "threads",
        "device",
        "status",
        "time",
        "memory",
        "resumed",
        "bad rows skipped",
        "begun",
        "code",
        "versions",
    )
    return Table("Versions, seeds and resources", columns, tuple(rows))


def _limits(members: Sequence[Member], scores: Mapping[str, Any] | None) -> list[str]:
    """What a reader must not conclude from the page."""
    verbs = {m.verb for m in members}
    repeated = len({(m.verb, m.run.config.get("gamma") == 0) for m in members}) < len(members)
    first = members[0].run
    size = (
        f" ({compact(first.model_config().parameters())} parameters)" if (first.path / "model.json").is_file() else ""
    )
    out = [
        f"The model is tiny{size}: large language models have thousands of times as many and read far more text. What it can do, and which stage helps how "
        "much, need not be so at their size."
    ]
    once = "" if repeated else "Every stage was run once, with one random seed. "
    out.append(
        f"{once}The intervals say how far the choice of test texts and questions matters, not how much another seed would change; in reinforcement learning that "
        "can be more than the differences shown."
    )
    if verbs & {"annotate", "reward", "ppo", "grpo"}:
        out.append(_feedback(members))
    if scores and main_scorer(rows_of(scores)):
        out.append("The questions are short and of a few kinds. A model that answers them well need not answer yours.")
    if unfinished := [m.label for m in members if m.run.manifest["status"] != "finished"]:
        out.append(f"Not every run is finished: {listed(unfinished)}.")
    if changed := [f"{m.label} (its {p.role})" for m in members for p in m.parents if p.changed]:
        out.append(
            f"Parents whose weights have changed since the run began: {listed(changed)}. Those numbers do not belong to the weights that are there now."
        )
    if missing := [f"{p.path} ({p.role} of {m.label})" for m in members for p in m.parents if not p.label]:
        out.append(f"Runs that are no longer there and so are left out: {listed(missing)}.")
    return out


def _feedback(members: Sequence[Member]) -> str:
    """Whose preferences these are, as far as the runs say."""
    if any(m.verb == "annotate" for m in members):
        return (
            "The annotator is simulated: a rubric with noise, no people. A score by that same rubric shows that the method "
            "reaches what it was asked to reach, not that a person would like the answers."
        )
    return (
        "The scores of answers in this report are fixed rules. They do not show that a person would like the answers."
    )
