"""`tercet report`: make one HTML page from run directories, scores and baselines; it needs only a browser."""

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
PRETRAINING = stages()["pretrain"].order  # the section on prompting comes after it
UNSHOWABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # control characters and lone surrogates


def write_report(
    paths: Sequence[str | Path],
    out: str | Path,
    scores: dict[str, Any] | None = None,
    prompts: list[dict[str, Any]] | None = None,
    baselines: dict[str, Any] | None = None,
    title: str = TITLE,
) -> Path:
    """Write the report of the runs at `paths` and all their ancestors to the HTML file `out`, and return its path.

    `scores` is what `tercet.evaluate` returns, `prompts` the rows that `tercet prompt --out` writes. `baselines` is
    {"sources": {source: {"model", "unigram", "bigram", "trigram", "xz" (bits per byte), "bytes_per_token"}}}. A section
    whose data is None is left out. The same input gives the same bytes.

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
        title=title,
        subtitle=_subtitle(members),
        numbers=_key_numbers(members, scores),
        levels=_levels(members),
        members=members,
        sections=_sections(members, scores, prompts, baselines),
        commands=[(m.label, command(m.run)) for m in members],
        versions=_versions(members),
        limits=_limits(members, scores),
        duration=duration,
        memory=memory,
    )
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_text(target, UNSHOWABLE.sub("\ufffd", page.lstrip()))
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}; choose another --out") from error
    return target


def _sections(
    members: Sequence[Member],
    scores: Mapping[str, Any] | None,
    prompts: Sequence[Mapping[str, Any]] | None,
    baselines: Mapping[str, Any] | None,
) -> list[Section]:
    """Return the sections in order: pretraining, prompting, instruction tuning, preferences, RLHF, comparison."""
    by_section: dict[str, list[Member]] = {}
    for member in members:
        by_section.setdefault(stage_of(member.run).section, []).append(member)
    sections: list[tuple[int, Section]] = []
    for name, mine in by_section.items():
        if name:
            sections.append((stage_of(mine[0].run).order, load_object(name)(mine)))
    if baselines:
        counted = against_counting(baselines)
        if section := next((s for _, s in sections if s.id == counted.id), None):
            section.blocks.extend(counted.blocks)
        else:
            sections.append((PRETRAINING, counted))
    if prompts:
        sections.append((PRETRAINING, prompting(prompts)))
    out = [section for _, section in sorted(sections, key=lambda pair: pair[0])]
    if scores and scores["models"]:
        out += [s for s in (scoring(scores, members), answering(scores, members)) if s is not None]
    return out


def _subtitle(members: Sequence[Member]) -> str:
    """Return one sentence that says what was done."""
    deeds = dict.fromkeys(stage.deed for m in members if (stage := stage_of(m.run)).deed)
    return f"A small language model, {listed(list(deeds))}."


def _key_numbers(members: Sequence[Member], scores: Mapping[str, Any] | None) -> list[tuple[str, Cell]]:
    """Return the numbers of the page's header, as (name, value)."""
    numbers: list[tuple[str, Cell]] = []
    first = members[0]
    if (first.run.path / "model.json").is_file():
        numbers.append(("parameters", Cell(compact(first.run.model_config().parameters()))))
    if first.verb == "pretrain":
        config = first.run.config
        tokens = first.done * config["batch_size"] * config["context_length"]
        numbers.append(("tokens of pretraining", Cell(compact(tokens))))
        if measurements := first.run.metrics("heldout"):
            numbers.append(("bits per byte of held-out text", plain(measurements[-1]["heldout"])))
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
        numbers.append(("peak memory", Cell(memory(max(peaks)))))
    return numbers


def _levels(members: Sequence[Member]) -> list[list[Member]]:
    """Return the rows of the lineage diagram: every run is below all runs that it was made from."""
    return [[m for m in members if m.level == level] for level in sorted({m.level for m in members})]


def _versions(members: Sequence[Member]) -> Table:
    """Return a table of everything that affects the numbers and is not in the commands, one row per run."""
    rows = []
    for member in members:
        manifest = member.run.manifest
        git = manifest.get("git") or {}
        code = (git.get("commit", "")[:8] or "–") + (" with changes" if git.get("diff") else "")
        versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
        peak = manifest.get("peak_memory_mb")
        values = {
            "seed": manifest["seed"],
            "threads": manifest["threads"],
            "device": manifest["device"],
            "status": manifest["status"],
            "time": duration(manifest["seconds"]),
            "memory": memory(peak) if peak else "–",
            "times resumed": len(manifest.get("resumed", [])),
            "bad rows skipped": manifest.get("skipped_rows", 0),
            "started": manifest["created"][:10],
            "code": code,
            "versions": versions,
        }
        rows.append(Row(member.label, tuple(Cell(str(value)) for value in values.values())))
    return Table("Versions, seeds and resources", ("run", *values), tuple(rows))


def _limits(members: Sequence[Member], scores: Mapping[str, Any] | None) -> list[str]:
    """Return the sentences on what a reader must not conclude from the page."""
    verbs = {m.verb for m in members}
    repeated = len({(m.verb, m.run.config.get("gamma") == 0) for m in members}) < len(members)
    first = members[0].run
    size = (
        f" ({compact(first.model_config().parameters())} parameters)" if (first.path / "model.json").is_file() else ""
    )
    out = [
        f"The model is tiny{size}. Large language models have thousands of times more parameters and are trained on "
        "far more text. Their abilities, and the benefit of each stage, can be different."
    ]
    once = "" if repeated else "Every stage was run once, with one random seed. "
    out.append(
        f"{once}The intervals cover the choice of test texts and questions. They do not cover the effect of another "
        "seed, which in reinforcement learning can be larger than the differences on this page."
    )
    if verbs & {"annotate", "reward", "ppo", "grpo"}:
        out.append(_feedback(members))
    if scores and main_scorer(rows_of(scores)):
        out.append("The questions are short and of few kinds. A model that answers them well may fail on yours.")
    if unfinished := [m.label for m in members if m.run.manifest["status"] != "finished"]:
        out.append(f"Not every run is finished: {listed(unfinished)}.")
    if changed := [f"{m.label} (its {p.role})" for m in members for p in m.parents if p.changed]:
        out.append(
            f"Parents whose weights have changed since the run began: {listed(changed)}. The numbers of these runs do "
            "not belong to the weights that are there now."
        )
    if missing := [f"{p.path} ({p.role} of {m.label})" for m in members for p in m.parents if not p.label]:
        out.append(f"Runs that no longer exist and are left out: {listed(missing)}.")
    return out


def _feedback(members: Sequence[Member]) -> str:
    """Return the sentence on the source of the preferences, as far as the runs tell."""
    if any(m.verb == "annotate" for m in members):
        return (
            "The annotator is simulated: a rubric with noise, no people. A high score by the same rubric shows that "
            "the method reached its goal, not that a person would like the answers."
        )
    return "The scorers in this report are fixed rules. Their scores do not show that a person would like the answers."
