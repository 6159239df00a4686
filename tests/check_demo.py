"""Checks a finished demo: `python tests/check_demo.py demo-e2e`. Exits 1 where a claim does not hold.

A short run on a slow machine reads too little text to beat the trigram model or to answer by completion: those two claims
are asked of runs of 10 minutes and more; of shorter ones, that the model beats the unigram and the bigram model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LONG = 10  # minutes
ONLY_LONG = ("pretraining beats", "the base model answers")


def main(folder: Path) -> int:
    """Say of every check whether it holds; returns how many do not."""
    summary = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    sources = json.loads((folder / "baselines.json").read_text(encoding="utf-8"))["sources"].values()
    page = (folder / "report.html").read_text(encoding="utf-8")
    long = summary["minutes"] >= LONG
    checks = {c["text"]: c["holds"] for c in summary["claims"] if long or not c["text"].startswith(ONLY_LONG)}
    for order in ("unigram", "bigram"):
        checks[f"bits per byte below the {order} model's"] = sum(s["model"] for s in sources) < sum(
            s[order] for s in sources
        )
    outside = [word for word in ('src="http', 'href="http', "@import", "url(http") if word in page]
    checks["the report loads nothing from outside"] = not outside
    checks[f"{summary['peak_memory_mb']} MB are at most 3 GB"] = summary["peak_memory_mb"] <= 3000
    # half as much again: other work on the machine may slow a run down after its plan was made
    checks[f"{summary['seconds']:.0f} s fit into {summary['minutes']:g} minutes"] = (
        summary["seconds"] <= 90 * summary["minutes"]
    )
    for text, holds in checks.items():
        print("ok  " if holds else "FAIL", text)
    failed = sum(not holds for holds in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
