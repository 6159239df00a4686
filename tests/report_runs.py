"""Made-up runs and scores for the tests of the report: folders as the stages leave them, without any training."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.reporting.report import write_report
from tercet.training.run import Run
from tercet.training.stage import stages

HOSTILE = '<script>alert(1)</script> </svg><img src=x onerror="alert(2)"> {{ 7*7 }} &lt; \u202e\x00\x1b[31m $x_$ \ud800'
SOURCES = ("bible", "code", "_<b>&micro$world$")
ABILITIES = ("arithmetic", "capitals", "colours", "possession", "unknown")
MODEL = {
    "vocab_size": 2048,
    "context_length": 256,
    "hidden_size": 192,
    "num_layers": 5,
    "num_heads": 3,
    "num_kv_heads": 3,
    "head_dim": 64,
    "intermediate_size": 512,
}
MANIFEST = {
    "format": 1,
    "status": "finished",
    "git": {"commit": "cb4644dd9f94", "diff": ""},
    "versions": {"python": "3.11.7", "tercet": "0.1.0", "torch": "2.13.0"},
    "device": "cpu",
    "threads": 2,
    "created": "2026-11-23T20:09:50+00:00",
    "resumed": [],
    "seconds": 200.4,
    "peak_memory_mb": 1522,
}
PARAMETERS = 2048 * 192 + 192 + 5 * (4 * 192 * 192 + 2 * 64 + 3 * 192 * 512 + 2 * 192)


def estimate(value: float, half: float = 0.03, n: int = 300) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


Rows = list[dict[str, Any]]


def make_run(
    path: Path,
    config: Any,
    metrics: Rows,
    *,
    parents: dict[str, Path] | None = None,
    samples: Rows | None = None,
    **fields: Any,
) -> Path:
    """Write a run directory as training.run.Run does, without any training; the weights are the name of the folder."""
    verb = next(verb for verb, stage in stages().items() if stage.settings is type(config))
    weights = path / "checkpoints" / "step-00000100" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text(path.name)
    described = {
        r: {
            "path": f"../{p.name}",
            "checkpoint": "step-00000100",
            "sha256": hashlib.sha256(p.name.encode()).hexdigest(),
        }
        for r, p in (parents or {}).items()
    }
    manifest = {**MANIFEST, "verb": verb, "argv": ["tercet", verb], "parents": described, "seed": config.seed, **fields}
    (path / "run.json").write_text(json.dumps(manifest))
    (path / "config.json").write_text(json.dumps(config.to_json()))
    (path / "model.json").write_text(json.dumps(MODEL))
    write_lines(path / "metrics.jsonl", metrics)
    write_lines(path / "samples.jsonl", samples or [])
    return path


def bits(value: float) -> dict[str, float]:
    return {**{f"heldout/{s}": value + i / 5 for i, s in enumerate(SOURCES)}, "heldout": value + 0.2}


def pretrain_run(root: Path, steps: int = 300) -> Path:
    rng = random.Random(0)
    config = PretrainConfig(
        data=("text/a b.jsonl", "text/c.jsonl"),
        tokenizer="tokenizer.json",
        mixture=("bible=0.3", "code=0.7"),
        steps=steps,
        sample_prompts=("In the beginning", HOSTILE),
    )
    metrics: list[dict[str, Any]] = [{"step": 0, **bits(3.5)}]
    for step in range(1, steps + 1):
        metrics.append(
            {
                "step": step,
                "loss": 3 + 4.6 * math.exp(-step / 60) + rng.gauss(0, 0.15),
                "grad_norm": 0.5,
                "lr_scale": 1.0,
                "tokens_per_s": 6000.0,
            }
        )
        if step % 100 == 0:
            metrics.append({"step": step, **bits(1.6 + 1.9 * math.exp(-step / 90))})
    samples = [
        {"step": s, "prompt": p, "text": f"at {s}: {HOSTILE}"}
        for s in (0, 100, 200, 300)
        for p in config.sample_prompts
    ]
    heldout = {s: estimate(1.66 + i / 5, 0.04, 43) for i, s in enumerate(SOURCES)}
    return make_run(root / "base", config, metrics, samples=samples, heldout=heldout)


def sft_run(root: Path, base: Path) -> Path:
    metrics: list[dict[str, Any]] = [{"step": 0, "heldout": 5.6, "exact_match": 0.0, "finished": 0.01}]
    metrics += [{"step": s, "loss": 1 + 4 * math.exp(-s / 20), "grad_norm": 1.0} for s in range(1, 101)]
    metrics += [{"step": 100, "heldout": 0.9, "exact_match": 0.613, "finished": 0.99}]
    samples = [
        {"step": s, "prompt": f"What is 2 + {i}? {HOSTILE}", "text": f"{HOSTILE} {s}", "gold": str(2 + i)}
        for s in (0, 100)
        for i in range(8)
    ]
    config = SFTConfig(model=str(base), data=("chat.jsonl",), questions=("tasks.jsonl",), steps=100)
    return make_run(root / "sft", config, metrics, parents={"model": base}, samples=samples, heldout_loss=0.9)


def annotate_run(root: Path, sft: Path) -> Path:
    found = {"labeler": "simulated", "prompts": 600, "answers": 4, "pairs": 3600, "ties": 1200}
    run = make_run(
        root / "annotate",
        AnnotateConfig(model=str(sft), questions=("tasks.jsonl",)),
        [],
        parents={"model": sft},
        rankings=found,
    )
    prompt = [{"role": "user", "content": f"Capital of France? {HOSTILE}"}]
    rows = [
        {
            "prompt": prompt,
            "responses": ["Lyon", "Paris is the capital.", HOSTILE, "I think Paris."],
            "ranks": [3, 1, 4, 2],
            "labeler": "simulated",
        }
    ]
    write_lines(
        run / "rankings" / "train.jsonl",
        [{"prompt": "All the same?", "responses": ["a", "a"], "ranks": [1, 1], "labeler": "simulated"}] * 3 + rows,
    )
    return run


def reward_run(root: Path, sft: Path, rank: Path) -> Path:
    metrics: list[dict[str, Any]] = [{"step": 0, "heldout_accuracy": 0.5, "longer_wins": 0.57}]
    metrics += [{"step": s, "loss": 0.3 + 0.39 * math.exp(-s / 30)} for s in range(1, 101)]
    metrics += [{"step": s, "heldout_accuracy": 0.6 + s / 500, "longer_wins": 0.57} for s in (50, 100)]
    config = RewardConfig(model=str(sft), data=(str(rank / "rankings" / "train.jsonl"),))
    return make_run(
        root / "reward",
        config,
        metrics,
        parents={"model": sft},
        accuracy=estimate(0.804),
        longer_wins=estimate(0.57),
        demonstrations_mean=0.0,
    )


PPO_METRICS = {
    "finished": 0.98,
    "length": 9.5,
    "explained_variance": 0.4,
    "policy_loss": -0.01,
    "entropy": 0.6,
    "clip_fraction": 0.1,
    "value_loss": 0.2,
    "grad_norm": 1.0,
}


def ppo_run(root: Path, sft: Path, reward: Path, gamma: float, name: str) -> Path:
    rng = random.Random(name)
    config = PPOConfig(
        model=str(sft),
        reward=str(reward),
        prompts=("tasks.jsonl",),
        pretrain_data=("text",) if gamma else (),
        gamma=gamma,
        seed=3,
    )
    metrics: list[dict[str, Any]] = [{"step": 0, **bits(1.9)}]
    for step in range(1, 61):
        row = {"reward": step / 60 + rng.gauss(0, 0.1), "kl": step / 15, "gold": 0.6 + step / 400}
        metrics.append(
            {"step": step, **row, **PPO_METRICS} | ({"pretrain_loss": 3.0, "ptx_gradient_ratio": 0.7} if gamma else {})
        )
    return make_run(
        root / name,
        config,
        [*metrics, {"step": 60, **bits(1.95 if gamma else 2.3)}],
        parents={"model": sft, "reward": reward},
    )


def make_scores(runs: list[Path], sft: Path) -> dict[str, Any]:
    rng = random.Random(1)
    models = {}
    for number, run in enumerate(runs):
        examples = []
        for i in range(40):
            right = rng.random() < number / 4
            answer = f"It is {i}." if right else HOSTILE
            prompt = [{"role": "user", "content": f"Question {i}?"}]
            examples.append(
                {
                    "prompt": prompt,
                    "answer": answer,
                    "gold": str(i),
                    "ability": ABILITIES[i % 5],
                    "held_out": "template" if i % 3 else "",
                    "rubric": 1.0 if right else 0.3,
                    "right": right,
                }
            )
        parts = ("right", "sentence", "direct", "finished")
        models[str(run)] = {  # as before scorers had names
            "verb": Run(run).manifest["verb"],
            "parameters": PARAMETERS,
            "bits_per_byte": {s: estimate(1.7 + i / 5) for i, s in enumerate(SOURCES)},
            "bits_per_byte_mean": 1.9,
            "exact_match": estimate(0.2 + number / 5),
            "abilities": {a: estimate(0.1 + number / 5) for a in ABILITIES},
            "held_out": {k: estimate(0.3) for k in ("combination", "template")},
            "rubric": estimate(0.5),
            "examples": examples,
            "rubric_parts": {part: estimate(0.5) for part in parts},
            "well_formed": estimate(0.5),
            "finished": estimate(0.9),
            "reward": {"value": 0.2, "low": None, "high": None, "n": 1},
            "kl": estimate(3.14),
            "win_rate": estimate(0.5 + number / 20),
            "rubric_difference": estimate(0.01),
        }
    return {"config": {"reference": str(sft)}, "skipped_rows": 0, "tasks": 700, "models": models}


def prompt_rows() -> Rows:
    prompt = {"prompt": f"Q: 2 + 2?\nA: 4\n\nQ: {HOSTILE}\nA:", "answer": HOSTILE}
    return [
        {"shots": s, "ability": ability, "accuracy": estimate(0.1 + s / 20), "form": form, **prompt}
        for form in ("question and answer", "completion")
        for s in (0, 1, 4)
        for ability in ("all", *ABILITIES)
    ]


def baselines() -> dict[str, Any]:
    return {
        "sources": {
            s: {"model": 1.7, "unigram": 2.9, "bigram": 2.4, "trigram": 2.2, "xz": 2.0, "bytes_per_token": 3.21}
            for s in SOURCES
        }
    }


def tree(root: Path) -> dict[str, Path]:
    base = pretrain_run(root)
    sft = sft_run(root, base)
    rank = annotate_run(root, sft)
    reward = reward_run(root, sft, rank)
    runs = {"base": base, "sft": sft, "annotate": rank, "reward": reward}
    plain, ptx = ppo_run(root, sft, reward, 0.0, "rlhf-plain"), ppo_run(root, sft, reward, 2.0, "rlhf")
    return {**runs, "plain": plain, "ptx": ptx}


def full_report(root: Path) -> Path:
    runs = tree(root / "runs")
    models = [runs[k] for k in ("base", "sft", "ptx", "plain")]
    return write_report(
        [runs["plain"], runs["ptx"]],
        root / "pages" / "report.html",
        make_scores(models, runs["sft"]),
        prompt_rows(),
        baselines(),
    )
