"""What the commands print about tokens, runs and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tercet.data.conversations import conversations
from tercet.data.readers import BadRows
from tercet.evaluation.metrics import Estimate
from tercet.pretraining.laws import LAWS, exponents
from tercet.pretraining.scaling import LadderFit
from tercet.reporting.lineage import command
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat import render
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
    for number, (where, conversation) in enumerate(conversations(data, BadRows())):
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
    row("exact match", [interval(m.get("exact_match")) for m in models.values()])
    for ability in {a: None for m in models.values() for a in m.get("abilities", {})}:
        row(f"  {ability}", [interval(m.get("abilities", {}).get(ability), 2) for m in models.values()])
    for name in ("rubric", "reward", "well_formed", "finished", "kl", "win_rate", "rubric_difference"):
        row(name.replace("_", " "), [interval(m.get(name)) for m in models.values()])
    return table


def asking_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy by ability and number of shots."""
    shots = sorted({r["shots"] for r in rows})
    table = Table(title="accuracy by number of examples in the prompt", title_justify="left")
    table.add_column("ability")
    for s in shots:
        table.add_column(f"{s} shots")
    for ability in {r["ability"]: None for r in rows}:
        found = {r["shots"]: r["accuracy"] for r in rows if r["ability"] == ability}
        table.add_row(ability, *[interval(found.get(s), 2) for s in shots])
    return table


def law_table(found: LadderFit) -> Table:
    """One row a law: its equation and its parameters with their intervals."""
    table = Table(title=f"scaling laws of {len(found.runs.paths)} runs (95 % intervals)", title_justify="left")
    for column in ("law", "equation", "runs", "parameters"):
        table.add_column(column, overflow="fold")

    def line(e: Estimate) -> str:
        return f"{e.value:.4g} [{e.low:.4g}, {e.high:.4g}]"

    for name, fit in found.laws.items():
        parameters = {**fit.parameters(), **(exponents(fit) if name.startswith("parametric") else {})}
        count = "" if name in ("parametric", "tokens") else ", N without embeddings"
        shown = "\n".join(f"{k} = {line(e)}" for k, e in parameters.items())
        table.add_row(name, LAWS[fit.law][0] + count, str(len(fit.residuals)), shown)
    if found.iso is not None:
        shown = "\n".join(f"{k} = {line(e)}" for k, e in found.iso.exponents.items())
        table.add_row("iso_flop", "N* ∝ C^a, D* ∝ C^b", str(found.iso.exponents["a"].n), shown)
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
