"""A study of one file, which tests/test_studies.py puts into a copy of the package: the way to add a study.

It asks whether the mean of many throws of a die is 3.5, and knows nothing of the rest of the program.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tercet.reporting.claims import Claim
from tercet.studies.folder import StudyFolder
from tercet.studies.study import SeededSettings, Study
from tercet.training.settings import setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class DiceConfig(SeededSettings):
    """Throw a die."""

    throws: int = setting(100, "Throws for each seed.", minimum=1)


def measure(seed: int) -> float:
    """Return the mean of 100 throws."""
    return sum(random.Random(seed).choices(range(1, 7), k=100)) / 100


def throw(config: DiceConfig, folder: StudyFolder) -> dict[str, Any]:
    """Throw the die for every seed."""
    return {"means": folder.seeds(measure, config.seed, config.seeds, config.jobs)}


def claims(results: dict[str, Any]) -> list[Claim]:
    """State two claims, of which one is false."""
    means = results["means"]
    near = all(3 < mean < 4 for mean in means)
    return [Claim("the mean is near 3.5", near, str(means)), Claim("the mean is above 6", min(means) > 6, str(means))]


def tables(results: dict[str, Any]) -> str:
    """Return the means as a table."""
    from tercet.studies.estimates import table

    return table(["seed", "mean"], [[str(i), f"{mean:.2f}"] for i, mean in enumerate(results["means"])])


def figures(results: dict[str, Any]) -> dict[str, Figure]:
    """Draw the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3, 2))
    figure.add_subplot().plot(results["means"])
    return {"dice": figure}


DICE = Study(
    name="dice",
    question="Is a die fair?",
    settings=DiceConfig,
    body=f"{__name__}:throw",
    claims=f"{__name__}:claims",
    tables=f"{__name__}:tables",
    figures=f"{__name__}:figures",
    example="tercet study dice --out runs/dice",
)
