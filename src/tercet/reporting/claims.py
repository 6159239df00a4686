"""A claim that is checked on its own numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A sentence, whether this run's numbers bear it out, and the numbers."""

    text: str
    holds: bool
    numbers: str

    def to_json(self) -> dict[str, Any]:
        """For demo.json."""
        return asdict(self)
