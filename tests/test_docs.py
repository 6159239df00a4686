"""The documentation: it names nothing that the code does not have, every link leads somewhere, every command parses.

The pages of docs/methods have a form of their own, which is tested at the end. `make docs` checks the built site too.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import re
import shlex
import unicodedata
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer

import tercet.errors
from tercet.cli.main import app
from tercet.posttraining.preference.stage import BELONGS, LOSSES
from tercet.posttraining.rewards.stage import BestOfNConfig
from tercet.posttraining.rl.stage import KL_PLACES, METHODS, REFUSED, GRPOConfig, PolicyConfig, PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.training.settings import TuneSettings
from tercet.training.stage import stages
from test_structure import LEVEL

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
GENERATED = {DOCS / "reference" / name for name in ("command-line.md", "python.md")}
PAGES = sorted({*DOCS.rglob("*.md")} - GENERATED)
ALL = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]
HISTORY = {DOCS / "log.md", ROOT / "CHANGELOG.md"}  # may name what is no longer there
PRESENT = [page for page in ALL if page not in HISTORY]
TREES = ("src", "tests", "proofs", "benchmarks", "scripts")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


each = pytest.mark.parametrize("page", ALL, ids=name)
each_present = pytest.mark.parametrize("page", PRESENT, ids=name)


@cache
def script(stem: str) -> ModuleType:
    """A file of scripts/, as a module."""
    spec = importlib.util.spec_from_file_location(stem, ROOT / "scripts" / f"{stem}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def generated() -> dict[str, str]:
    pages: dict[str, str] = script("reference").pages()
    return pages


@cache
def read(page: Path) -> str:
    return generated()[page.name] if page in GENERATED else page.read_text(encoding="utf-8")


def fences(text: str) -> list[tuple[str, str]]:
    """(language, content) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)


def prose(text: str) -> str:
    """A page without fenced and indented code."""
    return re.sub(r"^(?: {4}.*\n)+", "\n", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), flags=re.M)


def code(text: str) -> list[str]:
    """Everything in `backticks`, and indented lines."""
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(\S.*)$", text, flags=re.M)


# -- links ------------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the site makes them."""
    heads = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", read(page), flags=re.M | re.S), flags=re.M)
    plain = [unicodedata.normalize("NFKD", head.replace("`", "")).encode("ascii", "ignore").decode() for head in heads]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in plain}


@each
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(read(page))):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.is_file() or file in GENERATED, f"{name(page)}: {target} leads to no file"
        in_the_site = file.suffix != ".md" or file.is_relative_to(DOCS) or not page.is_relative_to(DOCS)
        assert in_the_site, f"{name(page)}: {target} is a page that the site does not have"
        if anchor:
            assert anchor in anchors(file), f"{name(page)}: {target}: there is no such heading"


def test_every_page_is_in_the_navigation() -> None:
    linked = re.findall(r'"([\w./+-]+\.md)"', (ROOT / "zensical.toml").read_text(encoding="utf-8"))
    pages = {str(page.relative_to(DOCS)) for page in (*PAGES, *GENERATED)}
    assert set(linked) == pages
    assert len(linked) == len(set(linked))


@each_present
def test_files_that_are_named_exist(page: Path) -> None:
    for path in re.findall(rf"\b(?:{'|'.join(TREES)})/[\w./-]+\w", read(page)):
        if Path(path).suffix in ("", ".py"):
            assert (ROOT / path).exists() or path.startswith("src/tercet/"), f"{name(page)}: {path}"
    for path in re.findall(r"\bsrc/tercet/[\w./-]*\w", read(page)):
        assert (ROOT / path).exists(), f"{name(page)}: {path}"


def test_pages_that_the_code_names_exist() -> None:
    for file in (
        f for tree in TREES for f in (ROOT / tree).rglob("*.py") if f.name not in ("test_sources.py", "test_docs.py")
    ):
        for path in re.findall(r"\bdocs/[a-z/_-]+\.md", file.read_text(encoding="utf-8")):
            assert (ROOT / path).is_file() or ROOT / path in GENERATED, f"{name(file)}: {path}"


def test_the_map_has_every_folder_in_the_order_of_imports() -> None:
    rows = re.findall(r"^\| `(\w+)(?:/|\.py)` \|", read(DOCS / "architecture.md"), flags=re.M)
    assert set(rows) == LEVEL.keys()
    assert [LEVEL[row] for row in rows] == sorted(LEVEL[row] for row in rows)


@each_present
def test_names_in_python_exist(page: Path) -> None:
    for dotted in set(re.findall(r"(?<![\w/`-])`?(tercet(?:\.[a-zA-Z_]\w*)+)", read(page))):
        parts = dotted.split(".")
        known = max(n for n in range(1, len(parts) + 1) if n == 1 or _is_module(parts[:n]))
        thing: Any = importlib.import_module(".".join(parts[:known])) if known < len(parts) else None
        for part in parts[known:]:
            assert hasattr(thing, part), f"{name(page)}: {dotted}"
            thing = getattr(thing, part)


