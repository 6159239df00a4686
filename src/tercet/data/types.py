"""The data types that every stage shares: plain frozen dataclasses, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Document:
    """One text to learn from; `id` is stable and decides the split, `source` names the mixture component."""

    text: str
    source: str
    id: str
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `weight` overrides how much training counts it."""

    role: Role
    content: str
    weight: float | None = None

    @property
    def loss_weight(self) -> float:
        """How much training counts each token of the content and its end: 1 for the assistant's, 0 for what others say."""
        return (1.0 if self.role == "assistant" else 0.0) if self.weight is None else self.weight


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """K answers to one prompt, ranked. Ranks are integers, 1 is best, equal ranks are a tie.

    `scores`, where known, say how good each answer is: the higher the better, and never against the ranks.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str = ""
    time: str = ""
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its gold answers: `answers` are all texts that count as right, the shortest form first.

    `ability` groups scores ("arithmetic"), `held_out` says in what way the item is unseen ("combination", "template",
    "entity", or "" where it is not held out). `test` is Python code that fails where an answer that is code is wrong.
    """

    prompt: Conversation
    answers: tuple[str, ...]
    ability: str
    id: str
    held_out: str = ""
    where: str = field(default="", compare=False, repr=False)  # file and line it was read from, for errors
    test: str = field(default="", repr=False)
