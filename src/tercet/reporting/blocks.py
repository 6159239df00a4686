"""The parts of a report: sections of charts, tables, example answers and folded parts; and the format of numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from markupsafe import Markup

from tercet.evaluation.evaluate import estimate

FINISHED, CUT = "answers that the model ended itself", "the others were cut at the longest allowed answer"
LONGEST = 1500  # characters of one text on the page


@dataclass(frozen=True)
class Cell:
    """One value of a table: its text, and its interval where it has one."""

    text: str
    interval: str = ""


EMPTY = Cell("–")


@dataclass(frozen=True)
class Row:
    """One row: its name, a note that explains it, and its cells; a row without cells is the heading of a group."""

    name: str
    cells: tuple[Cell, ...] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table with a caption and the names of its columns; the first column holds the names of the rows."""

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
    """Charts side by side, or below each other on a narrow screen."""

    kind: ClassVar[str] = "charts"
    charts: tuple[Chart, ...]


@dataclass(frozen=True)
class Said:
    """One answer: its heading (a model or a rank), its text, and whether it is right (None: unknown)."""

    who: str
    text: str
    right: bool | None = None


@dataclass(frozen=True)
class Exchange:
    """A prompt, as (role, text) of each message, with several answers and, where known, an accepted one."""

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
    """A paragraph between other blocks, with a heading where it starts a part of a section."""

    kind: ClassVar[str] = "prose"
    text: str = ""
    heading: str = ""


@dataclass(frozen=True)
class Folded:
    """Blocks that are hidden until the reader opens them by their summary line."""

    kind: ClassVar[str] = "folded"
    summary: str
    blocks: tuple[Block, ...]


Block = Table | Charts | Exchanges | Prose | Folded


@dataclass(frozen=True)
class Section:
    """One section of the page: an anchor, a title, paragraphs in plain English, and its blocks."""

    id: str
    title: str
    lead: tuple[str | Markup, ...]
    blocks: list[Block] = field(default_factory=list)


def charts(*drawn: Chart | None) -> list[Block]:
    """Return the charts that were drawn, side by side; an empty list where none was."""
    kept = tuple(c for c in drawn if c is not None)
    return [Charts(kept)] if kept else []


def plain(value: float | None, digits: int = 3, percent: bool = False) -> Cell:
    """Return a number as a cell without an interval; a dash for None."""
    if value is None:
        return EMPTY
    value = round(100 * value, 1) if percent else round(value, digits)
    value += 0.0  # no minus before a zero
    return Cell(minus(f"{value:.1f} %" if percent else f"{value:,.{digits}f}"))


def measured(value: Mapping[str, Any] | None, percent: bool = False) -> Cell:
    """Return an estimate from JSON as a cell with its 95 % interval; a dash for None."""
    if value is None:
        return EMPTY
    e = estimate(dict(value))
    if math.isnan(e.low):
        number = f"{100 * e.value:.1f} %" if percent else f"{e.value:.3f}"
        return Cell(minus(number), f"interval unknown, n = {e.n}")
    if percent:
        return Cell(f"{100 * e.value:.1f} %", f"[{100 * e.low:.1f} %, {100 * e.high:.1f} %]")
    number, _, interval = str(e).partition(" ")
    return Cell(minus(number), minus(interval))


def minus(text: str) -> str:
    """Return a number with a true minus sign instead of a hyphen."""
    return text.replace("-", "\u2212")


def shorten(text: str) -> str:
    """Return at most `LONGEST` characters of a text, followed by the number of characters that were cut."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST:,} more characters)"


def listed(names: Sequence[str]) -> str:
    """Return names as a list in English: "a, b and c"."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)


def plural(count: int, noun: str) -> str:
    """Return a count with its noun: "0 shots", "1 shot", "4 shots"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def duration(seconds: float) -> str:
    """Return seconds as text: "4.2 s", "3 min 20 s" or "1 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {whole % 60} s"


def memory(megabytes: float) -> str:
    """Return megabytes as text: "850 MB" or "1.5 GB"."""
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.0f} MB"


def compact(number: float) -> str:
    """Return a large number in words: 2,048 as "2.0 thousand", 2,400,000 as "2.4 million"."""
    for size, name in ((1e9, " billion"), (1e6, " million"), (1e3, " thousand")):
        if number >= size:
            return f"{number / size:.1f}{name}"
    return f"{number:.0f}"
