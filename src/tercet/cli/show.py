"""Print tokens, runs and scores as text and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.data.formats.conversations import read_conversations
from tercet.data.readers import BadRows
from tercet.evaluation.scoring.score_files import scorer_label
from tercet.reporting.blocks import FINISHED, plural
from tercet.reporting.lineage import command
from tercet.scaling.fit import LadderFit
from tercet.scaling.laws import LAWS, exponents
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render
from tercet.training.run import Run

console = Console(highlight=False, markup=False, emoji=False)


def show_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Print tokens in alternating colours, their ids, and the bytes per token."""
    ids = tokenizer.encode(text)
    coloured = Text()
    for number, i in enumerate(ids):
        coloured.append(tokenizer.token(i), style="black on cyan" if number % 2 else "black on yellow")
    console.print(coloured)
    console.print(
        f"{len(ids)} tokens, {len(text.encode()) / max(len(ids), 1):.2f} bytes per token: {' '.join(map(str, ids))}",
        markup=False,
    )


def show_conversations(tokenizer: Tokenizer, data: Sequence[str], limit: int) -> None:
    """Print conversations; tokens that are trained on are green, and in [brackets] for terminals without colour."""
    for number, (where, conversation) in enumerate(read_conversations(data, BadRows())):
        if number == limit:
            break
        rendered = render(tokenizer, conversation)
        coloured, inside = Text(f"{where}\n", style="dim"), False
        for token, weight in zip(rendered.tokens, rendered.weights):
            if (weight > 0) != inside:
                coloured.append("[" if weight > 0 else "]", style="bold green")
                inside = weight > 0
            coloured.append(tokenizer.token(token), style="green" if weight > 0 else "default")
        console.print(coloured)
        console.print(f"{sum(w > 0 for w in rendered.weights)} of {len(rendered)} tokens are trained on", style="dim")


def interval(value: dict[str, Any] | None, digits: int = 3) -> str:
    """Return an estimate from JSON as text: 0.480 [0.410, 0.550]."""
    if value is None:
        return "–"
    if value["low"] is None:
        return f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def score_table(scores: dict[str, Any]) -> Table:
    """Return the table of scores: one column per model, one row per measure."""
    models = scores["models"]
    table = Table(title="Scores, with 95 % intervals", title_justify="left")
    table.add_column("measure")
    for path in models:
        table.add_column(path)

    def row(name: str, cells: list[str]) -> None:
        if any(c != "–" for c in cells):
            table.add_row(name, *cells)

    for source in {s: None for m in models.values() for s in m.get("bits_per_byte", {})}:
        row(f"bits per byte, {source}", [interval(m.get("bits_per_byte", {}).get(source)) for m in models.values()])
        _add_overlap(table, [m.get("text_contamination", {}).get(source) for m in models.values()], clean=False)
    names = {name: None for m in models.values() for name in m.get("scores", {})}
    for number, name in enumerate(names):
        mine = [m["scores"][name] for m in models.values()]
        row(f"{scorer_label(name)} (greedy)", [interval(s["greedy"]) for s in mine])
        if number == 0:
            _add_overlap(table, [m.get("contamination") for m in models.values()])
            for ability in mine[0]["abilities"]:
                row(f"  {ability}", [interval(s["abilities"].get(ability), 2) for s in mine])
    for name in names:
        row(f"{scorer_label(name)} (sampled)", [interval(m["scores"][name]["sampled"]) for m in models.values()])
    for key, title in (("reward", "reward"), ("finished", FINISHED), ("kl", "KL (nats per answer)")):
        row(title, [interval(m.get(key)) for m in models.values()])
    for name in names:
        against = [m.get("against", {}).get(name, {}) for m in models.values()]
        row(f"win rate by {scorer_label(name)}", [interval(a.get("win_rate")) for a in against])
        row(f"difference of {scorer_label(name)}", [interval(a.get("difference")) for a in against])
    return table


def _add_overlap(table: Table, splits: Sequence[dict[str, Any] | None], clean: bool = True) -> None:
    """Add each model's contamination: the share of items in the training text, and with `clean` the score on the rest.

    `splits` holds what `Contamination.split` returned for each model.
    """
    if not splits or splits[0] is None:
        return
    short = f"; {splits[0]['too_short']} items too short to tell" if splits[0]["too_short"] else ""
    name = f"  in the training text ({splits[0]['ngram']}-grams{short})"
    table.add_row(name, *[interval(part and part["share"]) for part in splits])
    if clean:
        table.add_row("  clean items", *[interval(part and part["clean"]) for part in splits])


