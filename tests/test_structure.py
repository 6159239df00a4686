"""The shape of the code itself: which way imports go, what starts without torch, sizes, docstrings, annotations."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tercet

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tercet"
FILES = sorted(SOURCE.rglob("*.py"))
# Each package may import those before it; two of one level may not import one another.
LEVELS = (
    ("errors",), ("data", "tokenizer", "statistics"), ("model",), ("training",), ("inference",), ("evaluation",),
    ("interop",), ("pretraining",), ("scaling",), ("posttraining",), ("diagnostics",), ("microworld",), ("reporting",),
    ("studies",), ("recipes",), ("cli",),
)  # fmt: skip
LEVEL = {package: number for number, level in enumerate(LEVELS) for package in level}
ALSO_ALLOWED = {("tokenizer", "data")}
TEXTLESS = ("model", "training")  # these never see text,
BUT = ("training/stage.py",)  # but for the driver, which takes the tokenizer over from the parent
# General code knows no generated world: it stands below it, and names it in a text only where a user may ask for it.
WORLDS = ("tercet.microworld",)
NAMED_ONLY = {
    "evaluation/scoring/scorers.py": 1,  # the scorer `rubric`, imported when it is asked for
    "evaluation/task.py": 1,  # the microworld's tasks, imported when tasks are listed
}
WITHOUT_TORCH = ["tercet", "tercet.errors", "tercet.cli.main", "tercet.training.stage", "tercet.training.settings"]
LATE = {"tercet.cli.show"}  # imported when a command has something to show, never at the start


def module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, module) of everything of tercet's own that a file imports, at its top or inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module or ""]
            if node.module == "tercet":  # `from tercet import data` names a package
                names = [f"tercet.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "tercet")


def broken_rules(file: Path, text: str) -> list[str]:
    """What a file imports against the direction of imports, as "file:line imports X"."""
    importer = file.relative_to(SOURCE).parts[0].removesuffix(".py")
    out = []
    for line, name in imports(ast.parse(text)):
        imported = name.split(".")[1] if "." in name else ""
        fine = importer == imported or (importer, imported) in ALSO_ALLOWED
        if importer != "__init__" and not fine and LEVEL.get(imported, len(LEVELS)) >= LEVEL[importer]:
            out.append(f"{file.relative_to(ROOT)}:{line}: {importer} imports {name}")
        textless = importer in TEXTLESS and str(file.relative_to(SOURCE)) not in BUT
        if textless and imported in ("data", "tokenizer"):
            out.append(f"{file.relative_to(ROOT)}:{line}: {importer} never sees text, but imports {name}")
    return out


def worlds_in(file: Path, text: str) -> list[str]:
    """Where a file of general code names a module of a generated world in a text, beyond what it may."""
    name = str(file.relative_to(SOURCE))
    if LEVEL.get(name.split("/")[0].removesuffix(".py"), len(LEVELS)) >= LEVEL["microworld"]:
        return []
    texts = [
        f"{name}:{node.lineno}: names {node.value}"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith(WORLDS)
    ]
    return texts[NAMED_ONLY.get(name, 0) :]


def test_general_code_knows_no_generated_world() -> None:
    assert [line for file in FILES for line in worlds_in(file, file.read_text())] == []
    for name in NAMED_ONLY:  # an exception that is none any more must go
        assert WORLDS[0] in (SOURCE / name).read_text(), name


def test_no_folder_holds_more_than_18_files() -> None:
    folders = {file.parent for file in FILES}
    assert {str(f.relative_to(ROOT)): n for f in folders if (n := len(list(f.glob("*.py")))) > 18} == {}


def test_every_package_has_its_place_in_the_order() -> None:
    found = {p.parent.name for p in SOURCE.glob("*/__init__.py")} | {p.stem for p in SOURCE.glob("*.py")} - {"__init__"}
    assert found == LEVEL.keys()


def test_imports_go_one_way() -> None:
    assert [line for file in FILES for line in broken_rules(file, file.read_text())] == []


def test_no_files_import_one_another_in_a_circle() -> None:
    """Imports inside functions count too; those for type checking alone do not."""
    graph: dict[str, set[str]] = {}
    for file in FILES:
        tree = ast.parse(file.read_text())
        typing_only = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
        left_out = {line for block in typing_only for line, _ in imports(block)}
        graph[module_name(file)] = {name for line, name in imports(tree) if line not in left_out}
    order: list[str] = []
    while free := [m for m, needs in graph.items() if m not in order and not (needs & graph.keys()) - {*order, m}]:
        order += free
    assert sorted(graph.keys() - order) == []


@pytest.mark.parametrize(
    ("file", "text", "broken"),
    [
        ("data/readers.py", "import tercet.tokenizer.bpe", "1: data imports tercet.tokenizer.bpe"),
        ("training/run.py", "def f():\n    from tercet.data.types import Task",
         "2: training never sees text, but imports tercet.data.types"),
        ("model/config.py", "from tercet import tokenizer", "1: model never sees text, but imports tercet.tokenizer"),
        ("training/run.py", "\nfrom tercet.inference import chat", "2: training imports tercet.inference"),
        ("evaluation/chat_answers.py", "import tercet.pretraining.causal",
         "1: evaluation imports tercet.pretraining.causal"),
        ("errors.py", "import tercet", "1: errors imports tercet"),
    ],
)  # fmt: skip
def test_a_wrong_import_is_found_with_its_file_and_line(file: str, text: str, broken: str) -> None:
    assert broken_rules(SOURCE / file, text) == [f"src/tercet/{file}:{broken}"]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("tokenizer/chat_template.py", "import tercet.data.types"),
        ("cli/main.py", "import tercet.errors"),
        ("data/types.py", "import torch"),
    ],
)
def test_a_right_import_is_not_complained_of(file: str, text: str) -> None:
    assert broken_rules(SOURCE / file, text) == []


# -- what is imported at the start --------------------------------------------------------------------------------


def modules_without_torch() -> list[str]:
    """Every module that must come without torch: data, the command line, settings and packages themselves."""
    names = {
        module_name(file) for file in FILES if file.name == "__init__.py" or file.stem.endswith(("config", "stage"))
    }
    names |= {module_name(file) for file in (SOURCE / "studies").rglob("*study.py")}
    for package in ("data", "cli"):
        names |= {module_name(file) for file in (SOURCE / package).rglob("*.py")}
    return sorted((names | set(WITHOUT_TORCH)) - LATE)


def test_nothing_that_starts_a_command_imports_torch() -> None:
    program = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    if found := {"torch", "numpy", "matplotlib", "safetensors"} & sys.modules.keys():
        sys.exit(f"{name} imports {', '.join(sorted(found))}")
if late := [name for name in LATE if name in sys.modules]:
    sys.exit(f"imported at the start: {late}")
"""
    program = program.replace("LATE", repr(sorted(LATE)))
    done = subprocess.run([sys.executable, "-c", program, *modules_without_torch()], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


# -- sizes, docstrings, annotations -------------------------------------------------------------------------------


def test_files_have_at_most_600_lines() -> None:
    long = {
        str(f.relative_to(ROOT)): n
        for f in [*FILES, *(ROOT / "tests").glob("*.py")]
        if (n := len(f.read_text().splitlines())) > 600
    }
    assert long == {}


def test_formatting_is_switched_off_rarely() -> None:
    """`# fmt: skip` is for tables that are read as tables; lines end at 120 characters everywhere (lint E501)."""
    lines = [
        f"{f.relative_to(ROOT)}: {line}" for f in FILES for line in f.read_text().splitlines() if "fmt: skip" in line
    ]
    assert len(lines) <= 40
    assert not [f for f in FILES if "fmt: off" in f.read_text() or "noqa: E501" in f.read_text()]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST, public: bool = True) -> Iterator[tuple[Function, bool]]:
    """(function, whether a reader may call it): public ones stand at the top of a module or in a public class."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, Function):
            yield node, public and not node.name.startswith("_")
            yield from functions(node, False)
        elif isinstance(node, ast.ClassDef):
            yield from functions(node, public and not node.name.startswith("_"))
        else:
            yield from functions(node, public)


def test_functions_have_at_most_80_lines() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{f.lineno}: {f.name} has {f.end_lineno - f.lineno + 1} lines"
        for file in [*FILES, *sorted((ROOT / "tests").glob("*.py"))]
        for f, _ in functions(ast.parse(file.read_text()))
        if f.end_lineno is not None and f.end_lineno - f.lineno >= 80
    ]
    assert long == []


def test_every_module_and_every_public_class_and_function_has_a_docstring() -> None:
    missing = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        named = [(f, f.name) for f, public in functions(tree) if public]
        named += [(n, n.name) for n in ast.walk(tree) if isinstance(n, ast.ClassDef) and not n.name.startswith("_")]
        if not ast.get_docstring(tree):
            missing.append(f"{file.relative_to(ROOT)}:1: the module")
        missing += [f"{file.relative_to(ROOT)}:{n.lineno}: {name}" for n, name in named if not ast.get_docstring(n)]
    assert missing == []


def test_every_function_is_fully_annotated() -> None:
    missing = []
    for file in FILES:
        for f, _ in functions(ast.parse(file.read_text())):
            every = [*f.args.posonlyargs, *f.args.args, *f.args.kwonlyargs, f.args.vararg, f.args.kwarg]
            bare = [a.arg for a in every if a is not None and a.annotation is None and a.arg not in ("self", "cls")]
            bare += ["return"] if f.returns is None else []
            missing += (
                [f"{file.relative_to(ROOT)}:{f.lineno}: {f.name} lacks the annotation of {', '.join(bare)}"]
                if bare
                else []
            )
    assert missing == []


def test_packages_hold_only_a_docstring() -> None:
    for file in SOURCE.glob("*/**/__init__.py"):
        assert [type(node) for node in ast.parse(file.read_text()).body] == [ast.Expr], file


def test_the_public_names_are_there() -> None:
    assert all(callable(getattr(tercet, name)) for name in tercet.__all__ if name != "__version__")
    assert dir(tercet) == sorted(tercet.__all__)
    with pytest.raises(AttributeError, match="'tercet' has no attribute 'pretrian'"):
        getattr(tercet, "pretrian")  # noqa: B009


def test_no_file_names_a_path_of_a_machine() -> None:
    wrong = ["/" + name for name in ("work/", "tmp/", "home/", "root/", "Users/")]
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
    )
    if listed.returncode:  # an unpacked archive without its history
        pytest.skip("the repository's list of files is not here")
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if (
            path.suffix in (".py", ".md", ".toml", ".yml", ".yaml", ".txt", ".jinja", ".cfg", ".sh", "")
            and path.is_file()
        ):
            lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
            found += [
                f"{name}:{number}: {line.strip()[:120]}"
                for number, line in enumerate(lines, 1)
                if any(w in line for w in wrong)
            ]
    assert found == []
