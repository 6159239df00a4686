"""What the commands print about tokens, runs and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.data.formats.conversations import read_conversations
from tercet.data.readers import BadRows
from tercet.evaluation.scoring.score_files import scorer_label
from tercet.reporting.lineage import command
from tercet.scaling.fit import LadderFit
from tercet.scaling.laws import LAWS, exponents
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render
from tercet.training.run import Run

console = Console(highlight=False, markup=False, emoji=False)


def show_tokens(tokenizer: Tokenizer, text: str) -> None:
    """Tokens in alternating colours, their ids, and the bytes per token."""
    ids = tokenizer.encode(text)
    shown = Text()
    for number, i in enumerate(ids):
        shown.append(tokenizer.token(i), style="black on cyan" if number % 2 else "black on yellow")
    console.print(shown)
    console.print(
        f"{len(ids)} tokens, {len(text.encode()) / max(len(ids), 1):.2f} bytes per token: {' '.join(map(str, ids))}",
        markup=False,
    )


def show_conversations(tokenizer: Tokenizer, data: Sequence[str], limit: int) -> None:
    """Conversations with the tokens that are trained on in green and in [brackets], for terminals without colour."""
    for number, (where, conversation) in enumerate(read_conversations(data, BadRows())):
        if number == limit:
            break
        rendered = render(tokenizer, conversation)
        shown, inside = Text(f"{where}\n", style="dim"), False
        for token, weight in zip(rendered.tokens, rendered.weights):
            if (weight > 0) != inside:
                shown.append("[" if weight > 0 else "]", style="bold green")
                inside = weight > 0
            shown.append(tokenizer.token(token), style="green" if weight > 0 else "default")
        console.print(shown)
        console.print(f"{sum(w > 0 for w in rendered.weights)} of {len(rendered)} tokens are trained on", style="dim")


def interval(value: dict[str, Any] | None, digits: int = 3) -> str:
    """An estimate from JSON as text."""
    if value is None:
        return "–"
    if value["low"] is None:
        return f"{value['value']:.{digits}f}"
    return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def score_table(scores: dict[str, Any]) -> Table:
    """One column a model, one row a measure."""
    models = scores["models"]
    table = Table(title="scores (95 % intervals)", title_justify="left")
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
    for key in ("reward", "finished", "kl"):
        row(key, [interval(m.get(key)) for m in models.values()])
    for name in names:
        found = [m.get("against", {}).get(name, {}) for m in models.values()]
        row(f"win rate by {scorer_label(name)}", [interval(f.get("win_rate")) for f in found])
        row(f"difference of {scorer_label(name)}", [interval(f.get("difference")) for f in found])
    return table


def _add_overlap(table: Table, found: Sequence[dict[str, Any] | None], clean: bool = True) -> None:
    """Rows for what `Contamination.split` gave for each model: the share that training holds, and the scores on the others."""
    if not found or found[0] is None:
        return
    name = f"  in the training text ({found[0]['ngram']}-grams; {found[0]['too_short']} items too short to tell)"
    table.add_row(name, *[interval(part and part["share"]) for part in found])
    if clean:
        table.add_row("  clean items", *[interval(part and part["clean"]) for part in found])


def suite_table(scores: dict[str, Any]) -> Table | None:
    """One row a task (a group of tasks where there are many), one column a model; None where no suite was asked."""
    models = {path: m["suite"] for path, m in scores["models"].items() if m.get("suite")}
    if not models:
        return None
    table = Table(title="suites (95 % intervals; centred: 0 is a guess, 1 is perfect)", title_justify="left")
    table.add_column("task")
    for path in models:
        table.add_column(path)
    first = next(iter(models.values()))
    single = len(first["tasks"]) <= 40
    for name, task in first["tasks"].items() if single else ():
        shots = "shots in the contexts" if task.get("whole_contexts") else f"{task['shots']} shots"
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
        table.caption = f"{cut} prompts were longer than the context and lost their beginning"
    return table


def _add_contamination(table: Table, ability: str, suites: Sequence[dict[str, Any]]) -> None:
    """Rows for all tasks of an ability together: how many items training holds, and the mean of scores on the others."""
    mine = [[t for t in s["tasks"].values() if t["ability"] == ability and t.get("contamination")] for s in suites]
    found = [task["contamination"] for task in mine[0]]
    if not found:
        return
    dirty, told, short = (sum(f[key] for f in found) for key in ("found", "told", "too_short"))
    share = f"{dirty} of {told} items" if told else "–"
    table.add_row(f"  in the training text ({short} items too short to tell)", *[share] * len(suites))
    clean = [
        [(t["contamination"]["clean"]["value"] - t["chance"]) / (1 - t["chance"]) for t in tasks
         if "centred" in t and t["contamination"]["clean"]]
        for tasks in mine
    ]  # fmt: skip
    table.add_row("  clean items, centred", *[f"{sum(c) / len(c):.3f}" if c else "–" for c in clean])


def comparison_table(found: dict[str, Any]) -> Table:
    """One row a measure: A, B, the difference, and p corrected for the number of measures."""
    table = Table(title="B against A, item by item (95 % intervals; p corrected by Holm)", title_justify="left")
    for name in ("measure", "A", "B", "difference", "p"):
        table.add_column(name)
    for name, row in found["measures"].items():
        table.add_row(name, f"{row['a']:.3f}", f"{row['b']:.3f}", interval(row["difference"]), f"{row['p_holm']:.2g}")
    return table


def winrate_tables(found: dict[str, Any]) -> list[Table]:
    """One row a pair of models; and, of three models or more, their strengths."""
    pairs = Table(title="win rates (95 % intervals; ties count half)", title_justify="left")
    for name in ("model", "against", "win rate", "at equal length", "ties", "changed with order"):
        pairs.add_column(name)
    for row in found["pairs"]:
        changed = "–" if row["changed_with_order"] is None else f"{row['changed_with_order']:.2f}"
        rates = [interval(row[k]) for k in ("win_rate", "length_controlled")]
        pairs.add_row(row["model"], row["against"], *rates, f"{row['ties']:.2f}", changed)
    if len(found["strengths"]) < 3:
        return [pairs]
    table = Table(title="log strengths (Bradley and Terry; 0 is the average)", title_justify="left")
    table.add_column("model")
    table.add_column("strength")
    for path, value in sorted(found["strengths"].items(), key=lambda kv: -kv[1]["value"]):
        table.add_row(path, interval(value))
    return [pairs, table]


def asking_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One table a task: accuracy by ability or condition, and number of shots; [worst to best] of its draws or orders."""
    out = []
    for task in dict.fromkeys(r["task"] for r in rows):
        mine = [r for r in rows if r["task"] == task]
        shots = sorted({r["shots"] for r in mine})
        name = mine[0]["metric"] if len({r["task"] for r in rows}) == 1 else f"{task}, {mine[0]['metric']}"
        table = Table(title=f"accuracy by number of examples in the prompt ({name})", title_justify="left")
        table.add_column("ability")
        for s in shots:
            table.add_column(f"{s} shots")
        for ability, condition in dict.fromkeys((r["ability"], r["condition"]) for r in mine):
            found = {r["shots"]: r for r in mine if (r["ability"], r["condition"]) == (ability, condition)}
            label = ability if condition == "base" else f"{ability}, {condition}"
            table.add_row(label, *[interval(found[s]["accuracy"], 2) if s in found else "–" for s in shots])
            if any(len(r["each"]) > 1 and r["worst"] < r["best"] for r in found.values()) and ability == "all":
                ends = [f"{found[s]['worst']:.2f} … {found[s]['best']:.2f}" if s in found else "" for s in shots]
                table.add_row("  worst … best", *ends)
        if mine[0]["chance"]:
            table.add_row("by guessing", *[f"{mine[0]['chance']:.2f}" for _ in shots])
        out.append(table)
    return out


