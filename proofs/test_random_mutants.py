"""Random mutants of toy packages: what is tested is caught, what is not is listed, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mutation_sites
import pytest
import random_mutants

ALL = """
LIMIT, BUFFER = 10, 4096
def f(a: int = 3, *, b: bool = False) -> int:
    "Text 1."
    if not a and b or a < 5:
        raise ValueError(f"a is {a - 1}, wanted {LIMIT + 1}")
    total: "int | None" = min(a, 7)
    for x in range(2):
        if x:
            continue
        total += x
    print(total, end="", progress=a)
    total = Random(f"{a}") or Random(7)
    assert total > 9
    return -total
"""


def make_project(folder: Path, source: str, test: str) -> Path:
    (folder / "src" / "toy").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "src" / "toy" / "__init__.py").touch()
    (folder / "src" / "toy" / "sums.py").write_text(source)
    (folder / "tests" / "test_sums.py").write_text(test)
    (folder / "pyproject.toml").write_text('[project]\nname = "toy"\n')
    return folder


def results(root: Path, count: int, code: int) -> dict[int, dict[str, object]]:
    """Run the command on a project: line → row of the file that it writes."""
    assert random_mutants.main(["--root", str(root), "--count", str(count)]) == code
    rows = json.loads((root / "runs" / "random-mutants" / "results.json").read_text())
    return {row["line"]: row for row in rows}


def changed(text: str) -> set[tuple[str, str, str]]:
    """(kind, before, after) of every change; before and after are whole lines."""
    out = set()
    for site in mutation_sites.sites("f.py", text):
        before, after = text.splitlines(), site.apply(text).splitlines()
        assert [n for n, (x, y) in enumerate(zip(before, after, strict=True), 1) if x != y] == [site.line]
        out.add((site.kind, before[site.line - 1].strip(), after[site.line - 1].strip()))
    return out


def test_every_kind_of_change_and_nothing_else() -> None:
    head = "def f(a: int = 3, *, b: bool = False) -> int:"
    condition = "if not a and b or a < 5:"
    assert changed(ALL) == {
        ("constant", "LIMIT, BUFFER = 10, 4096", "LIMIT, BUFFER = 11, 4096"),
        ("constant", "LIMIT, BUFFER = 10, 4096", "LIMIT, BUFFER = 9, 4096"),
        ("constant", head, "def f(a: int = 4, *, b: bool = False) -> int:"),
        ("constant", head, "def f(a: int = 2, *, b: bool = False) -> int:"),
        ("constant", head, "def f(a: int = 3, *, b: bool = True) -> int:"),
        ("condition negated", condition, "if (not (not a and b or a < 5)):"),
        ("not removed", condition, "if (a) and b or a < 5:"),
        ("and↔or", condition, "if not a or b or a < 5:"),
        ("and↔or", condition, "if not a and b and a < 5:"),
        ("comparison", condition, "if not a and b or a <= 5:"),
        ("constant", condition, "if not a and b or a < 6:"),
        ("constant", condition, "if not a and b or a < 4:"),
        ("statement removed", 'raise ValueError(f"a is {a - 1}, wanted {LIMIT + 1}")', "pass"),
        *(("constant", 'total: "int | None" = min(a, 7)', f'total: "int | None" = min(a, {n})') for n in (6, 8)),
        ("swapped call", 'total: "int | None" = min(a, 7)', 'total: "int | None" = max(a, 7)'),
        ("argument left out", 'total: "int | None" = min(a, 7)', 'total: "int | None" = min(a)'),
        *(("constant", "for x in range(2):", f"for x in range({n}):") for n in (1, 3)),
        ("condition negated", "if x:", "if (not (x)):"),
        ("break↔continue", "continue", "break"),
        ("statement removed", "total += x", "pass"),
        ("arithmetic", "total += x", "total -= x"),
        ("statement removed", 'print(total, end="", progress=a)', "pass"),
        ("and↔or", 'total = Random(f"{a}") or Random(7)', 'total = Random(f"{a}") and Random(7)'),
        ("return value", "return -total", "return None"),
        ("sign", "return -total", "return (total)"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("line", "after"),
    [
        ("x = f(a=1, b=g)", "x = f(b=g)"),
        ("x = f(a, b=g)", "x = f(a)"),
        ("x = 'é' * len(a < b)", "x = 'é' * len(a <= b)"),
        ("x = (a) <(b)", "x = (a) <=(b)"),
    ],
)
def test_the_place_of_a_change_is_exact(line: str, after: str) -> None:
    assert (line, after) in {(before, now) for _, before, now in changed(line)}


def test_what_is_tested_is_caught_and_what_is_not_survives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = (
        "SIZE = 3\ndef add(a, b):\n    return a + b\ndef ran(a):\n    return a\ndef never(a):\n    return a\n"
        "def size():\n    return SIZE\n"
    )
    test = (
        "import pytest, subprocess, sys, toy.sums\n"
        "@pytest.fixture(scope='module')\ndef total():\n    return toy.sums.add(2, 3)\n"
        "def test_first(total):\n    toy.sums.ran(1)\n"
        "def test_second(total):\n    assert total == 5\n"
        "CODE = 'from toy.sums import size; assert size() == 3'\n"
        "def test_size():\n    subprocess.run([sys.executable, '-c', CODE], check=True)\n"
    )
    rows = results(make_project(tmp_path, source, test), 5, 1)
    # the second test sees what the fixture ran for the first; the third sees a constant in another process
    assert {line: row["test"] for line, row in rows.items()} == {
        1: "tests/test_sums.py::test_size",
        3: "tests/test_sums.py::test_second",
        5: None,
        7: None,
        9: "tests/test_sums.py::test_size",
    }
    assert rows[7]["why"] == "no test runs this line"
    assert rows[5]["why"] == "3 tests pass, of 3 that run the line or stand beside one that does"
    assert (rows[7]["before"], rows[7]["after"]) == ("    return a", "    return None")
    out = capsys.readouterr().out
    assert "3 of 5 mutants are caught" in out
    assert out.count("- return a\n    + return None") == 4  # each survivor when it is done and at the end
    assert (tmp_path / "src" / "toy" / "sums.py").read_text() == source
    results(tmp_path, 0, 0)
    assert "recorded" not in capsys.readouterr().out


def test_a_hanging_mutant_is_caught_and_a_failing_test_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(random_mutants, "PATIENCE", 8.0)
    source = (
        "def f():\n    n = iter((0, 2))\n    while next(n):\n        break\n    return sum(1 for _ in iter(int, 1))\n"
    )
    hangs = "def f(n):\n    while n:\n        n -= 1\n"
    root = make_project(tmp_path / "a", hangs, "import toy.sums\ndef test_f():\n    toy.sums.f(2)\n")
    assert {line: row["test"] for line, row in results(root, 2, 1).items()} == {2: None, 3: "(time limit)"}
    root = make_project(tmp_path / "b", source, "def test_wrong():\n    assert 0\n")
    assert random_mutants.main(["--root", str(root)]) == 2
    assert "tests/test_sums.py::test_wrong" in capsys.readouterr().err


def test_ctrl_c_leaves_nothing_behind(tmp_path: Path) -> None:
    """The test sleeps in a process of its own; the command is interrupted meanwhile."""
    test = (
        f"import os, subprocess, sys\ndef test_f():\n    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
    )
    test += "    subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    root = make_project(tmp_path / "project", "def f():\n    return 1\n", test)
    (tmp_path / "tmp").mkdir()
    command = [sys.executable, random_mutants.__file__, "--root", str(root)]
    process = subprocess.Popen(command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, stderr=subprocess.DEVNULL)
    while not (tmp_path / "pid").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()
    assert not [p for p in Path("/proc").glob("[0-9]*/cmdline") if b"time.sleep(600)" in p.read_bytes()]
