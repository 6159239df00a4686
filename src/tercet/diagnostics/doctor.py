"""What is wrong with a run, in words: checks of its records here and by stage in doctor_stages.py, fresh measurements of
its model in doctor_probe.py.

Every check gives a `Finding`: what was found, what is normal, and what to do. A number is judged by where it lies:
inside the band of `look` it is ok, outside that of `wrong` it is wrong, between the two it deserves a look.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from statistics import fmean, median

from safetensors import safe_open

from tercet.diagnostics import probe as doctor_probe
from tercet.diagnostics.findings import INF, Finding, Records, judged, late
from tercet.errors import TercetError
from tercet.training.load import trained_by
from tercet.training.optim import schedule
from tercet.training.run import Run, in_use
from tercet.training.stage import load_object, stages

Check = Callable[[Records], list[Finding]]


def examine(path: str | Path, probe: bool = True) -> list[Finding]:
    """Everything that can be said of the run at `path`, the worst first. Nothing in the run is changed.

    With `probe` the newest checkpoint is loaded and measured afresh, where it and what it was made from are there. Raises
    ConfigError where `path` is no run, CheckpointError where its run.json or config.json is damaged.
    """
    run = Run(path)
    records, stage = Records(run), stages().get(trained_by(run))
    checks: tuple[Check, ...] = (check_status,)
    if stage is not None and stage.checks:  # a stage that trains
        checks += (check_records, check_checkpoints, check_numbers, check_schedule, check_gradients)
        checks += load_object(stage.checks)
    found = [finding for check in checks for finding in check(records)]
    if probe and stage is not None and stage.probe and run.checkpoints():
        try:
            for finding in doctor_probe.measure(run, load_object(stage.probe)):
                found.append(finding)  # one by one: what was measured before an error stays
        except (TercetError, OSError) as error:
            advice = "what the run was made from is not where it was, or is damaged: start from the same folder, or use --no-probe"
            found.append(Finding("fresh measurements", math.nan, str(error), "can be taken", "look", advice))
    return sorted(found, key=lambda f: ("wrong", "look", "ok").index(f.verdict))


def check_status(r: Records) -> list[Finding]:
    """Whether the run is done, at work, or has stopped."""
    status, steps = r.run.manifest["status"], int(r.config.get("steps", 0))
    share, found = (r.done / steps if steps else 1.0), f"{status}, step {r.done} of {steps}" if steps else status
    go_on = f"go on with `tercet resume {r.run.path}`"
    if status == "running" and not in_use(r.run.path):
        return [
            Finding("status", share, f"{found}, but no process works on it", "finished", "look", f"killed: {go_on}")
        ]
    advice = {"failed": f"{r.run.manifest.get('error', '')}; mend that, then {go_on}", "interrupted": go_on}.get(
        status, ""
    )
    verdict = {"failed": "wrong", "interrupted": "look"}.get(status, "ok")
    return [Finding("status", share, found, "finished", verdict, advice)]


def check_records(r: Records) -> list[Finding]:
    """Whether what a stage writes beside its checkpoints is there and can be read."""
    finished, out = r.run.manifest["status"] == "finished", []
    advice = "the run's files were changed or lost after it was made: bring them back, or train again"
    if r.damaged or (finished and not r.rows):
        found = f"{len(r.rows)} whole lines, {r.damaged} damaged"
        out.append(Finding("metrics.jsonl", r.damaged, found, "every step, none damaged", "wrong", advice))
    if finished and not (r.run.path / "model.json").is_file():
        out.append(Finding("model.json", math.nan, "missing", "there", "wrong", advice))
    return out


def check_checkpoints(r: Records) -> list[Finding]:
    """Whether every checkpoint is whole, and the last one there."""
    folders, broken = r.run.checkpoints(), []
    for folder in folders:
        try:
            for name in json.loads((folder / "state.json").read_text(encoding="utf-8"))["files"]:
                with safe_open(folder / f"{name}.safetensors", "pt") as file:  # checks the header and the length
                    file.keys()
        except Exception as error:  # safetensors raises its own
            broken.append((folder, f"{folder.name}: {type(error).__name__}: {error}"))
    finished = r.run.manifest["status"] == "finished"
    wanted = f"step-{r.config.get('steps', 0):08d}"
    missing = finished and "steps" in r.config and wanted not in [f.name for f in folders]
    fatal = missing or any(folder == folders[-1] for folder, _ in broken)
    found = "; ".join(text for _, text in broken) or f"{len(folders)} whole" + (
        f", but {wanted} is missing" if missing else ""
    )
    verdict = "wrong" if fatal else "look" if broken or not folders else "ok"
    advice = (
        "remove what is damaged and resume from the one before, or train again" if folders else "wait for the first one"
    )
    return [Finding("checkpoints", len(folders), found, "all whole", verdict, "" if verdict == "ok" else advice)]


def check_numbers(r: Records) -> list[Finding]:
    """Whether every number of the record is finite."""
    odd = [(n, row["step"]) for row in r.rows for n, v in row.items() if not math.isfinite(v)]
    found = ", ".join(f"{name} at step {step}" for name, step in odd[:3]) or "0"
    advice = "training has diverged: start again from before that step with a lower --lr or --clip-norm"
    return [judged("numbers that are not finite", len(odd), "0", advice, wrong=(0, 0), found=found)]


def check_schedule(r: Records) -> list[Finding]:
    """Whether the learning rate has risen and come down."""
    c = r.config
    if not r.done or "warmup" not in c:
        return []
    now, finished = schedule(r.done - 1, c["steps"], c["warmup"], c["cooldown"]), r.done >= c["steps"]
    advice = "the rate was high to the end, and the last steps' noise stays in the weights: set --cooldown above 0"
    if c["warmup"] >= c["steps"]:
        now, advice = 1.0, "the warm-up is as long as the run: lower --warmup"
    normal = "near 0 at the end" if finished else "anything before the end"
    return [judged("learning rate / its peak", now, normal, advice, look=(0.0, 0.5 if finished else 1.0))]


def check_gradients(r: Records) -> list[Finding]:
    """Whether nearly every gradient is cut, and whether one exploded."""
    norms, clip = r.series("grad_norm"), r.config.get("clip_norm", 0.0)
    if len(norms) < 10:
        return []
    cut = fmean(norm > 10 * clip for norm in norms) if clip else 0.0
    advice = "clip_norm decides the size of every step: lower --lr, or raise --clip-norm to the usual norm"
    usual, nothing = (
        median(norms),
        "no gradient reaches the weights, so nothing is learnt: advantages or weights are all 0",
    )
    worst = max(late(norms)) / max(usual, 1e-12)
    return [
        judged("gradient norm", usual, "above 0", nothing, look=(1e-6, INF), wrong=(1e-9, INF)),
        judged("gradients above 10 × clip_norm", cut, "below 0.9", advice, look=(0.0, 0.9)),
        judged("largest late gradient / median", worst, "below 30", "late jumps of the gradient: lower --lr", look=(0.0, 30.0)),
    ]  # fmt: skip
