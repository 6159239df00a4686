"""The known curves of preference learning: over-optimisation, the KL frontier, the alignment tax, RL beside SFT and DPO.

    python proofs/curves.py [--only a,b,c,f] [--first 0] [--seeds 4] [--jobs 2] --out FOLDER

Trains everything from nothing, a seed per process, and writes curves.json (every point and interval) and the figures.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is loaded, here and in the processes of the seeds

from curves_measure import CURVES, measure
from curves_summary import summarise


def curves(only: str, seeds: Sequence[int], jobs: int) -> dict[str, Any]:
    """The curves named in `only`, such as "abcf": {curve: {"summary": …, "seeds": [points of each seed]}}."""
    spawn = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    with ProcessPoolExecutor(min(jobs, len(seeds)), spawn) as pool:
        each = list(pool.map(partial(measure, only=only), seeds))
    found: dict[str, Any] = {"processor_seconds": [s["processor_seconds"] for s in each]}
    for name in only:
        rows = [s[name] for s in each]
        found[name] = {"summary": summarise(name, rows), "seeds": rows}
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CURVES), help="which curves, as letters with commas between")
    parser.add_argument("--seeds", type=int, default=4, help="worlds, each with its own text, gold reward and labels")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="seeds at a time, a process each")
    parser.add_argument("--out", type=Path, required=True, help="folder for curves.json and the figures")
    options = parser.parse_args()
    only = options.only.replace(",", "")
    if not only or set(only) - set(CURVES) or options.seeds < 2:
        parser.error(
            f"--only {options.only} --seeds {options.seeds}: wanted some of {','.join(CURVES)}, and 2 seeds or more"
        )
    began = time.perf_counter()
    found = curves(only, range(options.first, options.first + options.seeds), options.jobs)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"seconds": time.perf_counter() - began, "curves": found}, indent=1)
    (options.out / "curves.json").write_text(text + "\n")
    from curves_figures import draw

    for name in only:
        print(draw(name, found[name]["summary"], found[name]["seeds"], options.out))


if __name__ == "__main__":
    main()
