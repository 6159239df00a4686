"""The data types that all stages share: plain frozen dataclasses, without torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Document:
    """One text to train on; `id` is stable and decides the split, `source` names the component of the mixture."""

    text: str
    source: str
    id: str
    language: str = "en"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `weight`, if given, replaces the default loss weight of its role."""

    role: Role
    content: str
    weight: float | None = None

    @property
    def loss_weight(self) -> float:
        """Loss weight of the content's tokens and of the end token; by default 1 for the assistant, 0 for others."""
        return (1.0 if self.role == "assistant" else 0.0) if self.weight is None else self.weight


Conversation = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """K answers to one prompt with their ranks: integers, 1 is best, equal ranks are a tie.

    `scores`, where known, say how good each answer is: higher is better, and they never contradict the ranks.
    """

    prompt: Conversation
    responses: tuple[str, ...]
    ranks: tuple[int, ...]
    labeler: str = ""
    time: str = ""
    scores: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its gold answers: `answers` are all texts that count as right, the shortest first.

    `ability` groups scores ("arithmetic"). `held_out` says in what respect the question is unseen ("combination",
    "template" or "entity"; "" if it is not held out). `test` is Python code that fails if an answer in code is wrong.
    """

    prompt: Conversation
    answers: tuple[str, ...]
    ability: str
    id: str
    held_out: str = ""
    where: str = field(default="", compare=False, repr=False)  # the file and line it was read from, for error messages
    test: str = field(default="", repr=False)
