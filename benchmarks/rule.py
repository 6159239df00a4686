"""The reward of the GRPO comparison: a plain function of the answer's text, for both tools."""

from __future__ import annotations


def rule(prompt: object, answer: str, answers: object) -> float:
    """The share of the letter e."""
    return answer.count("e") / max(len(answer), 1)
