"""The train/held-out split: a prompt is on one side only, or a warning says how many prompts are on both."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from tercet.data.splits import fold, in_split
from tercet.data.types import Conversation
from tercet.training.run import Run

T = TypeVar("T")


def split_key(prompt: Conversation) -> str:
    """Return the text whose hash decides the split: role and folded content (case, white space) of every message.

    Variants of a prompt that differ only in case or white space therefore stay on the same side.
    """
    return "\n".join(f"{m.role}: {fold(m.content)}" for m in prompt)


def split_heldout(
    every: Sequence[T], named: Sequence[T] | None, key: Callable[[T], str], share: float, run: Run
) -> tuple[list[T], list[T]]:
    """Return (training rows, held-out rows).

    The held-out rows are the `named` ones, or without them the rows of a `share` of the prompts, selected by a hash.
    Named rows whose prompt is also a training prompt are counted and warned of. If the hash selects no prompt, the
    prompt of the last row is held out. A side may be empty.
    """
    if named is not None:
        seen = {key(row) for row in every}
        if overlap := sum(key(row) in seen for row in named):
            run.log_line(
                f"warning: {overlap} of {len(named)} held-out rows have the prompt of a training row, so results on "
                "them are not held out. Hint: remove these rows from the training files, or leave out --heldout"
            )
            run.update(heldout_overlap=overlap)
        return list(every), list(named)
    heldout = {key(row) for row in every if in_split(key(row), share)}
    if not heldout and share > 0 and every:
        heldout = {key(every[-1])}
    return [row for row in every if key(row) not in heldout], [row for row in every if key(row) in heldout]
