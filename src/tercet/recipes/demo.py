"""The main job: every stage of the lecture in a row, from text to an aligned and measured model.

A recipe and no more: each stage is the function that users call on their own data, and leaves an ordinary run.
"""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from tercet.data.readers import BadRows, read_documents
from tercet.data.types import Document
from tercet.evaluation.bits_per_byte import by_source, limit_bytes
from tercet.evaluation.config import EvalConfig, PromptConfig
from tercet.evaluation.evaluate import evaluate
from tercet.evaluation.ngram import ngram_baselines, xz_bits_per_byte
from tercet.evaluation.prompt_study import prompt_study
from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.recipes.claims import claims
from tercet.recipes.demo_data import MIXTURE, write_demo_data
from tercet.recipes.plan import CONTEXT, FAST, ROWS, VOCABULARY, Plan, check_minutes
from tercet.reporting.report import write_report
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.progress import Progress, clock
from tercet.training.records import write_text
from tercet.training.run import Run, new_folder
from tercet.training.run import threads as cpu_threads
from tercet.training.settings import Settings
from tercet.training.stage import stages

SAMPLE_PROMPTS = (
    "In the beginning", "def main(", "Anna has a red ball.", "Q: What colour is the frog?\nA:",
    "Translate English to French:\nsea otter => loutre de mer\ncheese =>",
)  # fmt: skip
MIXED = tuple(f"{name}={share}" for name, share in MIXTURE.items())
BYTES_PER_TOKEN = 2.6  # of the mixture, roughly: decides how much text is written