def law_table(found: LadderFit) -> Table:
    """One row a law: its equation and its parameters with their intervals."""
    table = Table(title=f"scaling laws of {len(found.runs.paths)} runs (95 % intervals)", title_justify="left")
    for column in ("law", "equation", "runs", "parameters"):
        table.add_column(column, overflow="fold")

    def line(e: Estimate) -> str:
        return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"

    for name, fit in found.laws.items():
        parameters = {**fit.parameters(), **(exponents(fit) if name.startswith("parametric") else {})}
        count = "" if name in ("parametric", "simple", "tokens") else ", N without embeddings"
        shown = "\n".join(f"{k} = {line(e)}" for k, e in parameters.items())
        table.add_row(name, LAWS[fit.law][0] + count, str(len(fit.residuals)), shown)
    if found.iso is not None:
        shown = "\n".join(f"{k} = {line(e)}" for k, e in found.iso.exponents.items())
        table.add_row("iso_flop", "N* ∝ C^a, D* ∝ C^b", str(found.iso.exponents["a"].n), shown)
    table.caption_justify = "left"
    table.caption = (
        "too few runs to hold the largest back: how far predictions stray is not known" if found.drift is None else
        f"fitted without the largest runs, the laws stray from them by {100 * found.drift:.1f} % per doubling of FLOPs: predictions' intervals are as much wider"
    )  # fmt: skip
    return table


def show_run(run: Run) -> None:
    """Status, parents, settings, command and the newest metrics of a run."""
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
    console.print("  newest: " + (", ".join(f"{k} {v:g}" for k, v in newest.items()) or "nothing yet"), markup=False)
    console.print("  settings: " + ", ".join(f"{k}={v!r}" for k, v in run.config.items()), markup=False)
    console.print(f"  again: {command(run)}", markup=False, soft_wrap=True)
