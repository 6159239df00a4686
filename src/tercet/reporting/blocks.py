"""What a report is made of: sections of charts, tables, example answers and folded parts, and how numbers are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from tercet.evaluation.evaluate import estimate

LONGEST = 1500  # characters of one shown text


@dataclass(frozen=True)
class Cell:
    """One value of a table: its text, and its interval where there is one."""

    text: str
    interval: str = ""


EMPTY = Cell("–")


@dataclass(frozen=True)
class Row:
    """One row: its name, what it means in a few words, and its cells; a row without cells heads a group of rows."""

    name: str
    cells: tuple[Cell, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table with the names of its columns, the first of which names the rows."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Chart:
    """A figure as inline SVG. `svg` comes from figures.py, which escapes what it is given."""

    svg: Markup
    caption: str


@dataclass(frozen=True)
class Charts:
    """Charts beside each other, below each other on a narrow screen."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Said:
    """One answer: who or what rank gave it, and whether it is right (None: not known or not asked)."""

    who: str
    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Exchange:
    """A prompt (role, text) with several answers to it."""

    heading: str
    prompt: tuple[tuple[str, str], ...]
    answers: tuple[Said, ...]
    gold: str = ""


@dataclass(frozen=True)
class Exchanges:
    """Prompts with their answers."""

    kind: ClassVar[str] = "exchanges"
    caption: str
    items: tuple[Exchange, ...]


@dataclass(frozen=True)
class Prose:
    """A paragraph between other blocks; with `heading` it opens a part of a section."""

    kind: ClassVar[str] = "prose"
    text: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: tuple[Block, ...]


Block = Table | Charts | Exchanges | Prose | Folded


@dataclass(frozen=True)
class Section:
    """One section of the page: an anchor, a title, what happened in plain English, and its blocks."""

    id: str
    title: str
    lead: tuple[str | Markup, ...]
    blocks: list[Block] = field(default_factory=list)


def charts(*found: Chart | None) -> list[Block]:
    """The charts that exist, side by side; nothing where none does."""
    kept = tuple(c for c in found if c is not None)
    return [Charts(kept)] if kept else []


def plain(value: float | None, digits: int = 3, percent: bool = False) -> Cell:
    """A number without an interval."""
    if value is None:
        return EMPTY
    return Cell(minus(f"{100 * value:.1f} %" if percent else f"{value:,.{digits}f}"))


def measured(value: Mapping[str, Any] | None, percent: bool = False) -> Cell:
    """An Estimate's JSON as its value and its 95 % interval; a dash where there is none."""
    if value is None:
        return EMPTY
    e = estimate(dict(value))
    if percent:
        known = e.low == e.low
        return Cell(
            f"{100 * e.value:.1f} %",
            f"{100 * e.low:.1f} to {100 * e.high:.1f} %" if known else f"interval unknown, n = {e.n}",
        )
    number, _, interval = str(e).rstrip("]").partition(" [")
    return Cell(minus(number), minus(interval if "unknown" in interval else interval.replace(", ", " to ")))


def minus(text: str) -> str:
    """A number with the minus sign that is as wide as its digits."""
    return text.replace("-", "\u2212")


def shorten(text: str) -> str:
    """At most `LONGEST` characters of what a model or a person wrote; a cut is told."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


def listed(names: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def memory(megabytes: float) -> str:
    """Megabytes as a person says them."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def compact(number: float) -> str:
    """2,048 → 2.0 thousand; 2,400,000 → 2.4 million."""
    for size, name in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= size:
            return f"{number / size:.1f}{name}"
    return f"{number:.0f}"
