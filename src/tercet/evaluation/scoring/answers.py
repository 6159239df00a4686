"""What scorers take: answers, and functions that score many of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tercet.data.types import Question

Answer = tuple[str, bool]  # the text, and whether the model ended it itself
BatchFunction = Callable[[Sequence[Question], Sequence[Answer]], list[float]]
