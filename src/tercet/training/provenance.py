"""The provenance of a run: hashes of files, the commit of the source, versions of the libraries."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import platform
import subprocess
from importlib import metadata
from pathlib import Path

LIBRARIES = ("tercet", "torch", "numpy", "tokenizers", "safetensors")
LONGEST_DIFF = 200_000  # characters of an uncommitted change to keep


def file_hash(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def now() -> str:
    """Return the time in UTC as ISO 8601, to the second."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def source_version() -> dict[str, str]:
    """Return the commit of the running source and its uncommitted changes; empty for an installed package."""
    here = Path(__file__).resolve().parent
    if not any((p / ".git").exists() for p in here.parents[:4]):
        return {}

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *args], capture_output=True, text=True, errors="replace", timeout=10
        ).stdout.strip()

    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        return {"commit": git("rev-parse", "HEAD"), "diff": git("diff", "HEAD", "--", "src")[:LONGEST_DIFF]}
    return {}


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries on which results depend."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}}
