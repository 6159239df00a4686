"""Conversations in, in the formats that people publish them in; each row's format is told by its keys.

    messages     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    Alpaca       {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    ShareGPT     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    completion   {"prompt": "Hi", "completion": "Hello."}          ("response" instead of "completion" is fine)

All become a `Conversation`: an optional system message, then user and assistant in turn. A message of the first and the third
form may have a "weight": how much training counts it (0: not at all), instead of 1 for the assistant's and 0 for the others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tercet.data.readers import BadRows, json_type, parsed_rows, text_field
from tercet.data.types import ROLES, Conversation, Message, Role
from tercet.errors import DataError

MAX_WEIGHT = 1e6
_SHAREGPT_ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


def read_conversations(paths: Sequence[str], bad: BadRows) -> Iterator[tuple[str, Conversation]]:
    """Yield ("file:line", conversation) for each row of the JSONL files `paths` (files, folders, globs).

    Raises DataError as `parse_conversation` does (unless `bad.skip`), for a damaged file, and if there is no good row.
    """
    return parsed_rows(paths, bad, parse_conversation)


def parse_conversation(row: Mapping[str, Any], where: str) -> Conversation:
    """Make a conversation of one row in any of this module's formats; raises DataError, which begins with `where`."""
    turns = _parse_format(row, where)
    if not any(turn.loss_weight for turn in turns):
        raise DataError(
            f"{where}: every message has weight 0, so there is nothing to learn; give one a weight above 0 or leave the row out"
        )
    return turns


def _parse_format(row: Mapping[str, Any], where: str) -> Conversation:
    if "messages" in row:
        return parse_messages(row["messages"], where)
    if "conversations" in row:
        return _parse_sharegpt(row["conversations"], where)
    if "instruction" in row:
        task, extra = text_field(row, "instruction", where), text_field(row, "input", where, "")
        user = f"{task}\n\n{extra}" if extra else task
        return (Message("user", user), Message("assistant", text_field(row, "output", where)))
    if "prompt" in row:
        key = "completion" if "completion" in row else "response"
        return (*parse_prompt(row["prompt"], where), Message("assistant", text_field(row, key, where)))
    raise DataError(
        f'{where}: no known format; wanted the key "messages", "conversations", "instruction" or "prompt", '
        f"found {', '.join(sorted(row)) or 'an empty row'}"
    )


def parse_messages(value: object, where: str, need_answer: bool = True) -> Conversation:
    """Make a conversation of a list of {"role", "content", maybe "weight"}; the content is a string or a list of text parts.

    With `need_answer` the last turn must be the assistant's; without, it may be either's. Raises DataError.
    """
    turns = []
    for number, item in enumerate(_items(value, where), 1):
        at = f"{where}: message {number}"
        role = text_field(item, "role", at)
        if role not in ROLES:
            hint = "; tool calls are not supported" if role in ("tool", "function") else ""
            raise DataError(f'{at}: unknown role "{role}"; wanted system, user or assistant{hint}')
        if item.get("tool_calls") or item.get("function_call"):
            raise DataError(f"{at}: holds a tool call, which is not supported; leave the row out")
        turns.append(Message(role, _content(item, at), _weight(item, at)))
    return _checked(turns, where, need_answer)


def parse_prompt(value: object, where: str) -> Conversation:
    """Make a prompt of a string (one user turn) or a message list whose last turn is the user's; raises DataError."""
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list):
        raise DataError(f'{where}: "prompt" must be a string or a list of messages, found {json_type(value)}')
    turns = parse_messages(value, where, need_answer=False)
    if turns[-1].role != "user":
        raise DataError(
            f"{where}: the prompt must end with a user turn, found an assistant turn; move it to the answer"
        )
    return turns


def to_row(conversation: Conversation) -> dict[str, Any]:
    """The row that `parse_conversation` reads back, in the messages format."""
    return {"messages": to_messages(conversation)}


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """The list of {"role", "content"} that `parse_messages` reads back, with "weight" where a message has its own."""
    return [
        {"role": m.role, "content": m.content} | ({} if m.weight is None else {"weight": m.weight})
        for m in conversation
    ]


def _parse_sharegpt(value: object, where: str) -> Conversation:
    turns = []
    for number, item in enumerate(_items(value, where), 1):
        at = f"{where}: message {number}"
        speaker = text_field(item, "from", at)
        if speaker not in _SHAREGPT_ROLES:
            raise DataError(f'{at}: unknown speaker "{speaker}"; wanted {", ".join(_SHAREGPT_ROLES)}')
        turns.append(Message(_SHAREGPT_ROLES[speaker], text_field(item, "value", at), _weight(item, at)))
    return _checked(turns, where, need_answer=True)


def _items(value: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: wanted a list of messages, found {'an empty list' if value == [] else json_type(value)}"
        )
    for number, item in enumerate(value, 1):
        if not isinstance(item, dict):
            raise DataError(f"{where}: message {number}: wanted an object, found {json_type(item)}")
    return value


def _content(item: Mapping[str, Any], at: str) -> str:
    content = item.get("content")
    if not isinstance(content, list):
        return text_field(item, "content", at)
    texts = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") != "text":
            found = part.get("type") if isinstance(part, dict) else json_type(part)
            raise DataError(
                f'{at}: a part of the content is no text (found {found}); wanted {{"type": "text", "text": ...}}'
            )
        texts.append(text_field(part, "text", at))
    return "".join(texts)


def _weight(item: Mapping[str, Any], at: str) -> float | None:
    """The message's own weight; None where the key is missing, or null as in tables in which only some rows have it."""
    value = item.get("weight")
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_WEIGHT:  # not a number (NaN) fails this too
        found = repr(value) if number else json_type(value)
        raise DataError(
            f'{at}: "weight" must be a number from 0 (not trained on) to {MAX_WEIGHT:g}, found {found}; '
            "mend it, or leave the key out"
        )
    return float(value)


def _checked(turns: Sequence[Message], where: str, need_answer: bool) -> Conversation:
    """Raise DataError unless this is an optional system message, then user and assistant in turn."""
    first = 1 if turns[0].role == "system" else 0
    if need_answer and all(turn.role != "assistant" for turn in turns):
        raise DataError(
            f"{where}: no assistant turn, so there is nothing to learn; add the answer or leave the row out"
        )
    if len(turns) == first:
        raise DataError(f"{where}: only a system message; add a user turn")
    for index, turn in enumerate(turns[first:]):
        wanted = ("user", "assistant")[index % 2]
        if turn.role != wanted:
            hint = (
                "a system message may only come first"
                if turn.role == "system"
                else "turns must alternate, a user first"
            )
            raise DataError(
                f"{where}: message {first + index + 1}: found a turn of {turn.role}, wanted {wanted}; {hint}"
            )
    if need_answer and turns[-1].role != "assistant":
        raise DataError(f"{where}: the last turn is the user's and has no answer; add the answer or cut the turn off")
    return tuple(turns)
