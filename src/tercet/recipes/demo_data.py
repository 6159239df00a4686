"""Write the demo's data as ordinary files: text, conversations and questions, each with a held-out part.

DIR/text/{train,heldout}/{bible,code,docs,microworld}.jsonl.gz
DIR/chat/{train,heldout}.jsonl                  conversations to learn from
DIR/tasks/{examples,preference,heldout}.jsonl   questions with gold answers
DIR/words/english-to-french.jsonl, …            words to translate
DIR/data.json                                   sizes, and the overlap of training and held-out text
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from tercet.data import documents as sources
from tercet.data.formats import conversations
from tercet.data.formats import prompts as tasks
from tercet.data.readers import write_jsonl
from tercet.data.splits import check_overlap, drop_overlap, in_split
from tercet.data.types import Conversation, Document, Message, Question
from tercet.microworld import documents as microworld
from tercet.microworld import tasks as microtasks
from tercet.microworld.items import Split
from tercet.microworld.words import LANGUAGES, WORDS
from tercet.training.run import new_folder

HELDOUT = 0.04
EXAMPLES, PREFERENCE, HELDOUT_TASKS = 700, 600, 700
MIXTURE = {"bible": 0.2, "code": 0.2, "docs": 0.1, "microworld": 0.5}  # of the tokens of pretraining
WORLD_BYTES = 440  # mean size of a microworld document


def _path(document: Document) -> str:
    """Return the key of the split: a module's code and its docstrings share a path, so both go to the same side."""
    return document.id.partition("/")[2] if document.source in ("code", "docs") else document.id


def _write_text(out: Path, source: str, texts: Iterable[Document], limit: int) -> dict[str, Any]:
    sides: tuple[list[Document], list[Document]] = ([], [])
    for document in texts:
        sides[in_split(_path(document), HELDOUT)].append(document)
    train, heldout = _some(sides[0], limit), drop_overlap(sides[0], sides[1])
    for side, group in (("train", train), ("heldout", heldout)):
        write_jsonl(out / "text" / side / f"{source}.jsonl.gz", (asdict(d) for d in group))
    overlap = check_overlap((d.text for d in train), (d.text for d in heldout))
    return {
        "train_documents": len(train),
        "train_bytes": sum(len(d.text.encode()) for d in train),
        "heldout_documents": len(heldout),
        "heldout_bytes": sum(len(d.text.encode()) for d in heldout),
        "duplicates": overlap.duplicates,
        "shared_lines": round(overlap.line_share, 4),
    }


def _some(texts: list[Document], limit: int) -> list[Document]:
    """Return documents of `limit` bytes in total or just above, selected and ordered by a hash of their ids."""
    used, out = 0, []
    for document in sorted(texts, key=lambda d: hashlib.blake2b(d.id.encode()).digest()):
        if used >= limit:
            break
        out.append(document)
        used += len(document.text.encode())
    return out


def _write_words(out: Path) -> None:
    for language in LANGUAGES:
        pairs = [
            Question((Message("user", word),), (to[language],), f"English to {language}", word)
            for word, to in WORDS.items()
        ]
        write_jsonl(out / "words" / f"english-to-{language.lower()}.jsonl", (tasks.to_row(t) for t in pairs))


def _write_chat(out: Path, seed: int, count: int) -> dict[str, Any]:
    real: tuple[list[Conversation], list[Conversation]] = ([], [])
    for _, conversation in sources.chat():
        # split by the first question: the same question with another answer must not be on both sides
        real[in_split(conversation[0].content.casefold(), 0.1)].append(conversation)
    world: tuple[list[Conversation], list[Conversation]] = ([], [])
    for conversation in microtasks.conversations(seed, count):
        question = next(m.content for m in conversation if m.role == "user").removeprefix("Hello. ")
        world[in_split(question, 0.05)].append(conversation)
    train, heldout = ([("chatterbot", c) for c in real[i]] + [("microworld", c) for c in world[i]] for i in (0, 1))
    seen = {c for _, c in train}
    heldout = [(s, c) for s, c in heldout if c not in seen]
    for side, group in (("train", train), ("heldout", heldout)):
        write_jsonl(out / "chat" / f"{side}.jsonl", ({**conversations.to_row(c), "source": s} for s, c in group))
    return {"train_conversations": len(train), "heldout_conversations": len(heldout)}


def write_demo_data(
    out: str | Path, seed: int = 0, megabytes: float = 12.0, world_conversations: int = 6_000
) -> dict[str, Any]:
    """Write the demo's data into `out`; return its sizes and overlaps, which are also in data.json.

    It has at most about `megabytes` of training text, and of each source at most its share in MIXTURE. Raises
    ConfigError where `out` is in use or a data package is missing.
    """
    out = Path(out)
    new_folder(out)
    stories = int(megabytes * 1e6 * MIXTURE["microworld"] / WORLD_BYTES) + 100
    texts: dict[str, Callable[[], Iterable[Document]]] = {
        "bible": sources.bible,
        "code": sources.python_code,
        "docs": sources.python_docs,
        "microworld": partial(microworld.documents, seed, stories),
    }
    sizes = {
        name: _write_text(out, name, texts[name](), int(megabytes * 1e6 * share)) for name, share in MIXTURE.items()
    }
    report: dict[str, Any] = {"seed": seed, "text": sizes}
    _write_words(out)
    report["chat"] = _write_chat(out, seed, world_conversations)
    counts: tuple[tuple[Split, str, int], ...] = (
        ("sft", "examples", EXAMPLES),
        ("preference", "preference", PREFERENCE),
        ("heldout", "heldout", HELDOUT_TASKS),
    )
    for split, name, count in counts:
        items = microtasks.draw_questions(split, seed, count)
        report[f"{name}_tasks"] = write_jsonl(out / "tasks" / f"{name}.jsonl", (tasks.to_row(t) for t in items))
    (out / "data.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report
