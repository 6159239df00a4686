"""`make bench`: items per second of evaluation, in tercet and in lm-eval with its Hugging Face backend, in turns.

Both have the same weights (tercet's run and its export), the same items and the same threads; tokenization counts.
lm-eval gets the batch size of BATCHES with which it was faster in a round that is not counted. A ratio is taken within
a round, "by CPU" that of the processor's seconds, on which other work on the machine has less influence; shown are the
median over rounds and, in brackets, the smallest and the largest. That both say the same is checked.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from workload import Shape

GOAL = 3.0  # times lm-eval's items per second, over all tasks
BATCHES = (8, 32)
SAME = 1e-3  # nats of an item
NEW_TOKENS = 24


def make_model(folder: Path, shape: Shape) -> list[str]:
    """A run at its initial weights and its export; returns texts that were not trained on."""
    from tercet import pretrain
    from tercet.data.documents import python_docs
    from tercet.interop.huggingface import export_model
    from tercet.pretraining.stage import PretrainConfig
    from tercet.tokenizer.bpe import train_tokenizer

    texts = [asdict(d) for d, _ in zip(python_docs(), range(400))]
    (folder / "text.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts), encoding="utf-8")
    train_tokenizer((t["text"] for t in texts), shape.vocab_size).save(folder / "tokenizer.json")
    config = PretrainConfig(
        data=(str(folder / "text.jsonl"),), tokenizer=str(folder / "tokenizer.json"), heldout_bytes=1, steps=1, lr=0.0,
        muon_lr=0.0, batch_size=2, context_length=shape.context, hidden_size=shape.hidden, num_layers=shape.layers,
        num_heads=shape.heads, num_kv_heads=shape.heads, head_dim=shape.head_dim, intermediate_size=shape.feed_forward,
        threads=shape.threads,
    )  # fmt: skip
    export_model(pretrain(config, folder / "run"), folder / "hf")
    return [d.text for d, _ in zip(python_docs(), range(600))][400:]


def make_tasks(texts: list[str], items: int) -> dict[str, tuple[str, int, list[tuple[Any, ...]]]]:
    """Task → (kind of request, items, requests). Questions are pieces of text, choices are words of it."""
    rng = random.Random(0)
    words = [w for t in texts for w in t.split()]

    def phrase(count: int) -> str:
        at = rng.randrange(len(words) - count)
        return " ".join(words[at : at + count])

    def choices(context: str) -> list[tuple[str, str]]:
        return [(context, " " + phrase(rng.randint(2, 5))) for _ in range(4)]

    shots = "".join(f"Q: {phrase(8)}\nA: {phrase(3)}\n\n" for _ in range(5))
    asked = [f"Q: {phrase(rng.randint(8, 20))}\nA:" for _ in range(items)]
    stop = {"until": ["\n\n"], "max_gen_toks": NEW_TOKENS, "do_sample": False}
    return {
        "choice, 0 shots": ("loglikelihood", items, [r for q in asked for r in choices(q)]),
        "choice, 5 shots": ("loglikelihood", items, [r for q in asked for r in choices(shots + q)]),
        "letters, 5 shots": ("loglikelihood", items, [(shots + q, f" {c}") for q in asked for c in "ABCD"]),
        "rolling": ("loglikelihood_rolling", items, [(phrase(rng.randint(30, 300)),) for _ in range(items)]),
        "generation": ("generate_until", items, [(q, stop) for q in asked]),
    }


def instances(kind: str, requests: list[tuple[Any, ...]]) -> list[Any]:
    """Requests as lm-eval hands them to a model."""
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, request, i) for i, request in enumerate(requests)]


def timed(action: Callable[[], Any]) -> tuple[Any, float, float]:
    """(result, seconds, processor's seconds)."""
    began, busy = time.perf_counter(), time.process_time()
    return action(), time.perf_counter() - began, time.process_time() - busy


def differs(kind: str, ours: list[Any], theirs: list[Any]) -> float:
    """The largest difference of an item in nats; of generation, the share of texts that differ."""
    if kind == "generate_until":
        return sum(a != b for a, b in zip(ours, theirs, strict=True)) / len(ours)
    pairs = zip(ours, theirs, strict=True)
    return max(abs(a[0] - b[0]) if isinstance(a, tuple) else abs(a - b) for a, b in pairs)


def measure(
    name: str, kind: str, items: int, requests: list[Any], ours: Any, theirs: dict[int, Any], rounds: int
) -> dict[str, Any]:
    """Both in turns; returns a row of the table."""

    def tercet() -> list[Any]:
        return list(getattr(ours, kind)(requests))

    def lm_eval(batch: int) -> list[Any]:
        return list(getattr(theirs[batch], kind)(requests, disable_tqdm=True))

    result = tercet()
    tried = {batch: timed(partial(lm_eval, batch)) for batch in theirs}
    size = min(tried, key=lambda s: tried[s][2])
    seconds: dict[str, list[float]] = {"tercet": [], "lm-eval": []}
    cpu: dict[str, list[float]] = {"tercet": [], "lm-eval": []}
    turns = {"tercet": tercet, "lm-eval": partial(lm_eval, size)}
    for number in range(rounds):
        for tool in list(turns)[:: 1 if number % 2 == 0 else -1]:
            _, wall, busy = timed(turns[tool])
            seconds[tool].append(wall)
            cpu[tool].append(busy)
    return {
        "task": name, "kind": kind, "items": items, "batch_size": size, "seconds": seconds, "cpu": cpu,
        "difference": differs(kind, result, tried[size][0]),
        **{tool: items / statistics.median(values) for tool, values in seconds.items()},
    }  # fmt: skip


def quotients(rows: list[dict[str, Any]], clock: str) -> list[float]:
    """lm-eval's time over tercet's for all rows together, in each round."""
    rounds = len(rows[0][clock]["tercet"])
    return [sum(r[clock]["lm-eval"][i] for r in rows) / sum(r[clock]["tercet"][i] for r in rows) for i in range(rounds)]


def spread(values: list[float]) -> str:
    """Median [smallest, largest]."""
    return f"{statistics.median(values):.2f} [{min(values):.2f}, {max(values):.2f}]"


def main() -> None:
    """Make the model and the items, go round, print the table, write evaluation.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-evaluation"), help="folder, new or empty")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--items", type=int, default=48)
    parser.add_argument("--threads", type=int, default=Shape.threads)
    options = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", LMEVAL_LOG_LEVEL="ERROR")
    if importlib.util.find_spec("lm_eval") is None:
        sys.exit("lm-eval is not installed: pip install '.[proof,eval]'")
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tercet.interop.lm_eval import TercetLM

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    texts = make_model(options.out, Shape(threads=options.threads))
    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.out / "hf")
    tokenizer = AutoTokenizer.from_pretrained(options.out / "hf")
    ours, results = TercetLM(str(options.out / "run")), []
    print(f"{'':<18}{'items per second':^20}")
    print(f"{'':<18}{'tercet':>9}{'lm-eval':>9}   {'tercet / lm-eval':<22} {'by CPU':<22} batch  differs by")
    for name, (kind, items, requests) in make_tasks(texts, options.items).items():
        once = {"add_bos_token": False} if kind == "loglikelihood_rolling" else {}  # or the text would begin twice
        theirs = {b: HFLM(pretrained=model, tokenizer=tokenizer, batch_size=b, device="cpu", **once) for b in BATCHES}
        row = measure(name, kind, items, instances(kind, requests), ours, theirs, options.rounds)
        results.append(row)
        print(
            f"{name:<18}{row['tercet']:9.1f}{row['lm-eval']:9.1f}   {spread(quotients([row], 'seconds')):<22} "
            f"{spread(quotients([row], 'cpu')):<22} {row['batch_size']:>5}  {row['difference']:.0e}",
            flush=True,
        )
    totals, by_cpu = quotients(results, "seconds"), quotients(results, "cpu")
    reached = "reached" if statistics.median(totals) >= GOAL else "MISSED"
    print(
        f"\nall tasks: {spread(totals)} x lm-eval's speed (by CPU {spread(by_cpu)}), "
        f"goal at least {GOAL:.2f}: {reached}"
    )
    report = {
        "options": {k: str(v) for k, v in vars(options).items()},
        "results": results,
        "totals": totals,
        "cpu": by_cpu,
    }
    (options.out / "evaluation.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    if any(r["difference"] > SAME for r in results):
        sys.exit("the two tools do not say the same: this is not the same work")


if __name__ == "__main__":
    main()
