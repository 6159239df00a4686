"""Check a finished demo: `python tests/check_demo.py demo-e2e`. Exits 1 where a claim does not hold.

A short run on a slow machine is trained on too little text to beat the trigram model or to answer few-shot prompts.
These two claims are checked for runs of 10 minutes and more only; every run must beat the unigram and the bigram model.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

LONG = 10  # minutes
ONLY_LONG = ("The base model predicts text better", "The base model answers more than")


def main(folder: Path) -> int:
    """Print every check and whether it holds; return the number of checks that fail."""
    summary = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    sources = json.loads((folder / "baselines.json").read_text(encoding="utf-8"))["sources"].values()
    page = (folder / "report.html").read_text(encoding="utf-8")
    claims = {c["text"]: c["holds"] for c in summary["claims"]}
    only_long = {text for text in claims if text.startswith(ONLY_LONG)}
    if len(only_long) != len(ONLY_LONG):
        raise SystemExit(f"{folder / 'demo.json'}: found the claims {[*claims]}; wanted {ONLY_LONG} among them")
    checks = {text: holds for text, holds in claims.items() if summary["minutes"] >= LONG or text not in only_long}
    bits = {name: sum(source[name] for source in sources) for name in ("model", "unigram", "bigram")}
    for name in ("unigram", "bigram"):
        checks[f"The model has fewer bits per byte than the {name} model."] = bits["model"] < bits[name]
    outside = [word for word in ('src="http', 'href="http', "@import", "url(http") if word in page]
    checks["The report loads nothing from outside."] = not outside
    checks[f"{summary['peak_memory_mb']} MB are at most 3 GB."] = summary["peak_memory_mb"] <= 3000
    # half as much again, since other work on the machine may slow a run down after its plan was made
    seconds, minutes = summary["seconds"], summary["minutes"]
    checks[f"{seconds:.0f} s fit into {minutes:g} minutes."] = seconds <= 90 * minutes
    for text, holds in checks.items():
        print("ok  " if holds else "FAIL", text)
    failed = sum(not holds for holds in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
