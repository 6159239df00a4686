"""The one renderer: conversations to ids and weights, for training, evaluation and chat alike (ChatML).

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi.<|im_end|>\\n
                                                           ^^^^^^^^^^^^^ weight 1: the assistant's words and its end

A message's own weight stands in the place of that 1, or of the 0 of what the user and the system say.

Special tokens enter by id; roles and contents are encoded apart, so the ids of a prompt are always a prefix of the ids
of the whole conversation, whatever the contents are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tercet.data.types import Conversation, Message
from tercet.errors import ContextError, DataError
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.special import SpecialTokens


@dataclass(frozen=True, slots=True)
class Rendered:
    """Ids and their loss weights (same length), by default 1 where the token is the assistant's and 0 elsewhere."""

    tokens: list[int]
    weights: list[float]

    def __len__(self) -> int:
        return len(self.tokens)


def _message(tokenizer: Tokenizer, message: Message) -> Rendered:
    header = [tokenizer.im_start, *tokenizer.encode(message.role + "\n")]
    body = [*tokenizer.encode(message.content), tokenizer.im_end]
    tail = tokenizer.encode("\n")
    weights = [0.0] * len(header) + [message.loss_weight] * len(body) + [0.0] * len(tail)
    return Rendered(header + body + tail, weights)


def render(tokenizer: Tokenizer, conversation: Conversation) -> Rendered:
    """Ids and weights of a whole conversation: each message's weight on its content and end token, 0 on the rest."""
    parts = [_message(tokenizer, message) for message in conversation]
    return Rendered([t for p in parts for t in p.tokens], [w for p in parts for w in p.weights])


def render_prompt(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """Ids that a model continues with the next assistant message: `render` of what was said and the opened turn."""
    return [*render(tokenizer, conversation).tokens, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def render_fitting(tokenizer: Tokenizer, conversation: Conversation, max_tokens: int) -> tuple[Rendered, int]:
    """As many leading messages as fit into `max_tokens`, ending on an assistant message; and how many were cut.

    Raises ContextError where not even the first assistant message fits, or where all that fits has weight 0, DataError
    where there is no assistant message.
    """
    tokens: list[int] = []
    weights: list[float] = []
    kept, kept_length, length = 0, 0, 0
    for number, message in enumerate(conversation, start=1):
        part = _message(tokenizer, message)
        length += len(part)
        if length > max_tokens:
            break
        tokens += part.tokens
        weights += part.weights
        if message.role == "assistant":
            kept, kept_length = number, length
    if not kept:
        if not any(m.role == "assistant" for m in conversation):
            raise DataError("a conversation with no assistant message: there is nothing to learn from it")
        raise ContextError(f"the conversation up to its first answer is longer than the context of {max_tokens} tokens")
    if not any(weights[:kept_length]):
        raise ContextError(f"all that fits into the context of {max_tokens} tokens has weight 0: nothing to learn")
    return Rendered(tokens[:kept_length], weights[:kept_length]), len(conversation) - kept


def prompt_fitting(tokenizer: Tokenizer, conversation: Conversation, max_tokens: int) -> tuple[list[int], int]:
    """`render_prompt` of the newest messages that fit (a system message stays); and how many old ones were left out.

    Raises ContextError where the last message alone is too long.
    """
    system = tuple(m for m in conversation[:1] if m.role == "system")
    rest = conversation[len(system) :]
    for start in range(len(rest)):
        if start and rest[start].role != "user":
            continue
        tokens = render_prompt(tokenizer, system + rest[start:])
        if len(tokens) <= max_tokens:
            return tokens, start
    raise ContextError(
        f"the last message alone fills the context: {max_tokens} tokens are free for the prompt; shorten the message"
    )


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, bool]:
    """The text of a sampled answer, and whether the model ended it itself with the token that ends a turn."""
    finished = bool(tokens) and tokens[-1] == tokenizer.im_end
    return tokenizer.decode(tokens), finished


def chat_template(special: SpecialTokens, line_feed_at_end: bool = True) -> str:
    """The renderer as a jinja template of Hugging Face's kind: it gives the text that the ids of `render` spell.

    A reward model scores at the end token, so its template leaves out the line feed after the last message
    (`line_feed_at_end` False).
    """
    start, end = (name.replace("\\", "\\\\").replace("'", "\\'") for name in (special.turn_start, special.turn_end))
    message = "{% for message in messages %}{{ '" + start + "' + message.role + '\\n' + message.content + '" + end + "'"
    if line_feed_at_end:
        body, opening = " + '\\n' }}{% endfor %}", start
    else:
        body, opening = " }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}", "\\n" + start
    return message + body + "{% if add_generation_prompt %}{{ '" + opening + "assistant\\n' }}{% endif %}"
