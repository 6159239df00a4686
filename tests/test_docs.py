"""The pages of docs/methods: one for every method, and nothing in them that the code does not have."""

from __future__ import annotations

import dataclasses
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from tercet.cli.main import app
from tercet.posttraining.best_stage import BestOfNConfig
from tercet.posttraining.preference_stage import BELONGS, LOSSES
from tercet.posttraining.rl_stage import KL_PLACES, METHODS, REFUSED, GRPOConfig, PolicyConfig, PPOConfig
from tercet.posttraining.sft_stage import SFTConfig
from tercet.training.settings import TuneSettings
from tercet.training.stage import stages

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "methods"
PAGES = sorted(FOLDER.glob("*.md"))
ALSO = ("ppo", "reward", "best-of-n", "rewards", "sft", "lora", "kl", "README")
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


@cache
def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(text: str) -> list[str]:
    """Everything in `backticks`, and indented lines."""
    return re.findall(r"`([^`\n]+)`", text) + re.findall(r"^ {4}(\S.*)$", text, flags=re.M)


def shown(value: Any) -> str:
    """A default as a page shows it."""
    if value is dataclasses.MISSING:
        return "required"
    return (" ".join(map(str, value)) or "()") if isinstance(value, tuple) else str(value) or '""'


def options() -> set[str]:
    """Every option of every command."""
    found: set[str] = set()
    open_ = [typer.main.get_command(app)]
    while open_:
        command: Any = open_.pop()
        open_ += getattr(command, "commands", {}).values()
        found |= {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
    return found | {"--help"}


def test_every_method_has_a_page() -> None:
    assert {*METHODS, *LOSSES, *ALSO} - {page.stem for page in PAGES} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_a_page(page: Path) -> None:
    text, lines = read(page), read(page).splitlines()
    assert len(lines) <= 60
    assert lines[0].startswith("# ")
    wanted = (
        () if page.stem == "README" else ("arxiv", "fails") if page.stem == "rewards" else ("arxiv", "curve", "fails")
    )
    assert [w for w in wanted if w not in text.lower()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", read(page)):
        assert target.startswith("http") or (page.parent / target).is_file(), target


def test_the_index_names_every_page() -> None:
    linked = set(re.findall(r"\]\(([^)#/]+)\.md\)", read(FOLDER / "README.md")))
    assert linked == {page.stem for page in PAGES} - {"README"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_options_exist(page: Path) -> None:
    found = {o for c in code(read(page)) for o in re.findall(r"(?:^|(?<=\s))--[a-z][a-z-]*", c)}
    found |= set(re.findall(r"(?<=\()--[a-z][a-z-]*", read(page)))
    assert found - options() == ({"--fast"} if page.stem == "rewards" else set())  # a program's own


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_settings_and_defaults_are_those_of_the_code(page: Path) -> None:
    """A table of settings is about the commands that the page names above it."""
    before, found, table = read(page).partition(HEADER)
    if not found:
        return
    verbs = [v for v in dict.fromkeys(re.findall(r"`tercet ([a-z-]+)", before)) if v in stages()]
    assert verbs, "no command is named above the table"
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", table, flags=re.M)
    assert rows
    for name, default in rows:
        defaults = {shown(f.default) for v in verbs for f in dataclasses.fields(stages()[v].settings) if f.name == name}
        assert default.strip(" `") in defaults, (
            f"{name} is {default!r}; {', '.join(verbs)}: {defaults or 'no such setting'}"
        )


@pytest.mark.parametrize("stage", EXPLAINED)
def test_every_setting_is_explained(stage: str) -> None:
    words = {w for page in PAGES for c in code(read(page)) for w in re.findall(r"[a-z][a-z_]*", c.replace("-", "_"))}
    assert EXPLAINED[stage] - EVERYWHERE - words == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_names_in_the_text_are_names_in_the_code(page: Path) -> None:
    """Metrics, settings and values: a page must not speak of what has been renamed."""
    source = _source()
    named = {c for c in re.findall(r"`([^`\n]+)`", read(page)) if re.fullmatch(r"[a-z]+(_[a-z0-9]+)+", c)}
    assert {name for name in named if not re.search(rf"\b{name}\b", source)} == set()


@cache
def _source() -> str:
    return "\n".join(file.read_text(encoding="utf-8") for file in (ROOT / "src").rglob("*.py"))


def test_the_kl_page_names_all_that_is_offered_and_refused() -> None:
    text = read(FOLDER / "kl.md")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", text[: text.index(HEADER)], flags=re.M))
    assert rows.keys() == {*KL_PLACES, *REFUSED}
    assert {name for name, last in rows.items() if last == "refused"} == set(REFUSED)
