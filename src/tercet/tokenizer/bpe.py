"""Byte-level BPE tokenizer (Sennrich et al. 2016; GPT-2's byte alphabet) on top of the `tokenizers` library.

Every valid Unicode text can be encoded and decodes to itself. `encode` never produces the ids of special tokens: text
that is spelled like a special token stays text, so no input can open or close a turn.
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

SPECIAL_TOKENS = astuple(CHATML)  # special tokens of a newly trained tokenizer, in the order of their ids

# Qwen2's split pattern: llama.cpp knows it by name ("qwen2"), so an exported model needs no patch there. Every digit is
# a token of its own, which small models need for arithmetic.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

_SLICE = 128  # texts encoded at once


class Tokenizer:
    """Encodes text to ids and decodes ids to text.

    `special` holds the spellings of the special tokens. Their ids are `endoftext` (the token before a text), `im_start`
    and `im_end` (the start and end of a turn), `pad` and `mask`.
    """

    def __init__(self, backend: Backend, special: SpecialTokens | None = None) -> None:
        """Without `special`, the spelling is ChatML's, or Llama's if the vocabulary has those tokens instead.

        Raises CheckpointError if the vocabulary lacks a special token.
        """
        # True means: special tokens are not recognised in the text to encode.
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
        """Return the number of ids, including the special tokens."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, never a special id; raises DataError if `text` has a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, encoded in parallel; raises DataError as `encode` does."""
        try:
            # in slices: the backend's encodings need far more memory than the ids
            slices = (list(texts[a : a + _SLICE]) for a in range(0, len(texts), _SLICE))
            return [e.ids for part in slices for e in self._backend.encode_batch_fast(part, add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError) as error:
            raise DataError(
                f"text that is not valid Unicode (a lone surrogate): {error}; "
                "clean it with text.encode('utf-8', 'replace')"
            ) from error

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids` without special tokens; bytes that are not valid UTF-8 become U+FFFD."""
        return str(self._backend.decode([i for i in ids if i not in self.special_ids], skip_special_tokens=True))

    def token(self, i: int) -> str:
        """Return one id as readable text: a special token's spelling, or the text of any other token."""
        return self._special[i] if i in self._special else self.decode([i])

    def to_json(self) -> str:
        """Return the content of `tokenizer.json`, which transformers and llama.cpp's converter read."""
        return with_roles(str(self._backend.to_str(pretty=True)), self.special)

    def fingerprint(self) -> str:
        """Return the tokenizer's SHA-256; two runs can share weights only if their fingerprints are equal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write `tokenizer.json` to `path`."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        """Read a `tokenizer.json`, or the one in a folder; raises CheckpointError if it is missing or damaged."""
        file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
        if not file.is_file():
            raise CheckpointError(
                f"{file}: no tokenizer there; train one with `tercet tokenizer train`, or give the path of a run"
            )
        try:
            text = file.read_text(encoding="utf-8")
            return cls(Backend.from_str(text), read_roles(text))
        except CheckpointError:
            raise
        except Exception as error:  # the backend raises a bare Exception for a file that it cannot parse
            raise CheckpointError(
                f"{file}: not a tokenizer.json ({error}); name a file of `tercet tokenizer train`, or a run"
            ) from error


def train_tokenizer(texts: Iterable[str], vocab_size: int, special: SpecialTokens = CHATML) -> Tokenizer:
    """Train a byte-level BPE tokenizer with `vocab_size` ids: the special tokens, 256 bytes, and the rest merges.

    Raises ConfigError if `vocab_size` is too small for the bytes, DataError if there is no text.
    """
    names = list(dict.fromkeys(astuple(special)))
    if vocab_size < (smallest := 256 + len(names)):
        raise ConfigError(
            f"--vocab-size is {vocab_size}; wanted at least {smallest} (256 bytes + {len(names)} special tokens)"
        )
    characters = 0

    def counted() -> Iterable[str]:
        nonlocal characters
        for text in texts:
            characters += len(text)
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
    if not characters:
        raise DataError("no text to train the tokenizer on: every document is empty")
    return Tokenizer(backend, special)


class StreamDecoder:
    """Decodes ids one at a time; a character that spans several tokens is held back until it is complete."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._returned = 0  # characters

    def push(self, token: int) -> str:
        """Return the text that `token` completes; it may be empty."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        end = len(text.rstrip("\ufffd"))
        new, self._returned = text[self._returned : end], max(end, self._returned)
        return new

    def flush(self) -> str:
        """Return the text that is still held back; bytes of an incomplete character become U+FFFD."""
        text = self._tokenizer.decode(self._ids)
        new, self._returned = text[self._returned :], len(text)
        return new
