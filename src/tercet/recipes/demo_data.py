"""The demo's data as ordinary files: text, conversations and tasks, each in a training and a held-out part.

    DIR/text/{train,heldout}/{bible,code,docs,microworld}.jsonl.gz
    DIR/chat/{train,heldout}.jsonl                  conversations to learn from
    DIR/tasks/{preference,heldout}.jsonl            questions with gold answers
    DIR/data.json                                   sizes and the overlap that was found
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet.data import conversations, sources, tasks
from tercet.data.microworld import documents as microworld
from tercet.data.microworld import tasks as microtasks
from tercet.data.readers import write_jsonl
from tercet.data.splits import check_overlap, drop_overlap, in_split
from tercet.data.types import Conversation, Document
from tercet.errors import ConfigError

HELDOUT = 0.04
PREFERENCE, HELDOUT_TASKS = 600, 700


def _path(document: Document) -> str:
    """What decides the split: a module's code and its docstrings are of one path, and so go to the same side."""
    return document.id.partition("/")[2] if document.source in ("code", "docs") else document.id


def _write_text(out: Path, source: str, texts: Iterable[Document]) -> dict[str, Any]:
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in texts:
        sides[in_split(_path(document), HELDOUT)].append(document)
    train, heldout = sides[0], drop_overlap(sides[0], sides[1])
    for side, group in (("train", train), ("heldout", heldout)):
        write_jsonl(out / "text" / side / f"{source}.jsonl.gz", (asdict(d) for d in group))
    overlap = check_overlap((d.text for d in train), (d.text for d in heldout))
    return {
        "train_documents": len(train), "train_bytes": sum(len(d.text.encode()) for d in train),
        "heldout_documents": len(heldout), "heldout_bytes": sum(len(d.text.encode()) for d in heldout),
        "duplicates": overlap.duplicates, "shared_lines": round(overlap.line_share, 4),
    }  # fmt: skip


def _write_chat(out: Path, seed: int, count: int) -> dict[str, Any]:
    real: tuple[list[Conversation], list[Conversation]] = ([], [])
    for _, conversation in sources.chat():
        # by the first question: the same question with another answer must not be on both sides
        real[in_split(conversation[0].content.casefold(), 0.1)].append(conversation)
    world = microtasks.conversations(seed, count)
    edge = len(world) - max(20, len(world) // 20)
    train = [("chatterbot", c) for c in real[0]] + [("microworld", c) for c in world[:edge]]
    heldout = [("chatterbot", c) for c in real[1]] + [("microworld", c) for c in world[edge:]]
    seen = {c for _, c in train}
    heldout = [(s, c) for s, c in heldout if c not in seen]
    for side, group in (("train", train), ("heldout", heldout)):
        write_jsonl(out / "chat" / f"{side}.jsonl", ({**conversations.to_row(c), "source": s} for s, c in group))
    return {"train_conversations": len(train), "heldout_conversations": len(heldout)}


def write_demo_data(out: str | Path, seed: int = 0, world_documents: int = 12_000, world_conversations: int = 6_000,
                    parts: Sequence[str] = ("bible", "code", "docs", "microworld")) -> dict[str, Any]:  # fmt: skip
    """Write the demo's data into `out`; returns (and writes to data.json) its sizes and overlaps.

    Raises ConfigError where `out` is in use or a data package is missing.
    """
    out = Path(out)
    if out.exists() and any(out.iterdir()):
        raise ConfigError(f"{out} exists and is not empty; choose another --out")
    readers = {
        "bible": sources.bible, "code": sources.python_code, "docs": sources.python_docs,
        "microworld": lambda: microworld.documents(seed, world_documents),
    }  # fmt: skip
    report: dict[str, Any] = {"seed": seed, "text": {name: _write_text(out, name, readers[name]()) for name in parts}}
    report["chat"] = _write_chat(out, seed, world_conversations)
    for split, count in (("preference", PREFERENCE), ("heldout", HELDOUT_TASKS)):
        items = microtasks.tasks(split, seed, count)  # type: ignore[arg-type]
        report[f"{split}_tasks"] = write_jsonl(out / "tasks" / f"{split}.jsonl", (tasks.to_row(t) for t in items))
    (out / "data.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
