"""Prediction before payment: laws fitted to runs of at most C FLOPs say what a run of at least 8 C will reach.

    python proofs/scaling_prediction.py --out runs/scaling        (three data sets, about 15 minutes on a quiet core)
    python proofs/scaling_prediction.py --out runs/scaling --data --text stories=stories.jsonl      (your own text)

For each data set: a ladder of budgets up to C, a fit, a prediction of the best run of 8 C (size and tokens by the fit),
and then that run. The prediction is written to disk before the run begins. A stopped script goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tercet.data import documents as sources
from tercet.data.readers import BadRows, read_documents, write_jsonl
from tercet.data.types import Document
from tercet.scaling.config import LadderConfig
from tercet.scaling.fit import Law, best_for_flops, fit_ladder
from tercet.scaling.ladder import read_runs, run_ladder, run_point
from tercet.tokenizer.bpe import train_tokenizer
from tercet.training.progress import Plain
from tercet.training.records import write_text
from tercet.training.run import Run

DATA: dict[str, Callable[[], Iterator[Document]]] = {
    "bible": sources.bible, "code": sources.python_code, "docs": sources.python_docs,
}  # fmt: skip
BYTES, VOCABULARY = 8_000_000, 512  # at most; the Bible has 4.0, the docstrings 2.2 million
CONTEXT = 32  # with longer ones the law has a step where copying from the context is learnt, at some 500,000 tokens
WIDTHS = (16, 32, 48, 64)
FLOPS = (2e10, 4e10, 8e10, 1.6e11)
FACTOR = 8.2  # a little above 8: steps are whole
SEEDS, TARGET_SEED = (1, 2), 4  # of the ladder and of the run that is predicted; the script was worked out on others


def own_text(given: str) -> str:
    """ "stories=stories.jsonl" as one more data set; its name."""
    name, _, path = given.partition("=")
    DATA[name] = lambda: read_documents([path], BadRows())
    return name


def prepare(folder: Path, name: str) -> None:
    """FOLDER/data/NAME.jsonl: whole documents, in the order of their ids' hash; and a tokenizer of its own."""
    if (folder / "tokenizer.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    chosen: list[Document] = []
    size = 0
    for document in sorted(DATA[name](), key=lambda d: hashlib.sha256(d.id.encode()).digest()):
        if size < BYTES:
            chosen.append(document)
            size += len(document.text.encode())
    write_jsonl(folder / f"{name}.jsonl", ({"text": d.text, "id": d.id} for d in chosen))
    train_tokenizer((d.text for d in chosen), VOCABULARY).save(folder / "tokenizer.json")


def one(
    out: Path, name: str, jobs: int, flops: Sequence[float] = FLOPS, seeds: Sequence[int] = SEEDS,
    widths: Sequence[int] = WIDTHS
) -> dict[str, Any]:  # fmt: skip
    """Ladder, fit, prediction, run; returns what was predicted and what came."""
    data, ladder = out / name / "data", out / name / "ladder"
    prepare(data, name)
    config = LadderConfig(
        data=(str(data / f"{name}.jsonl"),), tokenizer=str(data / "tokenizer.json"), widths=tuple(widths),
        flops=tuple(flops), seeds=tuple(seeds), context_length=CONTEXT, heldout_bytes=40_000,
    )  # fmt: skip
    run_ladder(config, ladder, jobs=jobs, progress=Plain())
    found = fit_ladder(read_runs([ladder]))
    fit_file, before = out / name / "fit.json", out / name / "prediction.json"
    write_text(fit_file, json.dumps(found.to_json(), indent=1) + "\n")
    law = Law.load(fit_file)
    if not before.is_file():
        choice = best_for_flops(law, FACTOR * max(flops))
        point = config.point(choice.width, choice.tokens, TARGET_SEED)
        tokens = point.steps * point.batch_size * point.context_length
        expected = law.predict(choice.shape.parameters(), tokens)
        write_text(before, json.dumps({"width": choice.width, "tokens": tokens, "loss": expected.to_json()}) + "\n")
    said = json.loads(before.read_text())
    target = str(out / name / "target")
    run_point(config.point(said["width"], said["tokens"], TARGET_SEED), target)
    truth = read_runs([target])
    expected = said["loss"]
    return {
        "data": name, "width": said["width"], "tokens": said["tokens"], "factor": truth.flops[0] / law.flops,
        "predicted": expected, "measured": truth.loss[0], "error": expected["value"] / truth.loss[0] - 1,
        "inside": expected["low"] <= truth.loss[0] <= expected["high"], "seconds": Run(target).manifest["seconds"],
        "parameters": {k: e.to_json() for k, e in law.law().parameters().items()},
    }  # fmt: skip


def table(rows: Iterable[dict[str, Any]]) -> str:
    """What docs/measurements/scaling.md shows."""
    lines = [
        "| data | width | tokens | times C | predicted, 90 % | measured | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        p = r["predicted"]
        lines.append(
            f"| {r['data']} | {r['width']} | {r['tokens']:,} | {r['factor']:.1f} "
            f"| {p['value']:.3f} [{p['low']:.3f}, {p['high']:.3f}] "
            f"| {r['measured']:.3f}{'' if r['inside'] else ' (outside)'} | {100 * r['error']:+.1f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    """Do all data sets and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--data", nargs="*", choices=DATA, default=list(DATA))
    parser.add_argument("--text", nargs="*", default=[], help="further data sets, as NAME=PATH")
    parser.add_argument("--flops", nargs="*", type=float, default=FLOPS, help="budgets of the ladder")
    parser.add_argument("--widths", nargs="*", type=int, default=WIDTHS)
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    args = parser.parse_args()
    rows = [
        one(args.out, name, args.jobs, args.flops, args.seeds, args.widths)
        for name in (*args.data, *map(own_text, args.text))
    ]
    write_text(args.out / "predictions.json", json.dumps(rows, indent=1, default=float) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
