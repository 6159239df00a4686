"""The budget planner: does `tercet pretrain --budget` end on time, and is its size as good as the best of a grid?

    python proofs/budget_dial.py --out runs/dial        (about 50 minutes, on a quiet machine)
    python proofs/budget_dial.py --out runs/dial --budgets --grid 3e12flops --seeds 0 1 2    (on any machine)

Every run is a process of its own, timed from start to end. A run of the grid has a given width and the planner's
time (Python's start included) or FLOPs. Its tokens and learning rates follow the same rules. Only the planner also has
to plan.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scaling_prediction import DATA, own_text, prepare

from tercet import pretrain
from tercet.model.config import ModelConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.scaling.budget import OVERHEAD, measure_speed, parse_budget, planned_settings, tokens_within
from tercet.scaling.config import shape_of
from tercet.scaling.fit import Choice
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.progress import Plain
from tercet.training.records import write_text
from tercet.training.run import Run

BUDGETS, GRID, WIDTHS = ("1min", "5min", "20min"), ("2min",), (32, 48, 64, 96, 128)


def of_width(width: int, budget: str, config: PretrainConfig, out: Path, began: float) -> None:
    """Train one size of the grid with the budget that began at `began` (time.monotonic)."""
    shape = ModelConfig(Tokenizer.load(config.tokenizer).vocab_size, config.context_length, **shape_of(width))
    seconds, flops = parse_budget(budget)
    if flops:
        tokens = flops / shape.flops_per_token()
    else:
        tokens = tokens_within(seconds * (1 - OVERHEAD), config.context_length, measure_speed(shape, config))
    values = planned_settings(config, Choice(width, shape, tokens, 0.0))
    if seconds:
        values["minutes"] = (seconds - (time.monotonic() - began)) / 60
    pretrain(dataclasses.replace(config, **values), out, progress=Plain())


def timed(command: list[str], budget: str, out: Path) -> dict[str, Any]:
    """Run a command that makes `out`, unless it is there; return seconds of the process, width, tokens, loss."""
    file = out.with_suffix(".json")
    if not file.is_file():
        began = time.monotonic()
        said = subprocess.run(
            [*command, *(["--began", repr(began)] if "--width" in command else [])],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
        seconds, run = time.monotonic() - began, Run(out)
        row = {
            "budget": budget, "seconds": seconds, "ratio": seconds / (parse_budget(budget)[0] or seconds),
            "width": run.config["hidden_size"],
            "tokens": run.metrics("loss")[-1]["step"] * run.config["batch_size"] * run.config["context_length"],
            "loss": run.metrics("heldout")[-1]["heldout"],
            "plan": [line for line in said.splitlines() if "expected" in line],
        }  # fmt: skip
        write_text(file, json.dumps(row) + "\n")
    row = json.loads(file.read_text())
    print(out.name, row, flush=True)
    return dict(row)


def main() -> None:
    """Make all runs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/dial"))
    parser.add_argument("--data", default="code", help=f"{', '.join(DATA)}, or NAME=PATH")
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS), help="Budgets of the planner alone.")
    parser.add_argument("--grid", nargs="*", default=list(GRID), help="Budgets of the planner and of every width.")
    parser.add_argument("--widths", nargs="*", type=int, default=list(WIDTHS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prepared", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--width", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--began", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    name = own_text(args.data) if "=" in args.data else args.data
    data = args.prepared or args.out / name
    config = PretrainConfig(
        data=(str(data / f"{name}.jsonl"),), tokenizer=str(data), threads=args.threads, seed=args.seeds[0]
    )
    if args.width:
        return of_width(args.width, args.grid[0], config, args.out / "run", args.began)
    prepare(data, name)
    lines = ["| budget | seed | width | tokens | bits per byte | took, of it |", "|---|---|---|---|---|---|"]
    above: dict[str, list[float]] = {}
    for seed in args.seeds:
        for budget in (*args.grid, *args.budgets):
            place = args.out / f"{name}-{budget}-{seed}"
            shared = ["--threads", str(args.threads)]
            tercet = str(Path(sys.executable).with_name("tercet"))
            inputs = ["--data", config.data[0], "--tokenizer", config.tokenizer]
            dial = [tercet, "pretrain", *inputs, "--budget", budget, "--seed", str(seed)]
            rows = [timed([*dial, *shared, "--out", str(place / "dial")], budget, place / "dial")]
            for width in args.widths if budget in args.grid else []:
                out = place / f"w{width}"
                inputs = ["--data", args.data, "--prepared", str(data), "--out", str(out)]
                point = ["--grid", budget, "--seeds", str(seed), "--width", str(width)]
                grid = [sys.executable, __file__, *inputs, *point]
                rows.append(timed([*grid, *shared], budget, out / "run"))
            for row, what in zip(rows, ("dial", *args.widths), strict=False):
                label = "dial: " if what == "dial" else ""
                cells = (budget, seed, f"{label}{row['width']}", f"{row['tokens']:,}", f"{row['loss']:.4f}")
                lines.append(f"| {' | '.join(map(str, cells))} | {row['ratio']:.3f} |")
            if rows[1:]:
                above.setdefault(budget, []).append(rows[0]["loss"] / min(r["loss"] for r in rows[1:]) - 1)
    for budget, parts in above.items():
        each = ", ".join(f"{100 * a:+.2f}" for a in parts)
        mean = 100 * statistics.mean(parts)
        lines.append(f"\n{budget}: the planner's run is {each} % above the best of the grid, mean {mean:+.2f} %")
    write_text(args.out / f"{name}.md", "\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
