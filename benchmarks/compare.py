"""`make bench`: one step of SFT, reward, DPO, GRPO and PPO in tercet and in TRL, interleaved, on this machine.

Each tool does each task in a process of its own, tercet and TRL in turn, for several rounds, so that what else the
machine does falls on both. A process does a few steps: from its start to the end of the first is the start-up (Python,
imports, data, model, first step); the median of the others is the time of a step; its peak memory is the kernel's
count. "By CPU" is the ratio of the processor's seconds, on which other work on the machine has less influence than on
the wall clock's. A ratio is taken within a round; shown are the median over rounds and, in brackets, the smallest and
the largest.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from workload import Shape, make

TASKS = ("sft", "sft-varied", "reward", "dpo", "dpo-precomputed", "grpo", "ppo")
GOALS = {"sft": 1.8, "sft-varied": 1.8, "reward": 1.3, "dpo": 2.0, "grpo": 1.7, "ppo": 1.7}  # times TRL's speed
MEMORY_GOAL, START_GOAL = 0.6, 1 / 3  # of TRL's
SAME_LOSS = 1e-4  # relative: float32, two implementations


def measure(tool: str, task: str, folder: Path, threads: int) -> dict[str, Any]:
    """Run one process; return seconds to the first step and of the others, peak MB, losses. Raises RuntimeError."""
    out = folder / "out" / f"{tool}-{task}"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(exist_ok=True)
    quiet = {
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
    command = [sys.executable, str(Path(__file__).with_name("one.py")), tool, task, str(folder), str(out)]
    log = out.with_suffix(".log")
    with log.open("w") as output:
        began = time.time()
        environment = {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-12:])
        raise RuntimeError(f"{tool} {task} failed (log: {log}):\n{tail}")
    found = json.loads(Path(f"{out}.json").read_text(encoding="utf-8"))
    times, cpu = ([b - a for a, b in itertools.pairwise(found[clock])] for clock in ("times", "cpu"))
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB on Linux
    return {
        "step": statistics.median(times), "cpu": statistics.median(cpu), "start": found["times"][0] - began,
        "memory": usage.ru_maxrss * unit / 1e6, "losses": found["losses"],
    }  # fmt: skip


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


def summary(task: str, rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Medians of both tools, ratios within rounds, and whether the losses agree."""
    out: dict[str, Any] = {"task": task, "rounds": rounds}
    for tool in rounds[0]:
        out[tool] = {what: spread([r[tool][what] for r in rounds]) for what in ("step", "cpu", "start", "memory")}
    if "trl" not in rounds[0]:
        return out
    out["speed"] = spread([r["trl"]["step"] / r["tercet"]["step"] for r in rounds])
    out["cpu"] = spread([r["trl"]["cpu"] / r["tercet"]["cpu"] for r in rounds])
    out["start"] = spread([r["tercet"]["start"] / r["trl"]["start"] for r in rounds])
    out["memory"] = spread([r["tercet"]["memory"] / r["trl"]["memory"] for r in rounds])
    if task not in ("grpo", "ppo"):  # those sample, each with its own dice
        ours, theirs = (rounds[0][tool]["losses"] for tool in ("tercet", "trl"))
        out["loss_difference"] = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
        out["same_losses"] = out["loss_difference"] <= SAME_LOSS
    return out


def line(found: dict[str, Any]) -> str:
    """A row of the table."""

    def ms(tool: str) -> str:
        return f"{1000 * found[tool]['step']['median']:8,.0f}" if tool in found else f"{'-':>8}"

    def ratio(what: str) -> str:
        r = found.get(what)
        return f"{r['median']:.2f} [{r['low']:.2f}, {r['high']:.2f}]" if r else "-"

    def both(what: str, form: str) -> str:
        return " / ".join(format(found[t][what]["median"], form) for t in ("tercet", "trl") if t in found)

    cpu = f"{found['cpu']['median']:.2f}" if "cpu" in found else "-"
    same = f"{found['loss_difference']:.0e}" if "loss_difference" in found else "-"
    return (
        f"{found['task']:<16}{ms('tercet')}{ms('trl')}  {ratio('speed'):<19} {cpu:<8}"
        f"{both('start', '.1f'):<12}{ratio('start'):<19} {both('memory', ',.0f'):<14}{ratio('memory'):<19} {same}"
    )


def verdicts(results: list[dict[str, Any]]) -> list[str]:
    """Each goal and whether it was reached."""
    out = []
    for found in results:
        if "speed" not in found:
            continue
        checks = [("start-up", found["start"], START_GOAL, False), ("memory", found["memory"], MEMORY_GOAL, False)]
        if found["task"] in GOALS:
            checks.insert(0, ("speed", found["speed"], GOALS[found["task"]], True))
        for name, ratio, goal, more in checks:
            reached = ratio["median"] >= goal if more else ratio["median"] <= goal
            sign = "at least" if more else "at most"
            verdict = f"goal {sign} {goal:.2f}: {'reached' if reached else 'MISSED'}"
            out.append(f"{found['task']:<16} {name:<9} {ratio['median']:.2f} x TRL's, {verdict}")
    return out


def about() -> dict[str, Any]:
    """The machine and the versions."""
    packages = [p for p in ("torch", "trl", "transformers", "tokenizers") if importlib.util.find_spec(p)]
    return {
        "machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count(),
        "python": platform.python_version(),
        "load": os.getloadavg()[0], **{p: version(p) for p in packages},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(text.partition(":")[2].strip() for text in lines if text.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def main() -> None:
    """Make the workload, go round, print the table, write bench.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder for data, runs and bench.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=Shape.steps, help="of each process, the first one included")
    parser.add_argument("--threads", type=int, default=Shape.threads)
    parser.add_argument("--questions", nargs="+", choices=TASKS, default=TASKS)
    options = parser.parse_args()
    folder, shape = options.out.resolve(), Shape(steps=options.steps, threads=options.threads)
    if not (with_trl := importlib.util.find_spec("trl") is not None):
        print("trl is not installed (pip install '.[proof]'): tercet is measured alone")
    shutil.rmtree(folder, ignore_errors=True)
    make(folder, shape, with_trl)
    tools, results, machine = ("tercet", "trl")[: 1 + with_trl], [], about()
    print("  ".join(f"{k} {v}" for k, v in machine.items()))
    print(f"{'':<16}{'ms per step':^16}  {'':<19} {'':<8}{'seconds to the 1st step':<31} {'peak MB':<33} {'loss'}")
    print(
        f"{'':<16}{'tercet':>8}{'TRL':>8}  {'TRL / tercet':<19} {'by CPU':<8}"
        f"{'both':<12}{'tercet / TRL':<19} {'both':<14}{'tercet / TRL':<19} differs by"
    )
    for task in options.tasks:
        rounds = []
        for number in range(options.rounds):
            order = tools if number % 2 == 0 else tools[::-1]
            rounds.append({tool: measure(tool, task, folder, shape.threads) for tool in order})
        results.append(summary(task, rounds))
        print(line(results[-1]), flush=True)
    print("\n".join(["", *verdicts(results)]))
    report = {"machine": machine, "shape": vars(shape), "results": results}
    (folder / "bench.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    print(f"\nwritten: {folder / 'bench.json'}")
    if any(found.get("same_losses") is False for found in results):
        sys.exit("the losses of the two tools differ: this is not the same work")


if __name__ == "__main__":
    main()
