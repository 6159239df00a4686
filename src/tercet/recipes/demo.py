"""The demo: run all stages in a row, from text to an aligned and measured model.

Each stage is the same function that users call on their own data, and each makes an ordinary run.
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
from tercet.microworld.words import LANGUAGES
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.recipes.claims import demo_claims
from tercet.recipes.demo_data import MIXTURE, write_demo_data
from tercet.recipes.plan import CONTEXT, FAST, ROWS, VOCABULARY, DemoPlan, check_minutes
from tercet.reporting.blocks import plural
from tercet.reporting.report import write_report
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.progress import Progress, clock
from tercet.training.records import write_text
from tercet.training.run import Run, new_folder
from tercet.training.run import threads as cpu_threads
from tercet.training.settings import Settings
from tercet.training.stage import stages

SAMPLE_PROMPTS = (
    "In the beginning",
    "def main(",
    "Anna has a red ball.",
    "Q: What colour is the frog?\nA:",
    "Translate English to French:\nsea otter => loutre de mer\ncheese =>",
)
MIXED = tuple(f"{name}={share}" for name, share in MIXTURE.items())
BYTES_PER_TOKEN = 2.6  # of the mixture, roughly; decides how much text is written
QUESTIONS, WORDS = "Q: … A:", "word => … (the word pairs are in the pretraining text)"  # the demo's prompt templates


class Demo:
    """The state of one demo: where it writes, and its clock."""

    def __init__(self, out: Path, plan: DemoPlan, seed: int, progress: Progress) -> None:
        self.out, self.plan, self.seed, self.progress = out, plan, seed, progress
        self.heldout_bytes, self.questions = (20_000, 210) if plan.minutes < 6 else (40_000, 350)
        self.common: dict[str, Any] = {"threads": plan.threads, "seed": seed}
        self.trained: dict[str, Any] = {**self.common, "batch_size": ROWS, "precision": plan.precision}

    def path(self, *parts: str) -> str:
        """Return a file or folder of the demo as settings name it."""
        return str(self.out.joinpath(*parts))

    def data(self, *parts: str) -> tuple[str, ...]:
        """Return a file or folder of the demo's data as a list setting takes it."""
        return (self.path("data", *parts),)

    def stage(self, name: str, verb: str, config: Settings) -> Run:
        """Run a stage in its folder, and correct the plan by the speed that the machine had."""
        self.progress.say(f"\n[{self.plan.clock()}] {name}")
        run = stages()[verb](config, self.out / name, progress=self.progress)
        if run.manifest["verb"] in FAST:
            self.plan.correct(run.metrics("tokens_per_s")[-1]["tokens_per_s"])
        return run

    # -- the stages -----------------------------------------------------------------------------------------------

    def prepare(self) -> Tokenizer:
        """Write the data, and train the tokenizer."""
        folder = self.out / "data"
        self.progress.say(f"[0:00] data: text, conversations and the microworld, into {folder}")
        megabytes = self.plan.steps("pretrain") * ROWS * CONTEXT * BYTES_PER_TOKEN * 1.15 / 1e6
        report = write_demo_data(folder, self.seed, megabytes=max(1.5, megabytes))
        for source, sizes in report["text"].items():
            train, heldout = sizes["train_bytes"] / 1e6, sizes["heldout_bytes"] / 1e6
            self.progress.say(f"  {source}: {train:.2f} MB to train on, {heldout:.2f} MB held out")
        texts = (d.text for d in read_documents(self.data("text", "train"), BadRows()))
        tokenizer = train_tokenizer(texts, VOCABULARY)
        tokenizer.save(self.out / "tokenizer.json")
        return tokenizer

    def pretrain(self) -> Run:
        """Train the base model on the mixture."""
        steps = self.plan.steps("pretrain")
        config = PretrainConfig(
            data=self.data("text", "train"),
            heldout=self.data("text", "heldout"),
            tokenizer=self.path("tokenizer.json"),
            mixture=MIXED,
            heldout_bytes=self.heldout_bytes,
            sample_prompts=SAMPLE_PROMPTS,
            steps=steps,
            eval_every=-(-steps // 2),
            lr=8e-3,
            muon_lr=0.012,
            checkpoint_every=max(50, steps // 4),
            **self.plan.shape(),
            **self.trained,
        )
        return self.stage("base", "pretrain", config)

    def prompt_study(self) -> list[dict[str, Any]]:
        """Evaluate the base model with prompts of 0, 1 and 4 examples: on questions, and on word translation."""
        self.progress.say(f"\n[{self.plan.clock()}] prompting: the base model with 0, 1 and 4 examples in the prompt")
        shared: dict[str, Any] = {"model": self.path("base"), **self.common}
        questions = PromptConfig(
            questions=self.data("tasks", "heldout.jsonl"),
            examples=self.data("tasks", "examples.jsonl"),
            limit=self.questions,
            **shared,
        )
        rows = [{**row, "form": QUESTIONS} for row in prompt_study(questions)]
        for row in rows:
            if row["ability"] == "all":
                self.progress.say(f"  {plural(row['shots'], 'example')}: accuracy {row['accuracy']['value']:.3f}")
        for language in LANGUAGES:
            words = self.data("words", f"english-to-{language.lower()}.jsonl")
            translation = PromptConfig(
                questions=words,
                examples=words,
                description=f"Translate English to {language}:\n",
                template="{input} => {output}",
                separator="\n",
                **shared,
            )
            # each language is one ability, so its row "all" would be the same again
            rows += [{**row, "form": WORDS} for row in prompt_study(translation) if row["ability"] != "all"]
        write_text(self.out / "prompting.json", json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
        return rows

    def tune(self) -> Run:
        """Tune the base model on conversations."""
        steps = self.plan.steps("sft")
        config = SFTConfig(
            model=self.path("base"),
            data=self.data("chat", "train.jsonl"),
            heldout=self.data("chat", "heldout.jsonl"),
            questions=self.data("tasks", "heldout.jsonl"),
            steps=steps,
            eval_every=-(-steps // 4),
            lr=2e-3,
            muon_lr=0.02,
            **self.trained,
        )
        return self.stage("sft", "sft", config)

    def compare(self) -> tuple[Run, Run]:
        """Make simulated rankings, and train the reward model on them."""
        questions = self.data("tasks", "preference.jsonl")
        annotating = AnnotateConfig(model=self.path("sft"), questions=questions, **self.common)
        ranked = self.stage("rankings", "annotate", annotating)
        steps = self.plan.steps("reward")
        config = RewardConfig(
            model=self.path("sft"),
            data=(self.path("rankings", "rankings", "train.jsonl"),),
            heldout=(self.path("rankings", "rankings", "heldout.jsonl"),),
            demonstrations=self.data("chat", "train.jsonl"),
            steps=steps,
            eval_every=-(-steps // 3),
            **self.common,
        )
        return ranked, self.stage("reward", "reward", config)

    def align(self) -> list[Run]:
        """Train with PPO, with the pretraining term and without it."""
        text: dict[str, Any] = {"pretrain_data": self.data("text", "train"), "pretrain_mixture": MIXED}
        shared: dict[str, Any] = {
            "model": self.path("sft"),
            "reward": (self.path("reward"),),
            "prompts": self.data("tasks", "preference.jsonl"),
            "scorer": ("rubric",),
            "heldout_text": self.data("text", "heldout"),
            "heldout_bytes": self.heldout_bytes,
            "steps": self.plan.steps("ppo"),  # the same for both runs, so that they can be compared
            "epochs": 2,
            "lr": 5e-4,
            "critic_lr": 1e-3,
            **self.common,
        }
        return [
            self.stage("rlhf", "ppo", PPOConfig(gamma=0.5, **text, **shared)),
            self.stage("rlhf-gamma0", "ppo", PPOConfig(gamma=0.0, **shared)),
        ]

    def evaluate(self) -> dict[str, Any]:
        """Score all models on the same text and questions."""
        self.progress.say(f"\n[{self.plan.clock()}] scores: base, SFT and RLHF side by side")
        config = EvalConfig(
            models=tuple(self.path(n) for n in ("base", "sft", "rlhf", "rlhf-gamma0")),
            text=self.data("text", "heldout"),
            questions=self.data("tasks", "heldout.jsonl"),
            reward=self.path("reward"),
            reference=self.path("sft"),
            scorer=("exact_match", "rubric", "rubric:sentence", "rubric:direct"),
            heldout_bytes=self.heldout_bytes,
            limit=self.questions,
            **self.common,
        )
        return evaluate(config, self.out / "scores.json")


def baselines(
    tokenizer: Tokenizer, train: list[Document], heldout: list[Document], model: dict[str, Any]
) -> dict[str, Any]:
    """Return bits per byte of the model, of n-gram models of the same tokens and of xz, for each source."""
    import numpy as np

    def encode(group: list[Document]) -> list[np.ndarray[Any, Any]]:
        return [np.array(ids, dtype=np.int64) for ids in tokenizer.encode_batch([d.text for d in group])]

    groups = by_source(heldout)
    bits = ngram_baselines(encode(train), encode([d for g in groups.values() for d in g]), tokenizer.vocab_size)
    out, first = {}, 0
    for source, group in groups.items():
        size = sum(len(d.text.encode()) for d in group)
        row = {name: float(values[first : first + len(group)].sum()) / size for name, values in bits.items()}
        first += len(group)
        tokens = sum(len(ids) for ids in tokenizer.encode_batch([d.text for d in group]))
        xz = xz_bits_per_byte("\n".join(d.text for d in group).encode())
        out[source] = {"model": model[source]["value"], **row, "xz": xz, "bytes_per_token": size / tokens}
    return {"sources": out}


def run_demo(out: Path, *, minutes: float, seed: int, threads: int, progress: Progress) -> dict[str, Any]:
    """Run the demo in the new folder `out`; return its summary, which is also in OUT/demo.json.

    Raises ConfigError where `out` is in use, `minutes` is out of range or a data package is missing.
    """
    check_minutes(minutes)
    new_folder(out)
    plan = DemoPlan(minutes, threads)
    with cpu_threads(threads):
        plan.measure()
        faster = f", {plan.fast_speed:,.0f} in {plan.precision}" if plan.precision != "float32" else ""
        progress.say(f"this machine, {threads} threads: {plan.speed:,.0f} training tokens/s in float32{faster}")
        demo = Demo(out, plan, seed, progress)
        tokenizer = demo.prepare()
        base = demo.pretrain()
        train = list(read_documents(demo.data("text", "train"), BadRows()))
        heldout = limit_bytes(list(read_documents(demo.data("text", "heldout"), BadRows())), demo.heldout_bytes)
        ngrams = baselines(tokenizer, train, heldout, base.manifest["heldout"])
        write_text(out / "baselines.json", json.dumps(ngrams, indent=1) + "\n")
        rows = demo.prompt_study()
        tuned = demo.tune()
        ranked, reward = demo.compare()
        aligned = demo.align()
        scores = demo.evaluate()
        claims = demo_claims(ngrams, rows, tuned, reward, aligned, scores)
        paths = [run.path for run in (base, tuned, ranked, reward, *aligned)]
        page = write_report(paths, out / "report.html", scores, rows, ngrams)
    summary = {
        "minutes": minutes,
        "seconds": round(time.monotonic() - plan.began, 1),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "seed": seed,
        "threads": threads,
        "precision": plan.precision,
        "claims": [claim.to_json() for claim in claims],
        "report": str(page),
    }
    write_text(out / "demo.json", json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    say_results(progress, out, summary)
    return summary


def say_results(progress: Progress, out: Path, summary: dict[str, Any]) -> None:
    """Print the claims with their numbers, where the files are, and the commands to chat with the models."""
    progress.say("\nwhat this run shows:")
    for claim in summary["claims"]:
        progress.say(f"  {'yes' if claim['holds'] else 'NO '}  {claim['text']}\n       {claim['numbers']}")
    progress.say(
        f"\n{clock(summary['seconds'])} minutes, {summary['peak_memory_mb']:,} MB of memory at most\n"
        f"report:          {summary['report']}\n"
        f"runs:            {', '.join(str(out / n) for n in ('base', 'sft', 'reward', 'rlhf', 'rlhf-gamma0'))}\n"
        f"chat:            tercet chat {out / 'rlhf'}\n"
        f"side by side:    tercet chat {out / 'rlhf'} --compare {out / 'sft'}\n"
        f"the base model:  tercet chat {out / 'base'} --base"
    )
