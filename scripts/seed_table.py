"""The score table of several demos, for the README: `python scripts/seed_table.py demo-0 demo-1 demo-2`.

Every cell is the mean over the demos with Student's 95 % interval over seeds.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from tercet.evaluation.metrics import over_seeds

MODELS = ("base", "sft", "rlhf", "rlhf-gamma0")


def cell(values: list[float]) -> str:
    """Mean and interval."""
    if len(values) < 2:
        return f"{values[0]:.3f}"
    e = over_seeds(values)
    return f"{e.value:.3f} [{e.low:.3f}, {e.high:.3f}]"


def table(folders: list[Path]) -> str:
    """The table as Markdown."""
    scores = [json.loads((f / "scores.json").read_text(encoding="utf-8"))["models"] for f in folders]
    found: list[dict[str, Any]] = [{Path(p).name: row for p, row in s.items()} for s in scores]
    rows = [("bits per byte, mean of sources", lambda m: m["bits_per_byte_mean"])]
    rows += [
        (f"bits per byte, {s}", lambda m, s=s: m["bits_per_byte"][s]["value"])
        for s in found[0]["base"]["bits_per_byte"]
    ]
    rows += [("exact match (greedy)", lambda m: m["exact_match"]["value"])]
    rows += [(f"– {a}", lambda m, a=a: m["abilities"][a]["value"]) for a in found[0]["base"]["abilities"]]
    for name in ("rubric", "well_formed", "finished", "reward", "kl", "win_rate", "rubric_difference"):
        label = {
            "kl": "KL to SFT (nats per answer)",
            "win_rate": "win rate against SFT",
            "rubric_difference": "rubric − SFT's (paired)",
        }
        rows.append((label.get(name, name.replace("_", " ")), lambda m, name=name: m[name]["value"]))
    lines = ["| | base | SFT | RLHF | RLHF, γ = 0 |", "|---|---|---|---|---|"]
    lines += [
        f"| {name} | " + " | ".join(cell([get(f[m]) for f in found]) for m in MODELS) + " |" for name, get in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(p) for p in sys.argv[1:]]))