def suite_table(scores: dict[str, Any]) -> Table | None:
    """Return the table of suites: one row per task (per ability above 40 tasks), one column per model.

    None where no suite was evaluated.
    """
    models = {path: m["suite"] for path, m in scores["models"].items() if m.get("suite")}
    if not models:
        return None
    table = Table(title="Suites, with 95 % intervals (centred: 0 is guessing, 1 is perfect)", title_justify="left")
    table.add_column("task")
    for path in models:
        table.add_column(path)
    first = next(iter(models.values()))
    single = len(first["tasks"]) <= 40
    for name, task in first["tasks"].items() if single else ():
        shots = "examples in its contexts" if task.get("whole_contexts") else plural(task["shots"], "shot")
        label = f"{name} ({task['metric']}, {shots}, {task['items']} items)"
        table.add_row(label, *[interval(m["tasks"][name]["score"]) for m in models.values()])
        _add_overlap(table, [m["tasks"][name].get("contamination") for m in models.values()])
    for ability in first["abilities"]:
        table.add_row(f"{ability}, centred", *[f"{m['abilities'][ability]:.3f}" for m in models.values()])
        if not single:
            _add_contamination(table, ability, list(models.values()))
    if first["core"] is not None:
        table.add_row("all tasks, centred", *[f"{m['core']:.3f}" for m in models.values()])
    cut = sum(t["cut_prompts"] for m in models.values() for t in m["tasks"].values())
    if cut:
        table.caption = f"{cut} prompts were longer than the context, so their beginnings were cut"
    return table


def _add_contamination(table: Table, ability: str, suites: Sequence[dict[str, Any]]) -> None:
    """Add rows for all tasks of an ability: how many items are in the training text, and the mean score on the rest."""
    mine = [[t for t in s["tasks"].values() if t["ability"] == ability and t.get("contamination")] for s in suites]
    splits = [task["contamination"] for task in mine[0]]
    if not splits:
        return
    dirty, told, short = (sum(split[key] for split in splits) for key in ("found", "told", "too_short"))
    share = f"{dirty} of {told} items" if told else "–"
    table.add_row(f"  in the training text ({short} items too short to tell)", *[share] * len(suites))
    means = []
    for tasks in mine:
        clean = [(t["contamination"]["clean"], t["chance"]) for t in tasks if "centred" in t]
        scores = [(score["value"] - chance) / (1 - chance) for score, chance in clean if score]
        means.append(f"{sum(scores) / len(scores):.3f}" if scores else "–")
    table.add_row("  clean items, centred", *means)


def comparison_table(comparison: dict[str, Any]) -> Table:
    """Return one row per measure: A, B, their difference, and p corrected for the number of measures."""
    title = "B against A, item by item (95 % intervals; p corrected with Holm's method)"
    table = Table(title=title, title_justify="left")
    for name in ("measure", "A", "B", "difference", "p"):
        table.add_column(name)
    for name, row in comparison["measures"].items():
        table.add_row(name, f"{row['a']:.3f}", f"{row['b']:.3f}", interval(row["difference"]), f"{row['p_holm']:.2g}")
    return table


def winrate_tables(rates: dict[str, Any]) -> list[Table]:
    """Return one row per pair of models and, for three models or more, a table of their Bradley–Terry ratings."""
    pairs = Table(title="Win rates, with 95 % intervals (a tie counts half)", title_justify="left")
    for name in ("model", "against", "win rate", "at equal length", "ties", "changed with order"):
        pairs.add_column(name)
    for row in rates["pairs"]:
        changed = "–" if row["changed_with_order"] is None else f"{row['changed_with_order']:.2f}"
        cells = [interval(row[k]) for k in ("win_rate", "length_controlled")]
        pairs.add_row(row["model"], row["against"], *cells, f"{row['ties']:.2f}", changed)
    if len(rates["strengths"]) < 3:
        return [pairs]
    table = Table(title="Bradley–Terry ratings, with 95 % intervals (0 is the average)", title_justify="left")
    table.add_column("model")
    table.add_column("rating")
    for path, value in sorted(rates["strengths"].items(), key=lambda kv: -kv[1]["value"]):
        table.add_row(path, interval(value))
    return [pairs, table]


