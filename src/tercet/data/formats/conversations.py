"""Read conversations in the common published formats; the keys of a row say which format it has.

    messages     {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    Alpaca       {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    ShareGPT     {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    completion   {"prompt": "Hi", "completion": "Hello."}          ("response" instead of "completion" is fine)

Each becomes a `Conversation`: an optional system message, then user and assistant in turn. In the messages and ShareGPT
formats a message may have a "weight", the loss weight of its tokens (0: not trained on). Without it, assistant messages
have weight 1 and all others 0.
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
    """Return the conversation of one row in any of this module's formats; a DataError begins with `where`."""
    turns = _parse_format(row, where)
    if not any(turn.loss_weight for turn in turns):
        raise DataError(
            f"{where}: every message has weight 0, so there is nothing to learn; give one message a weight above 0, "
            "or leave the row out"
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
    """Return the conversation of a list of {"role", "content"} objects, each with an optional "weight".

    The content is a string or a list of text parts. With `need_answer` the last turn must be the assistant's. Raises
    DataError.
    """
    turns = []
    for number, item in enumerate(_items(value, where), 1):
        at = f"{where}: message {number}"
        role = text_field(item, "role", at)
        if role not in ROLES:
            hint = "; tool calls are not supported" if role in ("tool", "function") else ""
            raise DataError(f'{at}: unknown role "{role}"; wanted system, user or assistant{hint}')
        if item.get("tool_calls") or item.get("function_call"):
            raise DataError(f"{at}: found a tool call; tool calls are not supported; leave the row out")
        turns.append(Message(role, _content(item, at), _weight(item, at)))
    return _checked(turns, where, need_answer)


def parse_prompt(value: object, where: str) -> Conversation:
    """Return the prompt given as a string (one user turn) or as messages that end with the user's; raises DataError."""
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
    """Return the conversation as a row in the messages format; `parse_conversation` is the inverse."""
    return {"messages": to_messages(conversation)}


def to_messages(conversation: Conversation) -> list[dict[str, Any]]:
    """Return a list of {"role", "content"}, with "weight" where a message has its own; inverse of `parse_messages`."""
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
            part_type = part.get("type") if isinstance(part, dict) else json_type(part)
            raise DataError(
                f'{at}: a part of the content is not text (found {part_type}); wanted {{"type": "text", "text": ...}}'
            )
        texts.append(text_field(part, "text", at))
    return "".join(texts)


def _weight(item: Mapping[str, Any], at: str) -> float | None:
    """Return the message's own weight, or None where the key is missing or null (as in a table with empty cells)."""
    value = item.get("weight")
    if value is None:
        return None
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value <= MAX_WEIGHT:  # not a number (NaN) fails this too
        raise DataError(
            f'{at}: "weight" must be a number from 0 (not trained on) to {MAX_WEIGHT:g}, '
            f"found {repr(value) if number else json_type(value)}; correct it, or leave the key out"
        )
    return float(value)


def _checked(turns: Sequence[Message], where: str, need_answer: bool) -> Conversation:
    """Return `turns` as a conversation: an optional system message, then user and assistant in turn, else DataError."""
    first = 1 if turns[0].role == "system" else 0
    if need_answer and all(turn.role != "assistant" for turn in turns):
        raise DataError(
            f"{where}: no assistant turn, so there is nothing to learn; add the answer or leave the row out"
        )
    if len(turns) == first:
        raise DataError(f"{where}: found only a system message; add a user turn")
    for index, turn in enumerate(turns[first:]):
        role = ("user", "assistant")[index % 2]
        if turn.role != role:
            hint = "turns must alternate, starting with the user"
            if turn.role == "system":
                hint = "only the first message may be a system message"
            raise DataError(f"{where}: message {first + index + 1}: found the role {turn.role}, wanted {role}; {hint}")
    if need_answer and turns[-1].role != "assistant":
        raise DataError(f"{where}: the last turn is the user's and has no answer; add the answer or remove the turn")
    return tuple(turns)
