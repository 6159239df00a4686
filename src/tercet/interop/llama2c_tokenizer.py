"""The tokenizer files of llama2.c: SentencePiece's BPE as pieces with scores, whose best pair is merged first.

    the longest piece's length (int32); for every id: score (float32), length (int32), that many bytes

Ids 0, 1, 2 are `<unk>`, `<s>`, `</s>`, then follow the 256 bytes, for characters that are no piece.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as Backend

from tercet.errors import DataError
from tercet.tokenizer.bpe import Tokenizer

_FIRST = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]


def read_pieces(path: str | Path) -> list[tuple[str, float]]:
    """(piece, score) of every id. Raises DataError where the file is something else."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    pieces, at = list[tuple[str, float]](), 4
    try:
        while at < len(data):
            score, size = struct.unpack_from("<fi", data, at)
            if size < 0 or at + 8 + size > len(data):
                raise ValueError(f"a piece of {size} bytes at byte {at}")
            pieces.append((data[at + 8 : at + 8 + size].decode("utf-8"), score))
            at += 8 + size
        if [text.strip("\n") for text, _ in pieces[: len(_FIRST)]] != _FIRST:
            raise ValueError("the first ids are not <unk>, <s>, </s> and the 256 bytes")
    except (struct.error, ValueError) as error:
        raise DataError(f"{path}: not a tokenizer of llama2.c: {error}") from error
    return pieces


def read_llama2c_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer with the ids of llama2.c; a text is read as if a space stood before it.

    Every pair of pieces that makes a piece is a merge, by falling score. The space before a text is not taken away when
    ids become text again, so that a continuation keeps its own.
    """
    pieces = read_pieces(path)
    texts = [*_FIRST, *(text for text, _ in pieces[len(_FIRST) :])]
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        raise DataError(f"{path}: some pieces are there twice")
    learnt = sorted(range(len(_FIRST), len(texts)), key=lambda i: (-pieces[i][1], i))
    known = {texts[i] for i in learnt}
    merges = [
        (text[:cut], text[cut:])
        for text in (texts[i] for i in learnt)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    backend = Backend(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _FIRST[:3]])
    return Tokenizer(backend)
