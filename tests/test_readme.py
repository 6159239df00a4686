"""The commands and the Python of the README and of the guides are run as they are written, with fewer steps.

A fenced `bash` block is run here, one page after the other, in the order in which a user would; an `sh` block is only
parsed (tests/test_docs.py), since it takes long or needs something that is not here.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from io import StringIO
from pathlib import Path

import pytest

from tercet.cli.main import main
from tercet.data import readers
from tercet.data.formats import conversations
from tercet.data.readers import write_jsonl
from tercet.microworld import documents, tasks

ROOT = Path(__file__).parent.parent
WALK = ("text", "conversations", "rankings", "reading-a-run", "prompting", "evaluation", "export-import")


def blocks(page: Path, language: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def fewer_steps(text: str) -> str:
    return re.sub(r"(--batch-size) \d+", r"\1 2", re.sub(r"(steps[ =])\d+", r"\g<1>2", text))


def shrink(folder: Path) -> None:
    """Keep a little of the data that `tercet data` wrote, so that the commands take seconds."""
    for file in [*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.gz")]:
        rows = [row for _, row in readers.rows(file, readers.BadRows())][
            : {"examples": 84, "preference": 48}.get(file.stem, 12)
        ]
        write_jsonl(file, ({**row, "text": row["text"][:400]} if "text" in row else row for row in rows))


def test_every_guide_is_walked_or_has_nothing_to_run() -> None:
    with_bash = {page.stem for page in (ROOT / "docs").rglob("*.md") if blocks(page, "bash")}
    assert with_bash == set(WALK)
    assert not blocks(ROOT / "README.md", "bash")


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("yaml")
    pages = [ROOT / "docs" / "guides" / f"{page}.md" for page in WALK]
    lines = [
        line
        for page in pages
        for block in blocks(page, "bash")
        for line in fewer_steps(block.replace("\\\n", " ")).splitlines()
    ]
    assert len(lines) >= 20
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
    for block in blocks(ROOT / "docs/guides/evaluation.md", "python"):  # about the run that is there now
        exec(compile(block, "evaluation.md", "exec"), {})
        assert capsys.readouterr().out.strip()


def test_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [d.text for d in documents.documents(0, 24)]
    (tmp_path / "book.txt").write_text("\n".join(texts), encoding="utf-8")
    write_jsonl(tmp_path / "book.jsonl", ({"text": t} for t in texts))
    write_jsonl(tmp_path / "chats.jsonl", (conversations.to_row(c) for c in tasks.conversations(0, 40)))
    rows = [{"prompt": f"Say {n}.", "responses": [f"{n}.", "No.", "Never."], "ranks": [1, 2, 2]} for n in range(40)]
    write_jsonl(tmp_path / "rankings.jsonl", rows)
    (block,) = blocks(ROOT / "README.md", "python")
    assert len([line for line in block.splitlines() if line.strip()]) <= 10  # "in ten lines"
    exec(compile(fewer_steps(block), "README.md", "exec"), {})
    assert (tmp_path / "py/rlhf/run.json").is_file()


def test_python_of_other_pages(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(ROOT / "docs/reference/errors.md", "python")
    exec(compile(block, "errors.md", "exec"), {})
    assert "steps" in capsys.readouterr().out
    with_python = {page.stem for page in (ROOT / "docs").rglob("*.md") if blocks(page, "python")} - {"python"}
    # python.md is generated, with signatures only; extending.md has tests/test_extending.py
    assert with_python == {"evaluation", "errors", "extending"}
