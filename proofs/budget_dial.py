"""The budget dial: does `tercet pretrain --budget` end at its time, and is its size as good as the best of a grid?

    python proofs/budget_dial.py --out runs/dial            (three budgets and five sizes: half an hour on a quiet machine)

Each budget is a command in a process of its own, timed from its start to its end. Each size of the grid has the time of GRID, its tokens
and rates by the same rules as the dial's. Other work on the machine falls on whatever is being timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scaling_prediction import DATA, prepare

from tercet.model.config import ModelConfig
from tercet.pretraining.budget import BESIDES, chosen, measure, parse_budget, tokens_within
from tercet.pretraining.clm import pretrain
from tercet.pretraining.config import PretrainConfig
from tercet.pretraining.scaling import Choice
from tercet.pretraining.scaling_config import shape_of
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.progress import Plain
from tercet.training.run import Run, write_text

BUDGETS, GRID, WIDTHS = ("1min", "5min", "20min"), "2min", (32, 48, 64, 96, 128)


def dialled(data: Path, name: str, budget: str, out: Path) -> dict[str, Any]:
    """`tercet pretrain --budget`: the seconds of the whole process, what was planned and what came."""
    command = [str(Path(sys.executable).with_name("tercet")), "pretrain", "--data", str(data / f"{name}.jsonl"), "--tokenizer", str(data), "--budget", budget, "--out", str(out)]  # fmt: skip
    began = time.monotonic()
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    seconds, run = time.monotonic() - began, Run(out)
    return {
        "budget": budget, "seconds": seconds, "ratio": seconds / parse_budget(budget)[0], "width": run.config["hidden_size"],
        "loss": run.metrics("heldout")[-1]["heldout"], "plan": [line for line in said.splitlines() if "expected" in line],
    }  # fmt: skip


def of_width(data: Path, name: str, width: int, budget: str, out: Path) -> dict[str, Any]:
    """One size of the grid, in as much time."""
    config = PretrainConfig(data=(str(data / f"{name}.jsonl"),), tokenizer=str(data))
    shape = ModelConfig(Tokenizer.load(data).vocab_size, config.context_length, **shape_of(width))
    seconds = parse_budget(budget)[0]
    tokens = tokens_within(seconds * (1 - BESIDES), config.context_length, measure(shape, config))
    values = chosen(config, Choice(width, shape, tokens, 0.0))
    pretrain(dataclasses.replace(config, **values, minutes=seconds / 60), out, progress=Plain())
    return {"width": width, "loss": Run(out).metrics("heldout")[-1]["heldout"]}


def main() -> None:
    """Budgets, grid, table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/dial"))
    parser.add_argument("--data", choices=DATA, default="code")
    parser.add_argument("--budgets", nargs="*", default=list(BUDGETS))
    parser.add_argument("--grid", default=GRID)
    args = parser.parse_args()
    data = args.out / "data"
    prepare(data, args.data)
    dial = [dialled(data, args.data, b, args.out / b) for b in dict.fromkeys((args.grid, *args.budgets))]
    grid = [of_width(data, args.data, w, args.grid, args.out / f"width-{w}") for w in WIDTHS]
    best = min(grid, key=lambda row: float(row["loss"]))
    lines = ["| budget | took, of it | width | bits per byte |", "|---|---|---|---|"]
    lines += [f"| {r['budget']} | {r['ratio']:.3f} | {r['width']} | {r['loss']:.4f} |" for r in dial]
    lines += [f"| {args.grid}, width given | | {r['width']} | {r['loss']:.4f} |" for r in grid]
    above = dial[0]["loss"] / best["loss"] - 1
    lines.append(
        f"\nthe dial's {args.grid} run is {100 * above:+.2f} % above the best of the grid (width {best['width']})"
    )
    write_text(args.out / "dial.json", json.dumps({"dial": dial, "grid": grid, "above": above}, indent=1) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
