"""A claim about a run, checked on the run's numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Claim:
    """A sentence, whether the run's numbers support it, and those numbers."""

    text: str
    holds: bool
    numbers: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields for JSON, as in demo.json."""
        return asdict(self)
