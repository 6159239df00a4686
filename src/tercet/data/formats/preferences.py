"""Read comparisons: several answers to one prompt, ranked; the keys of a row say which format it has.

    K-way        {"prompt": "Hi", "responses": ["Hello!", "Hey.", "What?"], "ranks": [1, 1, 2]}     1 is best, may tie
    scored       {"prompt": "Hi", "responses": ["Hello!", "Hey.", "What?"], "scores": [5, 5, 1.5]}  higher is better
    pairwise     {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    messages     {"chosen": [user, assistant], "rejected": [user, assistant]}      the common prefix is the prompt
    transcript   {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "rejected": "..."}     as in Anthropic's HH-RLHF

A prompt is a string or a list of messages. "labeler" and "time" are kept. If a row has "scores" and "ranks", the ranks
decide which answers are tied. A pair may have a "margin" of 0 or more: how much better the chosen answer is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from tercet.data.formats.conversations import parse_messages, parse_prompt, to_messages
from tercet.data.readers import BadRows, json_type, name_field, parsed_rows, text_field
from tercet.data.types import Comparison, Conversation
from tercet.errors import DataError

_TURN = re.compile(r"\n\n(Human|Assistant):")


def read_comparisons(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Comparison]]:
    """Yield ("file:line", comparison) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_comparison` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_comparison)


def parse_comparison(row: Mapping[str, Any], where: str) -> Comparison:
    """Return the comparison of one row in any of this module's formats; a DataError begins with `where`."""
    if "responses" in row:
        prompt, responses, ranks, scores = _parse_ranked(row, where)
    elif "chosen" in row and "rejected" in row:
        prompt, responses = _parse_pair(row, where)
        ranks, scores = (1, 2), _parse_margin(row, where)
    else:
        raise DataError(
            f'{where}: not a comparison; wanted the keys "prompt", "responses" and "ranks" (or "scores"), or "chosen" '
            f'and "rejected", found {", ".join(sorted(row)) or "an empty row"}'
        )
    labeler, time = name_field(row, "labeler", where), name_field(row, "time", where)
    return Comparison(prompt, responses, ranks, labeler, time, scores)


def to_row(comparison: Comparison) -> dict[str, Any]:
    """Return the comparison as a row in the K-way format; `parse_comparison` is the inverse."""
    row: dict[str, Any] = {
        "prompt": to_messages(comparison.prompt),
        "responses": list(comparison.responses),
        "ranks": list(comparison.ranks),
    }
    row |= {"scores": list(comparison.scores)} if comparison.scores else {}
    return row | {key: value for key in ("labeler", "time") if (value := getattr(comparison, key))}


def _parse_ranked(
    row: Mapping[str, Any], where: str
) -> tuple[Conversation, tuple[str, ...], tuple[int, ...], tuple[float, ...]]:
    responses = row["responses"]
    if not isinstance(responses, list) or any(not isinstance(text, str) for text in responses):
        raise DataError(f'{where}: "responses" must be a list of strings')
    if len(responses) < 2:
        raise DataError(f'{where}: found {len(responses)} in "responses"; wanted at least 2, to compare them')
    for name in [name for name in ("ranks", "scores") if row.get(name) is not None] or ["ranks"]:
        if not isinstance(values := row.get(name), list):
            raise DataError(f'{where}: "{name}" must be a list of numbers, found {json_type(values)}')
        if len(values) != len(responses):
            raise DataError(
                f"{where}: found {len(responses)} responses but {len(values)} {name}; each response needs one"
            )
    scores = [_number(score, '"scores"', where) for score in row.get("scores") or ()]
    ranks = row.get("ranks") or [1 + sorted(set(scores), reverse=True).index(score) for score in scores]
    for rank in ranks:
        # bool is a subclass of int, but "true" is not a rank.
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise DataError(f"{where}: found the rank {rank!r}; wanted whole numbers from 1 (best), equal for ties")
    for (rank, score), (other, lower) in combinations(sorted(zip(ranks, scores)), 2):
        if rank < other and score < lower:
            raise DataError(
                f"{where}: rank {rank} has the score {score:g} and rank {other} the score {lower:g}; "
                "wanted the higher score for the better (lower) rank"
            )
    return parse_prompt(row.get("prompt"), where), tuple(responses), tuple(ranks), tuple(scores)


def _parse_margin(row: Mapping[str, Any], where: str) -> tuple[float, ...]:
    """Return the scores of a pair with a "margin", else (); only the difference of scores matters."""
    if row.get("margin") is None:
        return ()
    if (margin := _number(row["margin"], '"margin"', where)) < 0:
        raise DataError(f'{where}: "margin" is {margin:g}; wanted 0 or more: how much better the chosen answer is')
    return (margin, 0.0)


def _number(value: object, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e300:
        raise DataError(f"{where}: found {value!r} in {key}; wanted a finite number")
    return float(value)


def _parse_pair(row: Mapping[str, Any], where: str) -> tuple[Conversation, tuple[str, str]]:
    if isinstance(row["chosen"], list) and isinstance(row["rejected"], list):
        chosen, rejected = (_parse_side(row, key, where) for key in ("chosen", "rejected"))
    elif row.get("prompt") is not None:
        prompt = parse_prompt(row["prompt"], where)
        chosen, rejected = ((prompt, text_field(row, key, where)) for key in ("chosen", "rejected"))
    else:
        chosen, rejected = (
            _parse_transcript(text_field(row, key, where), f'{where}: "{key}"') for key in ("chosen", "rejected")
        )
    if chosen[0] != rejected[0]:
        raise DataError(f'{where}: "chosen" and "rejected" have different prompts; only their last turn may differ')
    return chosen[0], (chosen[1], rejected[1])


def _parse_side(row: Mapping[str, Any], key: str, where: str) -> tuple[Conversation, str]:
    """Return (prompt, answer) of a message list; a prompt given under "prompt" as well must agree with it."""
    turns, at = row[key], f'{where}: "{key}"'
    given = parse_prompt(row["prompt"], where) if row.get("prompt") is not None else ()
    if len(turns) == 1 and given:  # the answer alone
        *_, answer = parse_messages([*to_messages(given), *turns], at)
        return given, answer.content
    *prompt, answer = parse_messages(turns, at)
    # Published data sets often repeat only the user's first or last message under "prompt".
    if given and given != tuple(prompt) and not (len(given) == 1 and given[0] in prompt):
        raise DataError(f'{at}: the turns before the answer are not those of "prompt"; remove one of the two')
    return tuple(prompt), answer.content


def _parse_transcript(text: str, at: str) -> tuple[Conversation, str]:
    """Return (prompt, last answer) of a transcript "\\n\\nHuman: ...\\n\\nAssistant: ..."."""
    before, *pieces = _TURN.split(text)
    if before.strip() or not pieces:
        raise DataError(
            f'{at}: found neither a "prompt" key nor a transcript; add "prompt", '
            'or begin the text with "\\n\\nHuman:" and end it with an "\\n\\nAssistant:" turn'
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[speaker], "content": words.strip()} for speaker, words in zip(pieces[::2], pieces[1::2])]
    *prompt, answer = parse_messages(turns, at)
    return tuple(prompt), answer.content
