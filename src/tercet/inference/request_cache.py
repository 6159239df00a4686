"""The request cache: finished requests of an evaluation, one JSON line each. A killed evaluation continues from it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tercet.errors import ConfigError
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer


def fingerprint(model: Transformer, tokenizer: Tokenizer) -> str:
    """Return the SHA-256 of shape, weights and tokenizer: besides the request, results depend only on these."""
    digest = hashlib.sha256(f"{model.config}{tokenizer.fingerprint()}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().view(-1).cpu().numpy().tobytes())
    return digest.hexdigest()


HEAD = b'{"key": "'  # the start of every line


class RequestCache:
    """A file of results by key. Without a path, nothing is stored.

    A line that was cut off when the process was killed is removed, and its request is computed again. Raises
    ConfigError if the file is not a request cache; the file is then unchanged.
    """

    def __init__(self, path: str | Path | None, model: str = "") -> None:
        self.path = None if path is None else Path(path)
        self._model = model
        self._known: dict[str, Any] = {}
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            written = self.path.read_bytes() if self.path.exists() else b""
            if not HEAD.startswith(written[: len(HEAD)]):
                raise ConfigError(f"--cache {self.path}: the file is not a request cache; name a new file")
            if written and not written.endswith(b"\n"):
                os.truncate(self.path, written.rfind(b"\n") + 1)
        except OSError as error:
            raise ConfigError(f"--cache {self.path}: the file cannot be read or written: {error}") from error
        for line in written.split(b"\n"):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._known[row["key"]] = row["result"]

    def key(self, kind: str, *request: Any) -> str:
        """Return the key of a request: a hash of the model, the kind of request and its contents."""
        text = json.dumps([self._model, kind, *request], ensure_ascii=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def get(self, key: str) -> Any | None:
        """Return the stored result for `key`, or None."""
        return self._known.get(key)

    def put(self, results: Mapping[str, Any]) -> None:
        """Append results to the file; when this returns, a killed process does not lose them."""
        if self.path is None or not results:
            return
        self._known.update(results)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps({"key": k, "result": v}) + "\n" for k, v in results.items()))
