"""One process of the comparison: `python one.py TOOL TASK FOLDER OUT` does a few steps and writes OUT.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from tercet_side import Stamps
from workload import read_shape


def main(tool: str, task: str, folder: Path, out: Path) -> None:
    """Do the steps and write what was measured; the clock of the parent began before this process."""
    stamps = Stamps()
    if tool == "tercet":
        import tercet_side as side
    else:
        import trl_side as side  # type: ignore[no-redef]
    side.run(task, folder, read_shape(folder), out, stamps)
    Path(f"{out}.json").write_text(json.dumps(vars(stamps)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
