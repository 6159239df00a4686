"""Checks of a run, in words: its records here, by stage in rl.py and supervised.py, and its model in probe.py.

Every check gives a `Finding`: the number it looked at, what is normal, and what to do. A number inside the band `look`
is ok. Outside of it the number deserves a look, and outside the band `wrong` it is wrong.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from safetensors import safe_open

from tercet.diagnostics.findings import INF, Finding, Records, judged, late
from tercet.diagnostics.probe import probe_run
from tercet.errors import TercetError
from tercet.training.optim import schedule
from tercet.training.run import Run, in_use
from tercet.training.stage import load_object, stages, trained_by

Check = Callable[[Records], list[Finding]]


def examine(path: str | Path, probe: bool = True) -> list[Finding]:
    """Return the findings of all checks of the run at `path`, the worst first. Nothing in the run is changed.

    With `probe` the newest checkpoint is loaded and measured, if it and the run's inputs are still there. Raises
    ConfigError if `path` is no run, CheckpointError if its run.json or config.json is damaged.
    """
    run = Run(path)
    records, stage = Records(run), stages().get(trained_by(run))
    checks: tuple[Check, ...] = (check_status,)
    if stage is not None and stage.checks:  # a stage that trains
        checks += (check_records, check_checkpoints, check_numbers, check_schedule, check_gradients)
        checks += load_object(stage.checks)
    findings = [finding for check in checks for finding in check(records)]
    if probe and stage is not None and stage.probe and run.checkpoints():
        try:
            for finding in probe_run(run, load_object(stage.probe)):
                findings.append(finding)  # one by one, so that the findings before an error are kept
        except (TercetError, OSError) as error:
            advice = (
                "A file that the run was made from is missing or damaged. Run the command in the folder where training "
                "started, or leave out this part with --no-probe"
            )
            name = "fresh measurements of the model"
            findings.append(Finding(name, math.nan, f"not possible: {error}", "possible", "look", advice))
    return sorted(findings, key=lambda f: ("wrong", "look", "ok").index(f.verdict))


def check_status(r: Records) -> list[Finding]:
    """Check whether the run has finished, is still working, or has stopped."""
    status, steps = r.run.manifest["status"], int(r.config.get("steps", 0))
    share, progress = (r.done / steps if steps else 1.0), f"{status}, step {r.done} of {steps}" if steps else status
    resume = f"with `tercet resume {r.run.path}`"
    verdict, advice = {
        "failed": ("wrong", f"It ended with {r.run.manifest.get('error', '')}. Mend that, then continue {resume}"),
        "interrupted": ("look", f"Continue {resume}"),
    }.get(status, ("ok", ""))
    if status == "running" and not in_use(r.run.path):
        progress += ", but no process is working on it"
        verdict, advice = "look", f"The process was killed. Continue {resume}"
    return [Finding("status", share, progress, "finished", verdict, advice)]


def check_records(r: Records) -> list[Finding]:
    """Check that the files beside the checkpoints are there and can be read."""
    finished, out = r.run.manifest["status"] == "finished", []
    advice = "The file was changed or lost after training. Restore it from a copy, or train again"
    if r.damaged or (finished and not r.rows):
        lines = f"{len(r.rows)} whole lines, {r.damaged} damaged"
        normal = "a line for every step, none damaged"
        out.append(Finding("metrics.jsonl", r.damaged, lines, normal, "wrong", advice))
    if finished and not (r.run.path / "model.json").is_file():
        out.append(Finding("model.json", math.nan, "missing", "present", "wrong", advice))
    return out


def check_checkpoints(r: Records) -> list[Finding]:
    """Check that every checkpoint is whole and that the last one is there."""
    folders, broken = r.run.checkpoints(), []
    for folder in folders:
        try:
            for name in json.loads((folder / "state.json").read_text(encoding="utf-8"))["files"]:
                with safe_open(folder / f"{name}.safetensors", "pt") as file:  # checks the header and the length
                    file.keys()
        except Exception as error:  # safetensors raises its own
            broken.append((folder, f"{folder.name} is damaged: {type(error).__name__}: {error}"))
    last = f"step-{r.config.get('steps', 0):08d}"
    finished = r.run.manifest["status"] == "finished"
    missing = finished and "steps" in r.config and last not in [f.name for f in folders]
    fatal = missing or any(folder == folders[-1] for folder, _ in broken)
    state = "; ".join(text for _, text in broken) or f"{len(folders)} whole"
    if missing and not broken:
        state += f", but {last} is missing"
    verdict = "wrong" if fatal else "look" if broken or not folders else "ok"
    advice = "Delete the damaged checkpoint and resume from the one before it, or train again"
    if not folders:
        advice = "The run has not saved a checkpoint yet. Wait for the first one"
    normal = "all whole, and the last one present"
    return [Finding("checkpoints", len(folders), state, normal, verdict, "" if verdict == "ok" else advice)]


def check_numbers(r: Records) -> list[Finding]:
    """Check that every recorded number is finite."""
    odd = [(n, row["step"]) for row in r.rows for n, v in row.items() if not math.isfinite(v)]
    places = ", ".join(f"{name} at step {step}" for name, step in odd[:3]) or "none"
    advice = "Training has diverged. Start a new run with a lower --lr or a lower --clip-norm"
    return [judged("numbers that are not finite", len(odd), "none", advice, wrong=(0, 0), found=places)]


def check_schedule(r: Records) -> list[Finding]:
    """Check that the learning rate has risen, and come down again at the end."""
    c = r.config
    if not r.done or "warmup" not in c:
        return []
    now, finished = schedule(r.done - 1, c["steps"], c["warmup"], c["cooldown"]), r.done >= c["steps"]
    advice = (
        "The learning rate stayed high to the end, so the noise of the last steps remains in the weights. "
        "Set --cooldown above 0"
    )
    if c["warmup"] >= c["steps"]:
        now, advice = 1.0, "The warm-up takes the whole run. Lower --warmup"
    normal = "near 0 at the end" if finished else "anything before the end"
    return [judged("learning rate / its peak", now, normal, advice, look=(0.0, 0.5 if finished else 1.0))]


def check_gradients(r: Records) -> list[Finding]:
    """Check whether gradients reach the weights, are nearly always clipped, or explode."""
    norms, clip = r.series("grad_norm"), r.config.get("clip_norm", 0.0)
    if len(norms) < 10:
        return []
    usual = median(norms)
    clipped = fmean(norm > 10 * clip for norm in norms) if clip else 0.0
    largest = max(late(norms)) / max(usual, 1e-12)
    nothing = "No gradient reaches the weights, so nothing is learned. All advantages or loss weights may be 0"
    strong = "Clipping decides the size of every step. Lower --lr, or raise --clip-norm to the usual gradient norm"
    jumps = "The gradient jumps late in training. Lower --lr"
    return [
        judged("gradient norm (median)", usual, "above 0", nothing, look=(1e-6, INF), wrong=(1e-9, INF)),
        judged("share of gradients above 10 × --clip-norm", clipped, "below 0.9", strong, look=(0.0, 0.9)),
        judged("largest late gradient norm / median", largest, "below 30", jumps, look=(0.0, 30.0)),
    ]
