"""In-context learning in small models, from text in which only the context helps.

OUT/seed-0/text/{train,heldout}/    {pairs,copy}-{18,48,98}.jsonl.gz
OUT/seed-0/tasks.jsonl              held-out questions, for `tercet prompt`
OUT/seed-0/SIZE/                    a run of `tercet pretrain`
OUT/parts/seed-0-SIZE.json          what was measured of that run
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tercet.data.formats import prompts as tasks
from tercet.data.readers import write_jsonl
from tercet.microworld.mappings import FAMILIES, WORDS, World
from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer
from tercet.pretraining.stage import PRETRAIN, PretrainConfig
from tercet.studies.folder import StudyFolder
from tercet.studies.in_context_learning.measure import (
    accuracy_by_shots,
    head_scores,
    hits,
    prompting_and_tuning,
    without_each_head,
)
from tercet.studies.in_context_learning.study import CONTEXT, LENGTHS, SHOTS, SIZES, InContextLearningConfig, Size
from tercet.studies.in_context_learning.summary import summarise
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.checkpoints import load_tensors
from tercet.training.learner import Learner
from tercet.training.optim import OptimizerConfig
from tercet.training.progress import Progress
from tercet.training.run import Run
from tercet.training.step_time import step_time

HELDOUT_ROWS = 40
VOCABULARY = 512  # at most: bytes, special tokens and words are fewer


def in_context_learning(config: InContextLearningConfig, folder: StudyFolder) -> dict[str, Any]:
    """Train every size with every seed and measure it; return the number of steps and a summary of every size."""
    steps: int = folder.part("steps", lambda: config.steps or _affordable_steps(config))
    tokens = config.batch_size * CONTEXT
    folder.say(f"{len(SIZES)} sizes, {config.seeds} seeds, {steps:,} steps of {tokens:,} tokens each")
    measured: dict[str, list[dict[str, Any]]] = {size.name: [] for size in SIZES}
    for seed in range(config.seed, config.seed + config.seeds):
        text = folder.path / f"seed-{seed}"
        world, tokenizer = _prepare(text, seed, steps * config.batch_size)
        for size in reversed(SIZES):  # the largest first: it takes longest
            run = partial(_trained, config, text, size, seed, steps, folder.progress)
            make = partial(_measured, config, run, tokenizer, world, largest=size is SIZES[-1])
            measured[size.name].append(folder.part(f"seed-{seed}-{slug(size)}", make))
    best = folder.path / f"seed-{config.seed}"
    folder.say(
        f"prompt a model yourself: tercet prompt {best / slug(SIZES[-1])} --questions {best / 'tasks.jsonl'} "
        "--shots 0 --template ' {input} {output}' --max-new-tokens 1"
    )
    return {"steps": steps, "words": len(WORDS), "sizes": summarise(measured)}


def slug(size: Size) -> str:
    """Return the name of a size's folder."""
    return f"layers-{size.layers}-width-{size.width}"


def _affordable_steps(config: InContextLearningConfig) -> int:
    """The steps of each training that fit into the minutes on this machine."""
    seconds = sum(_step_seconds(config, size) for size in SIZES)
    return max(config.checkpoints, int(config.minutes * 60 / config.seeds / seconds))


def _step_seconds(config: InContextLearningConfig, size: Size) -> float:
    """Seconds of a training step on this machine."""
    learner = Learner(Transformer(ModelConfig(300, **size.shape())), OptimizerConfig(config.lr, config.muon_lr))
    row, update = step_time(learner, config.batch_size, repeats=8)
    return config.batch_size * row + update


def _prepare(folder: Path, seed: int, rows: int) -> tuple[World, Tokenizer]:
    """Text, tokenizer and questions of a seed, as ordinary files. No row is ever trained on twice."""
    world = World(seed)
    if (folder / "tokenizer.json").is_file():  # it is written last
        return world, Tokenizer.load(folder)
    for side, most in (("train", rows), ("heldout", HELDOUT_ROWS)):
        for tokens, family in itertools.product(LENGTHS, FAMILIES):
            count = math.ceil(LENGTHS[tokens] / len(FAMILIES) * most * CONTEXT / (tokens + 2))
            documents = world.documents(family, count, tokens, heldout=side == "heldout")
            lines = ({**asdict(d), "source": f"{family}-{tokens}"} for d in documents)
            write_jsonl(folder / "text" / side / f"{family}-{tokens}.jsonl.gz", lines)
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
        data=(str(folder / "text" / "train"),),
        heldout=(str(folder / "text" / "heldout"),),
        tokenizer=str(folder / "tokenizer.json"),
        steps=steps,
        batch_size=config.batch_size,
        lr=config.lr,
        muon_lr=config.muon_lr,
        cooldown=0.3,
        heldout_bytes=16_000,
        checkpoint_every=steps // config.checkpoints,
        keep=steps,
        threads=config.threads,
        seed=seed,
        **size.shape(),
    )
    path = folder / slug(size)
    if not (path / "run.json").is_file():
        return PRETRAIN(settings, path, progress=progress)
    run = Run(path)
    return run if run.manifest["status"] == "finished" else PRETRAIN(settings, path, resume=True, progress=progress)


def _measured(
    config: InContextLearningConfig, train: Callable[[], Run], tokenizer: Tokenizer, world: World, *, largest: bool
) -> dict[str, Any]:
    """Train, and return everything that is measured. Tuning is compared with prompting only for the largest size."""
    run = train()
    model = Transformer(run.model_config(), seed=run.config["seed"])
    prompts = [p for p in world.prompts(config.questions, SHOTS[-1], seed=1) if p.in_context]
    steps = []
    for checkpoint in (None, *run.checkpoints()):
        if checkpoint is not None:
            model.load_state_dict(load_tensors(checkpoint / "model.safetensors"))
        right = hits(model, tokenizer, prompts)
        row = {
            "step": 0 if checkpoint is None else int(checkpoint.name.removeprefix("step-")),
            "accuracy_in_context": sum(right) / len(right),
        }
        steps.append({**row, **head_scores(model, tokenizer, world.seed)})
    losses: Sequence[float] = [row["loss"] for row in run.metrics("loss")]
    return {
        "parameters": model.config.parameters(),
        "without_embeddings": model.config.parameters(embeddings=False),
        "heldout": run.metrics("heldout")[-1],
        "loss": sum(losses[-20:]) / len(losses[-20:]),
        "shots": {
            side: accuracy_by_shots(model, tokenizer, world, config.questions, heldout=side == "heldout")
            for side in ("heldout", "train")
        },
        "steps": steps,
        "without_head": without_each_head(model, tokenizer, prompts),
        "tuning": prompting_and_tuning(model, tokenizer, world, config) if largest else [],
    }
