"""Chat with a model: render a conversation as a prompt, sample an answer, decode it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from tercet.data.types import Conversation, Message
from tercet.errors import ContextError
from tercet.inference.generate import SamplingParams, generate
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import StreamDecoder, Tokenizer
from tercet.tokenizer.chat_template import answer_text, prompt_fitting
from tercet.training.load import load_language_model
from tercet.training.run import Run
from tercet.training.stage import language_model_run


def answer_params(
    tokenizer: Tokenizer, max_new_tokens: int, temperature: float, top_k: int = 0, top_p: float = 1.0
) -> SamplingParams:
    """Return sampling settings that stop at the end of the assistant's turn or of the text."""
    return SamplingParams(max_new_tokens, temperature, top_k, top_p, stop_ids=(tokenizer.im_end, tokenizer.endoftext))


def fit_prompts(
    tokenizer: Tokenizer, prompts: Sequence[tuple[str, Conversation]], context_length: int, max_new_tokens: int
) -> list[list[int]]:
    """Return the ids of every (where, prompt), with room for the answer; old turns that do not fit are left out.

    Raises ContextError, beginning with `where`, for a prompt whose last message alone is too long.
    """
    room = context_length - max_new_tokens
    if room < 1:
        raise ContextError(
            f"--max-new-tokens is {max_new_tokens}, which leaves no room for a prompt in the context of "
            f"{context_length} tokens; wanted at most {context_length - 1}"
        )
    out = []
    for where, prompt in prompts:
        try:
            out.append(prompt_fitting(tokenizer, prompt, room)[0])
        except ContextError as error:
            raise ContextError(f"{where}: {error}") from error
    return out


def answer_all(
    model: Transformer,
    tokenizer: Tokenizer,
    prompts: Sequence[tuple[str, Conversation]],
    params: SamplingParams,
    seed: int,
    batch_size: int = 128,
) -> list[tuple[str, bool]]:
    """Sample an answer to every (where, prompt): (text, whether the model ended it itself)."""
    ids = fit_prompts(tokenizer, prompts, model.config.context_length, params.max_new_tokens)
    done = generate(model, ids, params, [seed * 1_000_003 + i for i in range(len(ids))], batch_size=batch_size)
    return [answer_text(tokenizer, c.tokens) for c in done]


class Chat:
    """A conversation with the model of a run.

    >>> chat = Chat("runs/sft")            # doctest: +SKIP
    >>> print(chat.say("What is 3 + 4?"))  # doctest: +SKIP
    """

    # not one per line: settings of sampling
    def __init__(self, run: str | Path | Run, *, system: str = "", temperature: float = 0.7, top_k: int = 0,
                 top_p: float = 1.0, max_new_tokens: int = 64, seed: int = 0) -> None:  # fmt: skip
        run = language_model_run(str(run.path if isinstance(run, Run) else run))
        self.model, self.tokenizer = load_language_model(run), Tokenizer.load(run.path)
        self.params = answer_params(
            self.tokenizer, min(max_new_tokens, self.model.config.context_length // 2), temperature, top_k, top_p
        )
        self.messages: Conversation = (Message("system", system),) if system else ()
        self.seed = seed

    def say(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """Answer a message; `on_text` gets the answer piece by piece. Old turns that do not fit are left out.

        Raises ContextError if `text` alone is too long; the conversation is then unchanged.
        """
        messages = (*self.messages, Message("user", text))
        room = self.model.config.context_length - self.params.max_new_tokens
        prompt, _ = prompt_fitting(self.tokenizer, messages, room)
        answer, _ = answer_text(self.tokenizer, self._stream(prompt, self.seed + len(messages), on_text))
        self.messages = (*messages, Message("assistant", answer))
        return answer

    def complete(self, text: str, on_text: Callable[[str], None] | None = None) -> str:
        """Continue a raw text, as a base model does; the conversation does not change."""
        prompt = [self.tokenizer.endoftext, *self.tokenizer.encode(text)]
        return self.tokenizer.decode(self._stream(prompt, self.seed, on_text))

    def _stream(self, prompt: list[int], seed: int, on_text: Callable[[str], None] | None) -> list[int]:
        """Continue a prompt; `on_text` gets the text piece by piece. Returns the sampled ids."""
        stream = StreamDecoder(self.tokenizer)

        def show(_: int, token: int) -> None:
            if on_text is not None and token not in self.params.stop_ids:
                on_text(stream.push(token))

        done = generate(self.model, [prompt], self.params, [seed], on_token=show)[0]
        if on_text is not None:
            on_text(stream.flush())
        return done.tokens
