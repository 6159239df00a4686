"""Render conversations to ids and loss weights (ChatML), in one way for training, evaluation and chat.

    <|im_start|>user\\nHello<|im_end|>\\n<|im_start|>assistant\\nHi.<|im_end|>\\n
                                                           ^^^^^^^^^^^^^ weight 1: the answer and its end token

A message's own weight replaces the default, which is 1 for assistant messages and 0 for user and system messages.

Special tokens are inserted as ids, and roles and contents are encoded separately. So the ids of a prompt are always a
prefix of the ids of the whole conversation, whatever the contents are.
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
    """Ids and their loss weights (same length), by default 1 for the assistant's tokens and 0 elsewhere."""

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
    """Return ids and weights of a conversation: each message's weight on its content and end token, 0 elsewhere."""
    parts = [_message(tokenizer, message) for message in conversation]
    return Rendered([t for p in parts for t in p.tokens], [w for p in parts for w in p.weights])


def render_prompt(tokenizer: Tokenizer, conversation: Conversation) -> list[int]:
    """Return the prompt ids for the next assistant message: the rendered conversation and the start of a turn."""
    return [*render(tokenizer, conversation).tokens, tokenizer.im_start, *tokenizer.encode("assistant\n")]


def render_fitting(tokenizer: Tokenizer, conversation: Conversation, max_tokens: int) -> tuple[Rendered, int]:
    """Return the longest rendered prefix that ends with an assistant message, and the number of messages cut off.

    The prefix has at most `max_tokens` tokens. Raises ContextError if the first assistant message does not fit, or if
    all that fits has weight 0, and DataError if there is no assistant message.
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
            raise DataError("the conversation has no assistant message, so there is nothing to learn; leave it out")
        raise ContextError(f"the conversation up to its first answer is longer than the context of {max_tokens} tokens")
    if not any(weights[:kept_length]):
        raise ContextError(
            f"all that fits into the context of {max_tokens} tokens has weight 0, so there is nothing to learn"
        )
    return Rendered(tokens[:kept_length], weights[:kept_length]), len(conversation) - kept


def prompt_fitting(tokenizer: Tokenizer, conversation: Conversation, max_tokens: int) -> tuple[list[int], int]:
    """Return the prompt ids of the newest messages that fit into `max_tokens`, and the number of messages left out.

    A system message always stays. Raises ContextError if the last message alone is too long.
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
        f"the last message alone fills the context; {max_tokens} tokens are free for the prompt: shorten the message"
    )


def answer_text(tokenizer: Tokenizer, tokens: Sequence[int]) -> tuple[str, bool]:
    """Return the text of a sampled answer, and whether the model ended it with its end token."""
    finished = bool(tokens) and tokens[-1] == tokenizer.im_end
    return tokenizer.decode(tokens), finished


def chat_template(special: SpecialTokens, line_feed_at_end: bool = True) -> str:
    """Return the renderer as a jinja chat template for Hugging Face; its output is the text of the ids of `render`.

    A reward model scores at the end token, so its template leaves out the line feed after the last message
    (`line_feed_at_end` is false).
    """
    start, end = (name.replace("\\", "\\\\").replace("'", "\\'") for name in (special.turn_start, special.turn_end))
    message = "{% for message in messages %}{{ '" + start + "' + message.role + '\\n' + message.content + '" + end + "'"
    if line_feed_at_end:
        body, opening = " + '\\n' }}{% endfor %}", start
    else:
        body, opening = " }}{% if not loop.last %}{{ '\\n' }}{% endif %}{% endfor %}", "\\n" + start
    return message + body + "{% if add_generation_prompt %}{{ '" + opening + "assistant\\n' }}{% endif %}"
