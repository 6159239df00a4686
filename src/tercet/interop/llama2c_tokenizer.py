"""Reader of llama2.c's tokenizer files: BPE of SentencePiece, as pieces with scores; the best pair is merged first.

    the longest piece's length (int32); for every id: score (float32), length (int32), that many bytes

Ids 0, 1 and 2 are `<unk>`, `<s>` and `</s>`. Then come the 256 bytes, for characters that are not pieces.
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
    """Return (piece, score) of every id. Raises DataError if the file cannot be read or has another format."""
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    pieces, start = list[tuple[str, float]](), 4
    try:
        while start < len(data):
            score, size = struct.unpack_from("<fi", data, start)
            if size < 0 or start + 8 + size > len(data):
                raise ValueError(f"a piece of {size} bytes at byte {start}")
            pieces.append((data[start + 8 : start + 8 + size].decode("utf-8"), score))
            start += 8 + size
        if [text.strip("\n") for text, _ in pieces[: len(_FIRST)]] != _FIRST:
            raise ValueError("the first ids are not <unk>, <s>, </s> and the 256 bytes")
    except (struct.error, ValueError) as error:
        raise DataError(f"{path}: not a tokenizer of llama2.c: {error}") from error
    return pieces


def read_llama2c_tokenizer(path: str | Path) -> Tokenizer:
    """Return the tokenizer with the ids of llama2.c; it puts a space before every text.

    Every pair of pieces that forms a piece is a merge, in the order of falling scores. Decoding keeps the space in
    front, because a continuation needs its own. Raises DataError if the file cannot be read or has another format.
    """
    pieces = read_pieces(path)
    texts = [*_FIRST, *(text for text, _ in pieces[len(_FIRST) :])]
    ids = {text: i for i, text in enumerate(texts)}
    if len(ids) < len(texts):
        raise DataError(f"{path}: some pieces occur twice; wanted every piece once")
    learned = sorted(range(len(_FIRST), len(texts)), key=lambda i: (-pieces[i][1], i))
    known = {texts[i] for i in learned}
    merges = [
        (text[:cut], text[cut:])
        for text in (texts[i] for i in learned)
        for cut in range(1, len(text))
        if text[:cut] in known and text[cut:] in known
    ]
    backend = Backend(models.BPE(vocab=ids, merges=merges, unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    backend.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in _FIRST[:3]])
    return Tokenizer(backend)