def _is_module(parts: list[str]) -> bool:
    """Whether there is such a module; it is not imported, since it may need an extra."""
    try:
        return importlib.util.find_spec(".".join(parts)) is not None
    except ModuleNotFoundError:
        return False


# -- commands ---------------------------------------------------------------------------------------------------------


@cache
def commands() -> dict[str, Any]:
    """Every command by its words."""
    found: dict[str, Any] = {}
    queue = [("tercet", typer.main.get_command(app))]
    while queue:
        words, command = queue.pop()
        inner: dict[str, Any] = getattr(command, "commands", {})
        queue += [(f"{words} {key}", value) for key, value in inner.items()]
        if not inner:
            found[words] = command
    return found


def options() -> set[str]:
    """Every option of every command."""
    params = [parameter for command in commands().values() for parameter in command.params]
    return {option for p in params for option in (*p.opts, *p.secondary_opts)} | {"--help"}


def shell_lines(text: str) -> Iterator[str]:
    """Every line of a page that a shell runs: fenced `sh` and `bash`, and indented lines."""
    text = text.replace("\\\n", " ")
    for language, content in fences(text):
        if language in ("sh", "bash"):
            yield from content.splitlines()
    outside = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    yield from re.findall(r"^ {4}(tercet .*)$", outside, flags=re.M)


def calls(line: str) -> Iterator[list[str]]:
    """The calls of tercet in a line of a shell, each as its words."""
    words = shlex.split(re.sub(r"\$\w+", "1", line).replace(";", " ; ").replace(" | ", " ; "), comments=True)
    while "tercet" in words:
        words = words[words.index("tercet") :]
        end = words.index(";") if ";" in words else len(words)
        yield words[:end]
        words = words[end:]


@each_present
def test_commands_parse(page: Path) -> None:
    for line in shell_lines(read(page)):
        for words in calls(line):
            known = [n for n in (3, 2) if " ".join(words[:n]) in commands()]
            assert known, f"{name(page)}: {line}: there is no such command"
            command = " ".join(words[: known[0]])
            commands()[command].make_context(command, words[known[0] :])


@each_present
def test_options_exist(page: Path) -> None:
    spans = [c for c in re.findall(r"`([^`\n]+)`", prose(read(page))) if not c.startswith(("pytest", "pip", "python"))]
    found = {o for c in spans for o in re.findall(r"(?:^|(?<=\s))--[a-z][a-z-]*", c)}
    own = {"rewards.md": {"--fast"}, "scaling.md": {"--nproc-per-node"}, "curves.md": {"--only", "--first", "--seeds"}}
    assert found - options() - own.get(page.name, set()) == set()


