"""The train/held-out split: a prompt is on one side only, or a warning says how many prompts are on both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from tercet.data.readers import BadRows
from tercet.data.splits import fold, in_split
from tercet.data.types import Conversation
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.training.run import Run

T = TypeVar("T")
HeldOutData = SFTConfig | RewardConfig | DPOConfig  # settings that name rows, and which of them are held out


def split_key(prompt: Conversation) -> str:
    """Return the text whose hash decides the split: role and folded content (case, white space) of every message.

    Variants of a prompt that differ only in case or white space therefore stay on the same side.
    """
    return "\n".join(f"{m.role}: {fold(m.content)}" for m in prompt)


def read_sides(
    config: HeldOutData,
    read: Callable[[Sequence[str], BadRows], Iterable[tuple[str, T]]],
    prompt: Callable[[T], str],
    run: Run,
) -> tuple[list[tuple[str, T]], list[tuple[str, T]]]:
    """Read rows with file and line, and return (training rows, held-out rows). Raises DataError as `read` does.

    The held-out rows are those of `heldout`, or without them the rows of a share of the prompts, selected by a hash.
    Held-out rows whose prompt is also a training prompt are counted and warned of. If the hash selects no prompt, the
    prompt of the last row is held out. A side may be empty.
    """
    bad, share = BadRows(skip=config.skip_bad_rows), config.heldout_share
    every = list(read(config.data, bad))
    named = list(read(config.heldout, bad)) if config.heldout else None
    run.log_skipped(bad.count, bad.messages)

    def key(row: tuple[str, T]) -> str:
        return prompt(row[1])

    if named is not None:
        seen = {key(row) for row in every}
        if overlap := sum(key(row) in seen for row in named):
            run.log_line(
                f"warning: {overlap} of {len(named)} held-out rows have the prompt of a training row, so results on "
                "them are not held out. Hint: remove these rows from the training files, or leave out --heldout"
            )
            run.update(heldout_overlap=overlap)
        return every, named
    heldout = {key(row) for row in every if in_split(key(row), share)}
    if not heldout and share > 0 and every:
        heldout = {key(every[-1])}
    return [row for row in every if key(row) not in heldout], [row for row in every if key(row) in heldout]
