"""The README's commands and its Python are run as they stand, with fewer steps."""

from __future__ import annotations

import json
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest

from tercet.cli.main import main
from tercet.data import conversations, readers
from tercet.data.microworld import documents, tasks
from tercet.data.readers import write_jsonl

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)
    assert len(found) == {"bash": 3, "python": 1}[language]
    return "\n".join(found)


def fewer_steps(text: str) -> str:
    return re.sub(r"(--batch-size) \d+", r"\1 2", re.sub(r"(steps[ =])\d+", r"\g<1>2", text))


def shrink(folder: Path) -> None:
    """Keep a little of the data that `tercet data` wrote, so that the commands take seconds."""
    for file in [*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")]:
        rows = [row for _, row in readers.rows(file, readers.BadRows())][
            : {"examples": 84, "preference": 48}.get(file.stem, 12)
        ]
        write_jsonl(file, ({**row, "text": row["text"][:400]} if "text" in row else row for row in rows))


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("yaml")
    lines = [line for line in fewer_steps(block("bash")).splitlines() if line.strip()]
    assert len(lines) >= 12
    for line in lines:
        said, _, command = line.rpartition("|")
        monkeypatch.setattr(sys, "stdin", StringIO(said.removeprefix("echo ").strip().strip('"') + "\n"))
        arguments = shlex.split(command)
        assert arguments[0] == "tercet"
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as end:
            main()
        out = capsys.readouterr()
        fine = (0, None, 1) if arguments[1] == "doctor" else (0, None)  # it may find two steps wanting
        assert end.value.code in fine, f"{line}\n{out.err}"
        assert out.out.strip(), f"{line} said nothing"
        if arguments[1] == "data":
            shrink(tmp_path / "mydata")
    assert (tmp_path / "runs/rlhf/report.html").stat().st_size > 10_000
    assert json.loads((tmp_path / "scores.json").read_text())["models"]


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [d.text for d in documents.documents(0, 24)]
    (tmp_path / "book.txt").write_text("\n".join(texts), encoding="utf-8")
    write_jsonl(tmp_path / "book.jsonl", ({"text": t} for t in texts))
    write_jsonl(tmp_path / "chats.jsonl", (conversations.to_row(c) for c in tasks.conversations(0, 40)))
    rows = [{"prompt": f"Say {n}.", "responses": [f"{n}.", "No.", "Never."], "ranks": [1, 2, 2]} for n in range(40)]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    assert len([line for line in block("python").splitlines() if line.strip()]) <= 10  # "in ten lines"
    exec(compile(fewer_steps(block("python")), "README.md", "exec"), {})
    assert (tmp_path / "py/rlhf/run.json").is_file()
