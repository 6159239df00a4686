"""The roles of special tokens, and how a tokenizer spells them.

A `tokenizer.json` with ChatML's or Llama's spelling does not name roles. Any other names them with its tokens:

    "added_tokens": [{"id": 0, "content": "<|begin_of_text|>", …, "roles": ["begin_of_text"]}, …]

Other programs that read the file ignore "roles".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from tercet.errors import CheckpointError


@dataclass(frozen=True)
class SpecialTokens:
    """The spelling of each role's token; two roles may share a token. Encoded text never contains these tokens."""

    begin_of_text: str = "<|endoftext|>"  # before a text and, in pretraining, also after it
    turn_start: str = "<|im_start|>"
    turn_end: str = "<|im_end|>"
    padding: str = "<|pad|>"
    mask: str = "<|mask|>"

    def missing(self, ids: Mapping[str, int]) -> list[str]:
        """Return the spellings that a vocabulary (token → id) lacks."""
        return [token for token in dict.fromkeys(astuple(self)) if token not in ids]

    @property
    def turns(self) -> bool:
        """Return whether a turn starts with a token of its own, different from the one before a text."""
        return self.turn_start != self.begin_of_text


CHATML = SpecialTokens()
# In Llama's tokenizer a text and a turn start with the same token, and the padding token is never read.
LLAMA = SpecialTokens("<s>", "<s>", "</s>", "<unk>", "<unk>")
ROLES = tuple(f.name for f in fields(SpecialTokens))


def read_roles(text: str) -> SpecialTokens | None:
    """Return the spelling of the roles in a tokenizer.json, or None if it names no roles.

    Raises CheckpointError if a role is unknown, missing or given twice, ValueError if `text` is not a JSON object.
    """
    spelling: dict[str, str] = {}
    for token in dict(json.loads(text)).get("added_tokens") or ():
        for role in token.get("roles") or ():
            if role not in ROLES or role in spelling:
                raise CheckpointError(
                    f"tokenizer.json: the role {role!r} of {token['content']} is unknown or given twice; "
                    f"wanted each of {', '.join(ROLES)} once"
                )
            spelling[role] = token["content"]
    if not spelling:
        return None
    if missing := [role for role in ROLES if role not in spelling]:
        raise CheckpointError(
            f'tokenizer.json: no token has the role {", ".join(missing)}; add it to the "roles" of a token'
        )
    return SpecialTokens(**spelling)


def with_roles(text: str, special: SpecialTokens) -> str:
    """Return a tokenizer.json with the roles of its tokens added; unchanged for ChatML's and Llama's spellings."""
    if special in (CHATML, LLAMA):
        return text
    contents: dict[str, Any] = json.loads(text)
    for token in contents["added_tokens"]:
        if roles := [role for role in ROLES if getattr(special, role) == token["content"]]:
            token["roles"] = roles
    return json.dumps(contents, indent=2, ensure_ascii=False)
