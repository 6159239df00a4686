"""In-context learning, shown: it emerges in small models, from text in which nothing but the context helps.

OUT/plan.json                       settings and the number of steps
OUT/seed-0/text/{train,heldout}/    {pairs,copy}-{18,48,98}.jsonl.gz
OUT/seed-0/tasks.jsonl              held-out questions, for `tercet prompt`
OUT/seed-0/SIZE/                    a run of `tercet pretrain`; measured.json in it is what was measured of it
OUT/icl.json, icl.md, icl-*.png      everything over the seeds, with intervals; tables; figures

The same command goes on where it was stopped.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from tercet.data.formats import prompts as tasks
from tercet.data.readers import write_jsonl
from tercet.errors import CheckpointError, ConfigError
from tercet.microworld.mappings import FAMILIES, WORDS, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.stage import PRETRAIN, PretrainConfig
from tercet.studies.in_context_learning.config import CONTEXT, LENGTHS, SHOTS, SIZES, InContextLearningConfig, Size
from tercet.studies.in_context_learning.figures import draw
from tercet.studies.in_context_learning.measure import by_shots, heads, hits, tuning_against_asking, without_each_head
from tercet.studies.in_context_learning.summary import claims, summarise, tables
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.checkpoints import load_tensors
from tercet.training.learner import Learner
from tercet.training.losses import next_token
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import Batch
from tercet.training.progress import Progress, clock
from tercet.training.records import write_text
from tercet.training.run import Run, new_folder, threads

HELDOUT_ROWS = 40
VOCABULARY = 512  # at most: bytes, marks and words are fewer


def run_in_context_learning(config: InContextLearningConfig, out: Path, progress: Progress) -> dict[str, Any]:
    """Train every size with every seed, measure, summarise and draw; returns what is in OUT/icl.json.

    Raises ConfigError where `out` holds something else, or was begun with other settings.
    """
    began = time.monotonic()
    with threads(config.threads):
        steps = _plan(config, out)
        progress.say(
            f"{len(SIZES)} sizes, {config.seeds} seeds, {steps:,} steps of {config.batch_size * CONTEXT:,} tokens each"
        )
        found: dict[str, list[dict[str, Any]]] = {size.name: [] for size in SIZES}
        for seed in range(config.seed, config.seed + config.seeds):
            folder = out / f"seed-{seed}"
            world, tokenizer = _prepare(folder, seed, steps * config.batch_size)
            for size in reversed(SIZES):  # what takes longest, and could fail, first
                progress.say(f"\n[{clock(time.monotonic() - began)}] seed {seed}, {size.name}")
                run = _trained(config, folder, size, seed, steps, progress)
                found[size.name].append(_measured(config, run, tokenizer, world, last=size is SIZES[-1]))
    summary: dict[str, Any] = {
        "config": config.to_json(),
        "steps": steps,
        "words": len(WORDS),
        "sizes": summarise(found),
    }
    summary["claims"] = [c.to_json() for c in claims(summary["sizes"])]
    write_text(out / "icl.json", json.dumps(summary, indent=1) + "\n")
    write_text(out / "icl.md", tables(summary))
    figures = draw(summary, out)
    progress.say("\nwhat this shows:")
    for claim in summary["claims"]:
        progress.say(f"  {'yes' if claim['holds'] else 'NO '}  {claim['text']}: {claim['numbers']}")
    best = out / f"seed-{config.seed}" / slug(SIZES[-1])
    progress.say(
        f"\n{clock(time.monotonic() - began)} minutes; numbers: {out / 'icl.json'}; figures: {', '.join(map(str, figures))}\n"
        f"ask it: tercet prompt {best} --questions {best.parent / 'tasks.jsonl'} --shots 0 --template ' {{input}} {{output}}' --max-new-tokens 1"
    )
    return summary


def slug(size: Size) -> str:
    """The folder of a size's run."""
    return f"layers-{size.layers}-width-{size.width}"


