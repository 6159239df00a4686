"""Special tokens: the roles that they have, and how a tokenizer spells them.

A `tokenizer.json` of today's spelling, or of Llama's, says nothing about roles. Any other has them beside its tokens:

    "added_tokens": [{"id": 0, "content": "<|begin_of_text|>", …, "roles": ["begin_of_text"]}, …]

Other programs that read the file pass over "roles".
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import astuple, dataclass, fields
from typing import Any

from tercet.errors import CheckpointError


@dataclass(frozen=True)
class SpecialTokens:
    """The spelling of each role. Text never becomes one of these tokens; two roles may have the same token."""

    begin_of_text: str = "<|endoftext|>"  # before a text and, in pretraining, after it
    turn_start: str = "<|im_start|>"
    turn_end: str = "<|im_end|>"
    padding: str = "<|pad|>"
    mask: str = "<|mask|>"

    def missing(self, ids: Mapping[str, int]) -> list[str]:
        """The spellings that a vocabulary lacks."""
        return [token for token in dict.fromkeys(astuple(self)) if token not in ids]

    @property
    def turns(self) -> bool:
        """Whether turns have a token of their own to begin with."""
        return self.turn_start != self.begin_of_text


CHATML = SpecialTokens()
# A tokenizer of Llama's kind: there a text and a turn begin alike, and the token for padding is never read.
LLAMA = SpecialTokens("<s>", "<s>", "</s>", "<unk>", "<unk>")
ROLES = tuple(f.name for f in fields(SpecialTokens))


def read_roles(text: str) -> SpecialTokens | None:
    """The spelling that a tokenizer.json gives, or None where it says nothing of roles.

    Raises CheckpointError where a role is unknown, missing or given twice, ValueError where `text` is no JSON object.
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
        raise CheckpointError(f'tokenizer.json: no token has the role {", ".join(missing)}; add it to one\'s "roles"')
    return SpecialTokens(**spelling)


def with_roles(text: str, special: SpecialTokens) -> str:
    """A tokenizer.json with the roles written beside its tokens; as it is where the spelling is a known one."""
    if special in (CHATML, LLAMA):
        return text
    whole: dict[str, Any] = json.loads(text)
    for token in whole["added_tokens"]:
        if roles := [role for role in ROLES if getattr(special, role) == token["content"]]:
            token["roles"] = roles
    return json.dumps(whole, indent=2, ensure_ascii=False)
