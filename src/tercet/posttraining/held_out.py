"""Training rows and held-out rows: the same question never stands on both sides of a split without a word."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tercet.data.splits import fold, in_split
from tercet.data.types import Conversation
from tercet.training.run import Run

T = TypeVar("T")


def question(prompt: Conversation) -> str:
    """What a split is decided by: the messages, case and white space folded, so that variants of a question stay together."""
    return "\n".join(f"{m.role}: {fold(m.content)}" for m in prompt)


def split_heldout(
    every: Sequence[T], named: Sequence[T] | None, key: Callable[[T], str], share: float, run: Run
) -> tuple[list[T], list[T]]:
    """(training, held-out) rows: `share` of the questions by a hash, or the `named` rows, of which those that training has too are counted.

    Where the hash holds out none, the question of the last row is held out. A side may be empty.
    """
    if named is not None:
        seen = {key(row) for row in every}
        if overlap := sum(key(row) in seen for row in named):
            run.log_line(
                f"warning: {overlap} of {len(named)} held-out rows ask what a training row asks; what is measured on them is "
                "not held out. Hint: take them out of the training files, or name no held-out files"
            )
            run.update(heldout_overlap=overlap)
        return list(every), list(named)
    apart = {key(row) for row in every if in_split(key(row), share)}
    if not apart and share > 0 and every:
        apart = {key(every[-1])}
    return [row for row in every if key(row) not in apart], [row for row in every if key(row) in apart]