def prompt_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Return one table per task: accuracy by ability or condition and by number of shots.

    Where a number is a mean over draws, orders or formats, a further row has the worst and the best of them.
    """
    out = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        shots = sorted({r["shots"] for r in mine})
        name = mine[0]["metric"] if len({r["task"] for r in rows}) == 1 else f"{task}, {mine[0]['metric']}"
        table = Table(title=f"Accuracy by number of examples in the prompt ({name})", title_justify="left")
        table.add_column("ability")
        for s in shots:
            table.add_column(plural(s, "shot"))
        for ability, condition in dict.fromkeys((r["ability"], r["condition"]) for r in mine):
            by_shots = {r["shots"]: r for r in mine if (r["ability"], r["condition"]) == (ability, condition)}
            label = ability if condition == "base" else f"{ability}, {condition}"
            table.add_row(label, *[interval(by_shots[s]["accuracy"], 2) if s in by_shots else "–" for s in shots])
            if any(len(r["each"]) > 1 and r["worst"] < r["best"] for r in by_shots.values()) and ability == "all":
                ends = [(by_shots[s]["worst"], by_shots[s]["best"]) if s in by_shots else () for s in shots]
                table.add_row("  worst to best", *[" to ".join(f"{end:.2f}" for end in pair) for pair in ends])
        if mine[0]["chance"]:
            table.add_row("by guessing", *[f"{mine[0]['chance']:.2f}" for _ in shots])
        out.append(table)
    return out


def law_table(ladder: LadderFit) -> Table:
    """Return one row per law: its equation, and its parameters with their intervals."""
    title = f"Scaling laws of {plural(len(ladder.runs.paths), 'run')}, with 95 % intervals"
    table = Table(title=title, title_justify="left")
    for column in ("law", "equation", "runs", "parameters"):
        table.add_column(column, overflow="fold")

    def line(e: Estimate) -> str:
        return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"

    for name, fit in ladder.laws.items():
        parameters = {**fit.parameters(), **(exponents(fit) if name.startswith("parametric") else {})}
        count = "" if name in ("parametric", "simple", "tokens") else ", N without embeddings"
        lines = "\n".join(f"{k} = {line(e)}" for k, e in parameters.items())
        table.add_row(name, LAWS[fit.law][0] + count, str(len(fit.residuals)), lines)
    if ladder.iso is not None:
        lines = "\n".join(f"{k} = {line(e)}" for k, e in ladder.iso.exponents.items())
        table.add_row("iso_flop", "N* ∝ C^a, D* ∝ C^b", str(ladder.iso.exponents["a"].n), lines)
    table.caption_justify = "left"
    if ladder.drift is None:
        table.caption = "There are too few runs to hold back the largest, so the error of extrapolation is not known."
    else:
        table.caption = (
            "Laws fitted without the largest runs miss these by "
            f"{100 * ladder.drift:.1f} % per doubling of FLOPs; intervals of predictions are widened by as much."
        )
    return table


def show_run(run: Run) -> None:
    """Print status, parents, settings, command and the newest metrics of a run."""
    m = run.manifest
    console.print(f"{run.path}: {m['verb']}, {m['status']}, {m['seconds']:.0f} s, began {m['created']}", markup=False)
    for role, parent in m["parents"].items():
        console.print(
            f"  {role}: {parent['path']} ({parent['checkpoint']}, weights {parent['sha256'][:12]})", markup=False
        )
    if (run.path / "model.json").is_file():
        shape = run.model_config()
        console.print(f"  {shape.parameters():,} parameters, context of {shape.context_length} tokens")
    console.print("  checkpoints: " + (", ".join(p.name for p in run.checkpoints()) or "none yet"))
    newest: dict[str, Any] = {}
    for row in run.read_lines("metrics.jsonl"):
        newest |= row
    console.print(
        "  newest numbers: " + (", ".join(f"{k} {v:g}" for k, v in newest.items()) or "none yet"), markup=False
    )
    console.print("  settings: " + ", ".join(f"{k}={v!r}" for k, v in run.config.items()), markup=False)
    console.print(f"  repeat with: {command(run)}", markup=False, soft_wrap=True)
