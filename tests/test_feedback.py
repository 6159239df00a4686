"""Feedback files: answers with labels, comparisons among them, and error messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tercet.data.formats.feedback import Feedback, labels, parse_feedback, read_feedback
from tercet.data.readers import BadRows
from tercet.data.types import Comparison, Message
from tercet.errors import DataError

HI = (Message("user", "Hi"),)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "response": "Hello!", "label": True},
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": [{"role": "assistant", "content": "Hello!"}], "label": True},
    ],
)
def test_one_answer_with_its_label(row: dict[str, Any]) -> None:
    item = parse_feedback(row, "f:1")
    assert item == Feedback(HI, "Hello!", True)
    assert labels(item) == (True,)
    assert labels(parse_feedback({**row, "label": False}, "f:1")) == (False,)


def test_comparisons_are_read_as_ever() -> None:
    item = parse_feedback({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, "f:1")
    assert item == Comparison(HI, ("Hello!", "What?"), (1, 2))
    ranked = parse_feedback({"prompt": "Hi", "responses": ["a", "b"], "ranks": [2, 1], "label": "by Anna"}, "f:1")
    assert ranked == Comparison(HI, ("a", "b"), (2, 1))


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ((1, 2), (True, False)),
        ((2, 1, 3), (None, True, False)),
        ((3, 1, 1, 2, 3), (False, True, True, None, False)),
        ((7, 4, 9), (None, True, False)),
        ((1, 1, 1), (None, None, None)),
    ],
)
def test_the_best_are_desirable_and_the_worst_undesirable(ranks: tuple[int, ...], wanted: tuple[bool | None]) -> None:
    assert labels(Comparison(HI, tuple("abcde"[: len(ranks)]), ranks)) == wanted


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "completion": "Hello!", "label": 1}, '"label" must be true .* or false, found a number'),
        ({"prompt": "Hi", "completion": "Hello!", "label": "yes"}, "found a string"),
        ({"prompt": "Hi", "completion": "Hello!", "label": None}, "found null"),
        ({"prompt": "Hi", "label": True}, 'one answer, under "completion" or "response", found none'),
        ({"prompt": "Hi", "completion": "a", "response": "b", "label": True}, "found completion and response"),
        ({"prompt": "Hi", "completion": 3, "label": True}, '"completion" must be a string, found a number'),
        ({"completion": "Hello!", "label": True}, '"prompt" must be a string'),
        ({"prompt": "Hi", "completion": [], "label": True}, "no assistant turn"),
        ({"prompt": "Hi", "completion": [{"role": "user", "content": "x"}], "label": True}, "no assistant turn"),
        ({"prompt": "Hi", "completion": "Hello!"}, "not a comparison"),
    ],
)
def test_wrong_rows_are_named(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"^f:7: .*{message}"):
        parse_feedback(row, "f:7")


def test_several_turns_are_no_completion() -> None:
    turns = [{"role": role, "content": "x"} for role in ("assistant", "user", "assistant")]
    with pytest.raises(DataError, match="must be one assistant message, found 3 messages"):
        parse_feedback({"prompt": "Hi", "completion": turns, "label": True}, "f:1")


def test_a_file_may_mix_both_and_bad_rows_are_skipped_on_request(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Hi", "completion": "Hello!", "label": True},
        {"prompt": "Hi", "completion": "Hello!", "label": "?"},
        {"prompt": "Hi", "chosen": "a", "rejected": "b"},
    ]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = BadRows(skip=True)
    items = list(read_feedback([str(file)], bad))
    assert [where for where, _ in items] == [f"{file}:1", f"{file}:3"]
    assert [type(item) for _, item in items] == [Feedback, Comparison]
    assert bad.count == 1
    with pytest.raises(DataError, match=r"f\.jsonl:2"):
        list(read_feedback([str(file)], BadRows()))
