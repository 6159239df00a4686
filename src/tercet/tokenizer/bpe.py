"""Byte-level BPE (Sennrich et al. 2016; GPT-2's byte alphabet), trained and run by the `tokenizers` library.

Every byte string can be encoded and comes back unchanged. Special tokens have ids of their own that `encode` never
produces: text that is spelled like one stays text, so no input can open or close a turn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import astuple
from pathlib import Path

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from tercet.errors import CheckpointError, ConfigError, DataError
from tercet.tokenizer.special import CHATML, LLAMA, SpecialTokens, read_roles, with_roles

SPECIAL_TOKENS = astuple(CHATML)  # of a tokenizer that is trained here, in the order of their ids

# Qwen2's split pattern: llama.cpp knows it by name ("qwen2"), so an exported model needs no patch there. Single digits
# are tokens of their own, which small models need for arithmetic.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SLICE = 128  # texts encoded at once


class Tokenizer:
    """Text to ids and back.

    `special` says how the special tokens are spelled; `endoftext` (the beginning of a text), `im_start` and `im_end`
    (of a turn), `pad` and `mask` are their ids.
    """

    def __init__(self, backend: Backend, special: SpecialTokens | None = None) -> None:
        """Without `special`, the tokens are spelled as ours, or as Llama's where the vocabulary has those instead.

        Raises CheckpointError where the vocabulary lacks one.
        """
        # True means: do not look for special tokens in the text that is encoded.
        backend.encode_special_tokens = True
        self._backend = backend
        known = [*(SPECIAL_TOKENS if special is None else ()), *astuple(special or LLAMA)]
        own = {token: i for token in known if (i := backend.token_to_id(token)) is not None}
        if special is None:
            special = LLAMA if CHATML.begin_of_text not in own and not LLAMA.missing(own) else CHATML
        if missing := special.missing(own):
            raise CheckpointError(
                f"tokenizer without the special tokens {', '.join(missing)}; train one with `tercet tokenizer train`"
            )
        self.special = special
        self.endoftext, self.im_start, self.im_end, self.pad, self.mask = (own[token] for token in astuple(special))
        self._special = {own[token]: token for token in astuple(special)}
        self.special_ids = frozenset(self._special)

    @property
    def vocab_size(self) -> int:
        """Number of ids, special tokens included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; never a special id. Raises DataError where `text` holds a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, in parallel."""
        try:
            # in slices: what the backend returns holds far more than ids
            slices = (list(texts[a : a + _SLICE]) for a in range(0, len(texts), _SLICE))
            return [e.ids for part in slices for e in self._backend.encode_batch_fast(part, add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(
                f"text that is not valid Unicode (a lone surrogate): {error}; "
                "clean it with text.encode('utf-8', 'replace')"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out; bytes that are no UTF-8 become U+FFFD."""
        return str(self._backend.decode([i for i in ids if i not in self.special_ids], skip_special_tokens=True))

    def token(self, i: int) -> str:
        """What a person is shown for one id: the spelling of a special token, the text of any other."""
        return self._special[i] if i in self._special else self.decode([i])

    def to_json(self) -> str:
        """The tokenizer as `tokenizer.json`, which transformers and llama.cpp's converter read."""
        return with_roles(str(self._backend.to_str(pretty=True)), self.special)

    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer: two runs can share weights only if theirs is equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` to `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder. Raises CheckpointError where it is missing or damaged."""
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise CheckpointError(f"{file}: no tokenizer there; make one with `tercet tokenizer train`, or name a run")
        try:
            text = file.read_text(encoding="utf-8")
            return cls(Backend.from_str(text), read_roles(text))
        except CheckpointError:
            raise
        except Exception as error:  # the backend raises bare Exception for a file it cannot parse
            raise CheckpointError(f"{file}: not a tokenizer.json: {error}") from error


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: SpecialTokens = CHATML) -> Tokenizer:
    """Train byte-level BPE with `vocab_size` ids in all (the special tokens, 256 bytes, the rest merges).

    Raises ConfigError where `vocab_size` has no room for the bytes, DataError where there is no text.
    """
    names = list(dict.fromkeys(astuple(special)))
    if vocab_size < (smallest := 256 + len(names)):
        raise ConfigError(
            f"vocab_size is {vocab_size}; at least {smallest} is needed (256 bytes + {len(names)} special tokens)"
        )
    seen = [0]

    def counted() -> Iterable[str]:
        for text in texts:
            seen[0] += len(text)
            yield text

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in names],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    try:
        backend.train_from_iterator(counted(), trainer)
    except UnicodeEncodeError as error:
        raise DataError(
            f"text that is not valid Unicode (a lone surrogate): {error}; clean it with text.encode('utf-8', 'replace')"
        ) from error
    if not seen[0]:
        raise DataError("no text to train the tokenizer on: every document is empty")
    return Tokenizer(backend, special)


class StreamDecoder:
    """Ids one at a time to text as soon as it is whole: a character of several tokens is held back until complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._shown = 0

    def push(self, token: int) -> str:
        """The text that `token` completes (may be empty)."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        end = len(text.rstrip("\ufffd"))
        new, self._shown = text[self._shown : end], max(end, self._shown)
        return new

    def flush(self) -> str:
        """What is still held back, bytes that never became a character shown as U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        new, self._shown = text[self._shown :], len(text)
        return new