class Demo:
    """The state of one demo: where it writes, and its clock."""

    def __init__(self, out: Path, plan: Plan, seed: int, progress: Progress) -> None:
        self.out, self.plan, self.seed, self.progress = out, plan, seed, progress
        self.data = out / "data"
        self.heldout_bytes, self.questions = (20_000, 210) if plan.minutes < 6 else (40_000, 350)
        self.common: dict[str, Any] = {"threads": plan.threads, "seed": seed}
        self.trained: dict[str, Any] = {**self.common, "batch_size": ROWS, "precision": plan.precision}

    def path(self, *parts: str) -> str:
        """A file or folder of the demo, as settings name it."""
        return str(self.out.joinpath(*parts))

    def stage(self, name: str, verb: str, config: Settings) -> Run:
        """Run a stage into its folder, and tell the plan how fast the machine really was."""
        self.progress.say(f"\n[{self.plan.clock()}] {name}")
        done = stages()[verb](config, self.out / name, progress=self.progress)
        if done.manifest["verb"] in FAST:
            self.plan.correct(done.metrics("tokens_per_s")[-1]["tokens_per_s"])
        return done

    # -- the stages -----------------------------------------------------------------------------------------------

    def prepare(self) -> Tokenizer:
        """Data and tokenizer."""
        self.progress.say(f"[0:00] data: real text, conversations and the microworld, into {self.data}")
        steps = self.plan.steps("pretrain")
        report = write_demo_data(
            self.data, self.seed, megabytes=max(1.5, steps * ROWS * CONTEXT * BYTES_PER_TOKEN * 1.15 / 1e6)
        )
        for source, sizes in report["text"].items():
            self.progress.say(
                f"  {source}: {sizes['train_bytes'] / 1e6:.2f} MB to train on, {sizes['heldout_bytes'] / 1e6:.2f} MB held out"
            )
        texts = (d.text for d in read_documents([self.path("data", "text", "train")], BadRows()))
        tokenizer = train_tokenizer(texts, VOCABULARY)
        tokenizer.save(self.out / "tokenizer.json")
        return tokenizer

    def pretrain(self) -> Run:
        """Next-token prediction on the mixture."""
        steps = self.plan.steps("pretrain")
        config = PretrainConfig(
            data=(self.path("data", "text", "train"),), heldout=(self.path("data", "text", "heldout"),), tokenizer=self.path("tokenizer.json"),
            mixture=MIXED, heldout_bytes=self.heldout_bytes, sample_prompts=SAMPLE_PROMPTS, steps=steps, eval_every=-(-steps // 2),
            lr=8e-3, muon_lr=0.012, checkpoint_every=max(50, steps // 4), **self.plan.shape(), **self.trained,
        )  # fmt: skip
        return self.stage("base", "pretrain", config)

    def prompt_study(self) -> list[dict[str, Any]]:
        """The lecture's prompts: questions with 0, 1 and 4 examples, and word translation."""
        self.progress.say(f"\n[{self.plan.clock()}] asking the base model with 0, 1 and 4 examples in the prompt")
        forms = [("Q: … A:", PromptConfig(
            model=self.path("base"), questions=(self.path("data", "tasks", "heldout.jsonl"),), examples=(self.path("data", "tasks", "examples.jsonl"),),
            limit=self.questions, **self.common,
        ))]  # fmt: skip
        for language in ("French", "German", "Spanish"):
            words = (self.path("data", "words", f"english-to-{language.lower()}.jsonl"),)
            description = f"Translate English to {language}:\n"
            forms.append(("word => … (the pairs stand in the pretraining text)", PromptConfig(
                model=self.path("base"), questions=words, examples=words, description=description, template="{input} => {output}", separator="\n",
                **self.common,
            )))  # fmt: skip
        # a form with one ability needs no sum over abilities
        found = [(form, config, row) for form, config in forms for row in prompt_study(config)]
        rows = [
            {**row, "form": form} for form, config, row in found if not config.description or row["ability"] != "all"
        ]
        write_text(self.out / "asking.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        for row in rows:
            if row["ability"] == "all" and row["form"] == "Q: … A:":
                self.progress.say(f"  {row['shots']} examples: {row['accuracy']['value']:.3f} right")
        return rows

    def tune(self) -> Run:
        """Instruction tuning."""
        config = SFTConfig(
            model=self.path("base"), data=(self.path("data", "chat", "train.jsonl"),), heldout=(self.path("data", "chat", "heldout.jsonl"),),
            questions=(self.path("data", "tasks", "heldout.jsonl"),), steps=(steps := self.plan.steps("sft")), eval_every=-(-steps // 4),
            lr=2e-3, muon_lr=0.02, **self.trained,
        )  # fmt: skip
        return self.stage("sft", "sft", config)

    def compare(self) -> tuple[Run, Run]:
        """Simulated rankings, and the reward model that learns from them."""
        rank_config = AnnotateConfig(
            model=self.path("sft"), questions=(self.path("data", "tasks", "preference.jsonl"),), **self.common
        )
        ranked = self.stage("rankings", "annotate", rank_config)
        config = RewardConfig(
            model=self.path("sft"), data=(self.path("rankings", "rankings", "train.jsonl"),),
            heldout=(self.path("rankings", "rankings", "heldout.jsonl"),), demonstrations=(self.path("data", "chat", "train.jsonl"),),
            steps=(steps := self.plan.steps("reward")), eval_every=-(-steps // 3), **self.common,
        )  # fmt: skip
        return ranked, self.stage("reward", "reward", config)

    def align(self) -> list[Run]:
        """PPO with the pretraining term, and the same without it."""
        steps = self.plan.steps("ppo")  # both runs take the same number, or they could not be compared
        text: dict[str, Any] = {"pretrain_data": (self.path("data", "text", "train"),), "pretrain_mixture": MIXED}
        shared: dict[str, Any] = {
            "model": self.path("sft"),
            "reward": (self.path("reward"),),
            "prompts": (self.path("data", "tasks", "preference.jsonl"),),
            "scorer": ("rubric",),
            "heldout_text": (self.path("data", "text", "heldout"),),
            "heldout_bytes": self.heldout_bytes,
            "steps": steps,
            "epochs": 2,
            "lr": 5e-4,
            "critic_lr": 1e-3,
            **self.common,
        }
        return [
            self.stage("rlhf", "ppo", PPOConfig(gamma=0.5, **text, **shared)),
            self.stage("rlhf-gamma0", "ppo", PPOConfig(gamma=0.0, **shared)),
        ]

    def measure(self) -> dict[str, Any]:
        """All models side by side."""
        self.progress.say(f"\n[{self.plan.clock()}] scores: base, SFT and RLHF side by side")
        config = EvalConfig(
            models=tuple(self.path(n) for n in ("base", "sft", "rlhf", "rlhf-gamma0")), text=(self.path("data", "text", "heldout"),),
            questions=(self.path("data", "tasks", "heldout.jsonl"),), reward=self.path("reward"), reference=self.path("sft"),
            scorer=("exact_match", "rubric", "rubric:sentence", "rubric:direct"),
            heldout_bytes=self.heldout_bytes, limit=self.questions, **self.common,
        )  # fmt: skip
        return evaluate(config, self.out / "scores.json")


def baselines(
    tokenizer: Tokenizer, train: list[Document], heldout: list[Document], model: dict[str, Any]
) -> dict[str, Any]:
    """Bits per byte of n-gram models of the same tokens, and of xz, beside the model's; per source."""
    import numpy as np

    def encode(group: list[Document]) -> list[np.ndarray[Any, Any]]:
        return [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch([d.text for d in group])]

    groups = by_source(heldout)
    bits = ngram_baselines(encode(train), encode([d for g in groups.values() for d in g]), tokenizer.vocab_size)
    out, at = {}, 0
    for source, group in groups.items():
        size = sum(len(d.text.encode()) for d in group)
        row = {name: float(values[at : at + len(group)].sum()) / size for name, values in bits.items()}
        at += len(group)
        tokens = sum(len(ids) for ids in tokenizer.encode_batch([d.text for d in group]))
        xz = xz_bits_per_byte("\n".join(d.text for d in group).encode())
        out[source] = {"model": model[source]["value"], **row, "xz": xz, "bytes_per_token": size / tokens}
    return {"sources": out}


def run_demo(out: Path, *, minutes: float, seed: int, threads: int, progress: Progress) -> dict[str, Any]:
    """Run the demo into the new folder `out`; returns its summary, which is also in OUT/demo.json.

    Raises ConfigError where `out` is in use, `minutes` is out of range or a data package is missing.
    """
    check_minutes(minutes)
    new_folder(out)
    plan = Plan(minutes, threads)
    with cpu_threads(threads):
        plan.measure()
        progress.say(
            f"this machine: {plan.speed:,.0f} training tokens/s in float32, {threads} threads"
            + (f"; {plan.fast_speed:,.0f} in {plan.precision}" if plan.precision != "float32" else "")
        )
        demo = Demo(out, plan, seed, progress)
        tokenizer = demo.prepare()
        base = demo.pretrain()
        train = list(read_documents([demo.path("data", "text", "train")], BadRows()))
        heldout = limit_bytes(
            list(read_documents([demo.path("data", "text", "heldout")], BadRows())), demo.heldout_bytes
        )
        below = baselines(tokenizer, train, heldout, base.manifest["heldout"])
        write_text(out / "baselines.json", json.dumps(below, indent=1) + "\n")
        rows = demo.prompt_study()
        tuned = demo.tune()
        ranked, judge = demo.compare()
        aligned = demo.align()
        scores = demo.measure()
        shown = claims(below, rows, tuned, judge, aligned, scores)
        page = write_report(
            [r.path for r in (base, tuned, ranked, judge, *aligned)],
            out / "report.html",
            scores=scores,
            asking=rows,
            baselines=below,
        )
    summary = {
        "minutes": minutes, "seconds": round(time.monotonic() - plan.began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024), "seed": seed, "threads": threads,
        "precision": plan.precision, "claims": [c.to_json() for c in shown], "report": str(page),
    }  # fmt: skip
    write_text(out / "demo.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    say_where(progress, out, summary, page)
    return summary


def say_where(progress: Progress, out: Path, summary: dict[str, Any], page: Path) -> None:
    """The last lines: what was shown, where things are, how to talk to the models."""
    progress.say("\nwhat this run shows:")
    for claim in summary["claims"]:
        progress.say(f"  {'yes' if claim['holds'] else 'NO '}  {claim['text']}: {claim['numbers']}")
    progress.say(
        f"\n{clock(summary['seconds'])} minutes, {summary['peak_memory_mb']:,} MB of memory at most\n"
        f"report:          {page}\n"
        f"runs:            {', '.join(str(out / n) for n in ('base', 'sft', 'reward', 'rlhf', 'rlhf-gamma0'))}\n"
        f"talk:            tercet chat {out / 'rlhf'}\n"
        f"side by side:    tercet chat {out / 'rlhf'} --compare {out / 'sft'}\n"
        f"the base model:  tercet chat {out / 'base'} --base"
    )
