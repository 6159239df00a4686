"""Print the score table of several demos, for the README: `python scripts/seed_table.py demo-0 demo-1 demo-2`.

Every cell is the mean over the demos with Student's 95 % interval over seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tercet.evaluation.scoring.score_files import current
from tercet.statistics.intervals import over_seeds

MODELS = ("base", "sft", "rlhf", "rlhf-gamma0")


def cell(values: list[float]) -> str:
    """Return the mean and its interval as text; without an interval for a single value."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    e = over_seeds(values)
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def table(folders: list[Path]) -> str:
    """Return the table as Markdown, from the scores.json in each folder."""
    scores = [json.loads((f / "scores.json").read_text(encoding="utf-8"))["models"] for f in folders]
    demos: list[dict[str, Any]] = [{Path(p).name: current(row) for p, row in s.items()} for s in scores]
    base = demos[0]["base"]
    rows = [("bits per byte, mean of sources", lambda m: m["bits_per_byte_mean"])]
    rows += [(f"bits per byte, {s}", lambda m, s=s: m["bits_per_byte"][s]["value"]) for s in base["bits_per_byte"]]
    exact = base["scores"]["exact_match"]
    rows += [("exact match (greedy)", lambda m: m["scores"]["exact_match"]["greedy"]["value"])]
    rows += [(f"– {a}", lambda m, a=a: m["scores"]["exact_match"]["abilities"][a]["value"]) for a in exact["abilities"]]
    rows += [
        ("rubric", lambda m: m["scores"]["rubric"]["sampled"]["value"]),
        ("well formed", lambda m: m["scores"]["rubric:sentence"]["sampled"]["value"]),
        ("finished", lambda m: m["finished"]["value"]),
        ("reward", lambda m: m["reward"]["value"]),
        ("KL to SFT (nats per answer)", lambda m: m["kl"]["value"]),
        ("win rate against SFT", lambda m: m["against"]["rubric"]["win_rate"]["value"]),
        ("rubric − SFT's (paired)", lambda m: m["against"]["rubric"]["difference"]["value"]),
    ]
    lines = ["| | base | SFT | RLHF | RLHF, γ = 0 |", "|---|---|---|---|---|"]
    for name, get in rows:
        lines.append(f"| {name} | " + " | ".join(cell([get(demo[m]) for demo in demos]) for m in MODELS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(p) for p in sys.argv[1:]]))
