"""Checks a finished demo: `python tests/check_demo.py demo-e2e`. Exits 1 where a claim does not hold."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main(folder: Path) -> int:
    """Say of every check whether it holds; returns how many do not."""
    summary = json.loads((folder / "demo.json").read_text(encoding="utf-8"))
    page = (folder / "report.html").read_text(encoding="utf-8")
    # a report's prose may name an address; a page that loads one would have it in src or href
    outside = [word for word in ('src="http', 'href="http', "@import", "url(http") if word in page]
    checks = {c["text"]: c["holds"] for c in summary["claims"]}
    checks["the report loads nothing from outside"] = not outside
    checks[f"{summary['seconds']:.0f} s of wall time are at most {summary['minutes']:g} minutes"] = (
        summary["seconds"] <= 60 * summary["minutes"]
    )
    checks[f"{summary['peak_memory_mb']} MB are at most 3 GB"] = summary["peak_memory_mb"] <= 3000
    for text, holds in checks.items():
        print("ok  " if holds else "FAIL", text)
    failed = sum(not holds for holds in checks.values())
    print(f"{len(checks) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(Path(sys.argv[1])) else 0)
