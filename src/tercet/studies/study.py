"""Studies: experiments that answer a question of the lecture, and the one way to run, record, plot and state them.

A study is declared in a file named study.py or *_study.py below tercet/studies:

    FRONTIER = Study("reward-kl-frontier", "What does …?", FrontierConfig, "tercet.studies.…:frontier", …)

The registry finds the file, and `tercet study NAME --out DIR` runs it. A new study is one new file. Such files do not
import torch: `tercet --help` reads them all. A study writes

    DIR/results.json    the settings, the commit and versions of every start, the numbers and the claims
    DIR/*.png           the figures
    DIR/summary.md      the question, each claim with its numbers and whether it holds, the tables, the figures

and what is described in folder.py. The same command continues a study that was stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tercet.reporting.claims import Claim
from tercet.studies.folder import StudyFolder, write_json
from tercet.training.progress import Progress, silent
from tercet.training.records import write_text
from tercet.training.settings import Settings, setting
from tercet.training.stage import declared, load_object

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class SeededSettings(Settings):
    """Settings of a study whose seeds are computed side by side, each in a process of its own."""

    seeds: int = setting(4, "Number of seeds. Intervals need at least 2.", minimum=2)
    seed: int = setting(0, "The first seed.", minimum=0, maximum=2**20)
    jobs: int = setting(0, "Seeds computed at a time, one process each (0: one per CPU core).", minimum=0)


@dataclass(frozen=True)
class Study:
    """Everything that the program knows of a study. Texts with a colon name an object as "module:name".

    Call it to run it: `STUDY(config, out)` runs or continues it in the folder `out`.
    """

    name: str  # the command: `tercet study NAME`
    question: str  # one sentence, which the claims answer
    settings: type[Settings]  # its docstring is the command's help
    body: str  # function (config, folder) → results, a JSON object
    claims: str  # function (results) → the claims, each with its numbers
    example: str  # a command line
    tables: str = ""  # function (results) → the numbers as Markdown tables
    figures: str = ""  # function (results) → {name: figure}
    changeable: tuple[str, ...] = ("jobs",)  # settings that may change when the study is continued

    def __call__(self, config: Settings, out: str | Path, progress: Progress | None = None) -> dict[str, Any]:
        """Run the study in the folder `out`, or continue it there; return what is in its results.json.

        Raises ConfigError where `out` holds something else or was begun with other settings, CheckpointError where a
        file in it is damaged, and what the study itself raises.
        """
        from tercet.training.run import threads

        folder = StudyFolder(Path(out), self.name, config, self.changeable, progress or silent())
        with threads(getattr(config, "threads", 0)):
            results = load_object(self.body)(config, folder)
        claims: list[Claim] = load_object(self.claims)(results)
        record = {
            "study": self.name,
            "question": self.question,
            "settings": folder.settings,
            "starts": folder.starts,
            "seconds": folder.seconds(),
            "results": results,
            "claims": [claim.to_json() for claim in claims],
        }
        write_json(folder.path / "results.json", record)
        figures = save_figures(self.figures, results, folder.path)
        tables: str = load_object(self.tables)(results) if self.tables else ""
        write_text(folder.path / "summary.md", self._summary(record, claims, tables, figures))
        folder.progress.say(f"\n{self.question}")
        for claim in claims:
            folder.progress.say(f"  {_verdict(claim):15}  {claim.text}: {claim.numbers}")
        written = ", ".join(str(folder.path / name) for name in ("summary.md", "results.json", *figures))
        folder.progress.say(f"written: {written}")
        return record

    def _summary(self, record: dict[str, Any], claims: list[Claim], tables: str, figures: list[str]) -> str:
        """The study as a page of Markdown."""
        settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
        commit = record["starts"][-1]["git"].get("commit") or f"tercet {record['starts'][-1]['versions']['tercet']}"
        lines = [f"# {self.question}", "", f"`tercet study {self.name}`: {settings}; commit {commit}.", ""]
        lines += ["## Claims", "", *(f"- **{_verdict(c)}**: {c.text}: {c.numbers}" for c in claims)]
        lines += ["", "## Numbers", "", tables.rstrip()] if tables else []
        lines += ["", "## Figures", "", *(f"![{Path(f).stem}]({f})" for f in figures)] if figures else []
        return "\n".join(lines) + "\n"


def _verdict(claim: Claim) -> str:
    return "holds" if claim.holds else "does not hold"


def save_figures(function: str, results: dict[str, Any], out: Path) -> list[str]:
    """Draw the figures that the function named "module:name" makes; return the names of the PNG files in `out`."""
    if not function:
        return []
    import matplotlib
    from PIL import Image

    from tercet.reporting.figures import STYLE

    white: dict[Any, Any] = {f"{part}.facecolor": "white" for part in ("figure", "axes", "savefig")}
    names = []
    # powers of ten on a logarithmic axis are mathematical text
    with matplotlib.rc_context({**STYLE, **white, "text.parse_math": True}):
        drawn: dict[str, Figure] = load_object(function)(results)
        for name, figure in drawn.items():
            names.append(f"{name}.png")
            # no date and no version: the same numbers give the same file
            figure.savefig(out / names[-1], dpi=140, metadata={"Software": None})
            with Image.open(out / names[-1]) as image:  # 64 colours are enough, at half the size
                image.convert("RGB").quantize(64).save(out / names[-1], optimize=True)
    return names


@cache
def studies() -> dict[str, Study]:
    """Return every study by its name, in alphabetical order."""
    files = {*HERE.glob("*/**/study.py"), *HERE.rglob("*_study.py")}
    return {study.name: study for study in sorted(declared(Study, files), key=lambda study: study.name)}