def _plan(config: InContextLearningConfig, out: Path) -> int:
    """The number of steps: that of the plan that is there, else as many as fit into the minutes."""
    file = out / "plan.json"
    if file.is_file():
        try:
            plan = json.loads(file.read_text(encoding="utf-8"))
            begun, steps = plan["config"], int(plan["steps"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{file}: damaged: {error}; choose another --out") from error
        if begun != json.loads(json.dumps(config.to_json())):
            raise ConfigError(f"{out} was begun with other settings: {file}; give those, or another --out")
        return steps
    new_folder(out)
    steps = config.steps or max(
        config.checkpoints,
        int(config.minutes * 60 / config.seeds / sum(map(_step_seconds, [config] * len(SIZES), SIZES))),
    )
    write_text(file, json.dumps({"config": config.to_json(), "steps": steps}, indent=1) + "\n")
    return steps


def _step_seconds(config: InContextLearningConfig, size: Size) -> float:
    """Seconds of a training step on this machine: the median of a few."""
    learner = Learner(Transformer(ModelConfig(300, **size.shape())), OptimizerConfig(config.lr, config.muon_lr))
    tokens = torch.arange(config.batch_size * CONTEXT).reshape(config.batch_size, CONTEXT) % 300
    batch = Batch(tokens, tokens, torch.ones(tokens.shape), torch.zeros(tokens.shape, dtype=torch.int32))
    times = []
    for _ in range(9):
        start = time.monotonic()
        learner.forward_backward([batch], next_token)
        learner.optim_step(1.0)
        times.append(time.monotonic() - start)
    return sorted(times)[len(times) // 2]


def _prepare(folder: Path, seed: int, rows: int) -> tuple[World, Tokenizer]:
    """Text, tokenizer and questions of a seed, as ordinary files. No row is ever trained on twice."""
    world = World(seed)
    if (folder / "tokenizer.json").is_file():  # it is written last
        return world, Tokenizer.load(folder)
    for side, most in (("train", rows), ("heldout", HELDOUT_ROWS)):
        for tokens, family in itertools.product(LENGTHS, FAMILIES):
            count = math.ceil(LENGTHS[tokens] / len(FAMILIES) * most * CONTEXT / (tokens + 2))
            made = world.documents(family, count, tokens, heldout=side == "heldout")
            rows_of = ({**asdict(d), "source": f"{family}-{tokens}"} for d in made)
            write_jsonl(folder / "text" / side / f"{family}-{tokens}.jsonl.gz", rows_of)
    questions = [task for shots in SHOTS for task in world.tasks(64, shots)]
    write_jsonl(folder / "tasks.jsonl", (tasks.to_row(t) for t in questions))
    tokenizer = train_tokenizer((f" {word}" for word in WORDS), VOCABULARY)
    tokenizer.save(folder / "tokenizer.json")
    return world, tokenizer


def _trained(
    config: InContextLearningConfig, folder: Path, size: Size, seed: int, steps: int, progress: Progress
) -> Run:
    """The run of a size and a seed: an ordinary pretraining that keeps all its checkpoints."""
    settings = PretrainConfig(
        data=(str(folder / "text" / "train"),), heldout=(str(folder / "text" / "heldout"),), tokenizer=str(folder / "tokenizer.json"),
        steps=steps, batch_size=config.batch_size, lr=config.lr, muon_lr=config.muon_lr, cooldown=0.3, heldout_bytes=16_000,
        checkpoint_every=steps // config.checkpoints, keep=steps, threads=config.threads, seed=seed, **size.shape(),
    )  # fmt: skip
    path = folder / slug(size)
    if not (path / "run.json").is_file():
        return PRETRAIN(settings, path, progress=progress)
    run = Run(path)
    return run if run.manifest["status"] == "finished" else PRETRAIN(settings, path, resume=True, progress=progress)


def _measured(
    config: InContextLearningConfig, run: Run, tokenizer: Tokenizer, world: World, *, last: bool
) -> dict[str, Any]:
    """What `measured.json` of the run says; made where it is not there yet."""
    file = run.path / "measured.json"
    if file.is_file():
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    model = Transformer(run.model_config(), seed=run.config["seed"])
    prompts = world.prompts(config.questions, SHOTS[-1], seed=1)
    prompts = [p for p in prompts if p.in_context]
    over_steps = []
    for checkpoint in (None, *run.checkpoints()):
        if checkpoint is not None:
            model.load_state_dict(load_tensors(checkpoint / "model.safetensors"))
        right = hits(model, tokenizer, prompts)
        over_steps.append({
            "step": 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-")),
            "accuracy_shown": sum(right) / len(right), **heads(model, tokenizer, world.seed),
        })  # fmt: skip
    losses: Sequence[float] = [row["loss"] for row in run.metrics("loss")]
    measured = {
        "parameters": model.config.parameters(), "without_embeddings": model.config.parameters(embeddings=False),
        "heldout": run.metrics("heldout")[-1], "loss": sum(losses[-20:]) / len(losses[-20:]),
        "shots": {side: by_shots(model, tokenizer, world, config.questions, heldout=side == "heldout") for side in ("heldout", "train")},
        "steps": over_steps, "without_head": without_each_head(model, tokenizer, prompts), "tuning": tuning_against_asking(model, tokenizer, world, config) if last else [],
    }  # fmt: skip
    write_text(file, json.dumps(measured, indent=1) + "\n")
    return measured