def test_the_reference_has_every_command_and_option() -> None:
    text = generated()["command-line.md"]
    sections = dict(re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", text, flags=re.M))
    assert sections.keys() == commands().keys()
    for words, command in commands().items():
        shown = set(re.findall(r"`(--[a-z-]+)`", sections[words]))
        assert {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")} <= shown


def test_the_reference_has_every_public_name() -> None:
    heads = set(re.findall(r"^## (\w+)$", generated()["python.md"], flags=re.M))
    assert heads == {public for public in tercet.__all__ if not public.startswith("_")}


def test_the_page_of_errors_has_every_error() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d) \|", read(DOCS / "reference" / "errors.md"), flags=re.M))
    kinds = [
        k for k in vars(tercet.errors).values() if isinstance(k, type) and issubclass(k, tercet.errors.TercetError)
    ]
    assert rows == {kind.__name__: str(kind.exit_code) for kind in kinds}


# -- form -------------------------------------------------------------------------------------------------------------


@each
def test_the_form_of_a_page(page: Path) -> None:
    text, before = prose(read(page)), ""
    for line in text.splitlines():
        exempt = line.startswith("|") or any(word in line for word in ("http", "arXiv", "src/tercet/"))
        short = len(line) <= 120 or exempt
        assert short, f"{name(page)}: a line of {len(line)} characters: {line}"
        item = re.match(r"- |\d+\. ", line)
        joined = item and before and not re.match(r"- |\d+\. |  ", before)
        assert not joined, f"{name(page)}: an empty line is missing before the list: {line}"
        before = line
    bare = re.findall(r"(?:^|(?<=[\s(\[±+−=/-]))\.\d[\d.]*", text, flags=re.M)
    assert bare == [], f"{name(page)}: numbers without a leading zero"


def test_the_readme_is_short() -> None:
    assert len(read(ROOT / "README.md").splitlines()) <= 120


def test_the_check_of_the_site_finds_faults(tmp_path: Path) -> None:
    good = '<h1 id="a">A</h1><a href="b.html#b">b</a><a href="https://elsewhere.org">c</a><img src="i.png">'
    (tmp_path / "a.html").write_text(good, encoding="utf-8")
    (tmp_path / "b.html").write_text('<h1 id="b">B</h1>', encoding="utf-8")
    (tmp_path / "i.png").write_bytes(b"")
    assert script("check_site").faults(tmp_path) == []
    (tmp_path / "c.html").write_text(
        '<a href="d.html">d</a><a href="a.html#x">x</a><a href="#y">y</a><img src="j.png">'
        '<script src="https://elsewhere.org/s.js"></script><link rel="stylesheet" href="//elsewhere.org/s.css">'
        '<pre class="mermaid">a</pre>',
        encoding="utf-8",
    )
    (tmp_path / "s.css").write_text("@font-face{src:url(https://elsewhere.org/f.woff)}", encoding="utf-8")
    found = script("check_site").faults(tmp_path)
    for fault in ("d.html leads", "a.html#x", "#y", "j.png", "s.js", "s.css from", "mermaid", "f.woff"):
        assert any(fault in line for line in found), fault
    assert len(found) == 8


# -- methods ----------------------------------------------------------------------------------------------------------

FOLDER = DOCS / "methods"
METHOD_PAGES = sorted(FOLDER.glob("*.md"))
ALSO = ("ppo", "reward", "best-of-n", "rewards", "sft", "lora", "kl", "index")
EXPLAINED = {
    **{
        cls.__name__: set(cls.__annotations__)
        for cls in (PolicyConfig, PPOConfig, GRPOConfig, BestOfNConfig, SFTConfig, TuneSettings)
    },
    "DPOConfig": {"loss", *BELONGS},
    "RewardConfig": {"data", "margin", "demonstrations"},
}
EVERYWHERE = {"seed", "threads", "skip_bad_rows", "checkpoint_every", "heldout_bytes"}  # `--help` is enough for these
HEADER = "| setting | default | what it does |"
each_method = pytest.mark.parametrize("page", METHOD_PAGES, ids=lambda p: p.stem)


def shown(value: Any) -> str:
    """A default as a page shows it."""
    if value is dataclasses.MISSING:
        return "required"
    return (" ".join(map(str, value)) or "()") if isinstance(value, tuple) else str(value) or '""'


def test_every_method_has_a_page() -> None:
    assert {*METHODS, *LOSSES, *ALSO} - {page.stem for page in METHOD_PAGES} == set()


@each_method
def test_a_page_of_a_method(page: Path) -> None:
    text, lines = read(page), read(page).splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    wanted = (
        () if page.stem == "index" else ("arxiv", "fails") if page.stem == "rewards" else ("arxiv", "curve", "fails")
    )
    assert [w for w in wanted if w not in text.lower()] == []


def test_the_index_names_every_method() -> None:
    linked = set(re.findall(r"\]\(([^)#/]+)\.md\)", read(FOLDER / "index.md")))
    assert linked == {page.stem for page in METHOD_PAGES} - {"index"}


@each_method
def test_settings_and_defaults_are_those_of_the_code(page: Path) -> None:
    """A table of settings is about the commands that the page names above it."""
    before, found, table = read(page).partition(HEADER)
    if not found:
        return
    verbs = [v for v in dict.fromkeys(re.findall(r"`tercet ([a-z-]+)", before)) if v in stages()]
    assert verbs, "no command is named above the table"
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, flags=re.M)
    assert rows
    for setting, default in rows:
        fields = [f for v in verbs for f in dataclasses.fields(stages()[v].settings) if f.name == setting]
        defaults = {shown(f.default) for f in fields}
        assert default.strip(" `") in defaults, (
            f"{setting} is {default!r}; {', '.join(verbs)}: {defaults or 'no such setting'}"
        )


@pytest.mark.parametrize("stage", EXPLAINED)
def test_every_setting_is_explained(stage: str) -> None:
    spans = [c for page in METHOD_PAGES for c in code(read(page))]
    words = {w for c in spans for w in re.findall(r"[a-z][a-z_]*", c.replace("-", "_"))}
    assert EXPLAINED[stage] - EVERYWHERE - words == set()


@each_method
def test_names_in_the_text_are_names_in_the_code(page: Path) -> None:
    """Metrics, settings and values: a page must not speak of what has been renamed."""
    named = {c for c in re.findall(r"`([^`\n]+)`", read(page)) if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", c)}
    assert {n for n in named if not re.search(rf"\b{n}\b", _source())} == set()


@cache
def _source() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))


def test_the_kl_page_names_all_that_is_offered_and_refused() -> None:
    text = read(FOLDER / "kl.md")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text[: text.index(HEADER)], flags=re.M))
    assert rows.keys() == {*KL_PLACES, *REFUSED}
    assert {n for n, last in rows.items() if last == "refused"} == set(REFUSED)
