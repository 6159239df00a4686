"""Read and write text and JSONL files (plain or gzip) as streams; errors name the file and the line.

Two kinds of errors are distinguished. A *bad row* is one malformed line; `BadRows` decides whether it stops reading or
is counted and skipped. A *bad file* (missing, not text, a truncated gzip) always stops reading, because it is unknown
how much of it is lost.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar, cast

from tercet.data.types import Document
from tercet.errors import DataError

TEXT_SUFFIXES = (".txt", ".txt.gz")
ROW_SUFFIXES = (".jsonl", ".jsonl.gz")
_KEPT_MESSAGES = 5
_BOM = b"\xef\xbb\xbf"
_READ_ERRORS = (OSError, EOFError, zlib.error)  # a bad gzip file is an OSError too

T = TypeVar("T")


@dataclass
class BadRows:
    """Raises for each bad row (`skip=False`), or counts it and keeps the first five messages (`skip=True`)."""

    skip: bool = False
    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Record one bad row; raises DataError with this message unless bad rows are skipped."""
        if not self.skip:
            raise DataError(message)
        self.count += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)


def expand(paths: Sequence[str]) -> list[Path]:
    """Return the files that `paths` name: files, folders and globs such as "data/*.jsonl".

    A folder yields all its .txt, .txt.gz, .jsonl and .jsonl.gz files, at any depth. Order: that of `paths`, sorted by
    name within a folder or glob; a file that is named twice counts once. Raises DataError if a path or glob matches no
    file.
    """
    files: dict[Path, Path] = {}
    for text in paths:
        if not text:  # for example an unset shell variable; Path("") would be the whole current folder
            raise DataError('an input path is empty (""); give a file, folder or glob')
        given = Path(text).expanduser()
        if given.exists():  # before the glob: a real file may have "[" in its name
            matches = _inside(given) if given.is_dir() else [given]
        else:
            hits = (Path(hit) for hit in sorted(glob.glob(str(given), recursive=True)))
            matches = [file for hit in hits for file in (_inside(hit) if hit.is_dir() else [hit])]
        if not matches:
            raise DataError(_nothing_found(text, given))
        for path in matches:
            files.setdefault(path.resolve(), path)
    if not files:
        raise DataError("no input files were given; give at least one file, folder or glob")
    return list(files.values())


def _inside(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.name.endswith(TEXT_SUFFIXES + ROW_SUFFIXES) and path.is_file())
    return sorted(files, key=lambda path: path.as_posix())


def _nothing_found(text: str, given: Path) -> str:
    if given.is_dir():
        suffixes = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
        return f"{text}: the folder holds no data file; wanted files that end in {suffixes}"
    if glob.has_magic(text):
        return f"{text}: the pattern matches no file; check it, and put it in quotes if the shell changes it"
    return f"{text}: there is no such file or folder; check the spelling (the current folder is {Path.cwd()})"


def _opened(path: Path) -> BinaryIO:
    """Open a file for reading bytes, decompressed if the name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def _unreadable(where: str, error: Exception) -> DataError:
    """Return the error for a file that cannot be read any further, from one of `_READ_ERRORS`."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return DataError(
            f"{where}: cannot be read ({error.strerror or error}); check that it exists and that you may read it"
        )
    return DataError(
        f"{where}: damaged or truncated gzip file ({error}); fetch or write it again, or remove .gz from the name if "
        "the file is not compressed"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (number, line), split at line feeds only (JSON may contain U+2028); DataError for an unreadable file."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(_BOM) if number == 1 else line
    except _READ_ERRORS as error:
        raise _unreadable(f"{path}:{number + 1}" if number else str(path), error) from error


def file_hashes(*inputs: Sequence[str]) -> dict[str, str]:
    """Return path → SHA-256 for every file that the inputs name (files, folders, globs)."""
    files = [file for paths in inputs if paths for file in expand(paths)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows(path: Path, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) for each line of a JSONL file; blank lines are skipped, and a BOM is allowed.

    Bad rows: invalid UTF-8 or JSON, a row that is not a JSON object, half of a surrogate pair (UTF-8 cannot encode it).
    Raises DataError for those unless `bad.skip`, and always for a file that cannot be read or a damaged gzip.
    """
    if path.name.endswith(TEXT_SUFFIXES):
        raise DataError(f"{path}: found a text file, wanted rows; give a .jsonl file with one JSON object per line")
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = _parse_line(line, where)
        except DataError as error:
            bad.add(str(error))
        else:
            yield where, row


def _parse_line(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
        if b"\\u" in line:  # half a surrogate pair can only come from an escape
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start}); save the file as UTF-8"
        ) from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where}: {half} is half of a surrogate pair, not a character; escape the whole pair or write UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        hint = "write each object on one line, with nothing else on it"
        raise DataError(f"{where}: invalid JSON: {error.msg} at column {error.colno}; {hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON: {error}") from error
    if not isinstance(row, dict):
        hint = "write one object per line, not an array" if isinstance(row, list) else "write an object: {...}"
        raise DataError(f"{where}: wanted a JSON object, found {json_type(row)}; {hint}")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def json_type(value: object) -> str:
    """Return the type of a JSON value as error messages name it: "a string", "a list", …"""
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
    names |= {list: "a list", dict: "an object", type(None): "null"}
    return names.get(type(value), type(value).__name__)


def text_field(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    """Return the string under `key`, or `default` if it is missing or null; raises DataError if it is not a string."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise DataError(f'{where}: "{key}" must be a string, found {json_type(value) if key in row else "no such key"}')
    return value


def name_field(row: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    """Return the string under `key` as `text_field` does; a whole number is converted (for identifiers and times)."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(row, key, where, default)


def row_id(where: str) -> str:
    """Return an id for a row that has none: "folder/file.jsonl:3" for "path/to/folder/file.jsonl:3".

    Only the last two parts of the path are used, so that a document's split does not depend on the current folder.
    """
    path, _, line = where.rpartition(":")
    return f"{_short(Path(path))}:{line}"


def _short(path: Path) -> str:
    return "/".join(path.absolute().parts[-2:])


def stem(path: Path) -> str:
    """Return a data file's name without folder and suffixes: "stories" for "data/stories.jsonl.gz"."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def parsed_rows(
    paths: Sequence[str], bad: BadRows, parse: Callable[[dict[str, Any], str], T]
) -> Iterator[tuple[str, T]]:
    """Yield ("file:line", parse(row, "file:line")) for all rows of all files; `parse` raises DataError for a bad row.

    Raises DataError also if there is no good row at all.
    """
    files = expand(paths)
    return parsed((row for path in files for row in rows(path, bad)), bad, parse, _names(files))


def parsed(
    placed_rows: Iterable[tuple[str, dict[str, Any]]],
    bad: BadRows,
    parse: Callable[[dict[str, Any], str], T],
    names: str,
) -> Iterator[tuple[str, T]]:
    """Yield (where, parse(row, where)) for given rows (where, row); `names` names their source in errors.

    Raises DataError as `parsed_rows` does.
    """
    bad_before, any_good = bad.count, False
    for where, row in placed_rows:
        try:
            item = parse(row, where)
        except DataError as error:
            bad.add(str(error))
            continue
        any_good = True
        yield where, item
    if not any_good:
        raise DataError(_no_rows(names, bad, bad_before))


def _names(files: Sequence[Path]) -> str:
    return ", ".join(str(path) for path in files[:5]) + (f" and {len(files) - 5} more" if len(files) > 5 else "")


def _no_rows(names: str, bad: BadRows, bad_before: int) -> str:
    if skipped := bad.count - bad_before:
        return f"{names}: all {skipped} rows are bad. The first bad row: {bad.messages[0]}"
    return f"{names}: empty, no rows at all; give files with at least one row"


def read_documents(paths: Sequence[str], bad: BadRows, source: str | None = None) -> Iterator[Document]:
    """Yield the documents of text files (one each) and JSONL files (one per row, under "text").

    A row may also have "source", "id" and "language". The source is the argument if given, else the row's own, else
    the file's stem. Bad rows have no "text", or an empty or blank one; so is an empty text file.
    Raises DataError for these unless `bad.skip`, and always for a file that is not text, or if there is no document.
    """
    files = expand(paths)
    bad_before, any_good = bad.count, False
    for path in files:
        for document in _text_document(path, bad, source) if _is_text(path) else _row_documents(path, bad, source):
            any_good = True
            yield document
    if not any_good:
        raise DataError(_no_rows(_names(files), bad, bad_before))


def _is_text(path: Path) -> bool:
    if path.name.endswith(TEXT_SUFFIXES + ROW_SUFFIXES):
        return path.name.endswith(TEXT_SUFFIXES)
    suffixes = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
    raise DataError(f"{path}: unknown kind of file; wanted a name that ends in {suffixes}")


def _text_document(path: Path, bad: BadRows, source: str | None) -> Iterator[Document]:
    try:
        with _opened(path) as file:
            data = file.read().removeprefix(_BOM)
    except _READ_ERRORS as error:
        raise _unreadable(str(path), error) from error
    if (at := data.find(b"\0")) >= 0:
        raise DataError(f"{path}: not a text file (NUL byte at position {at}); give a text file in UTF-8")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from error
    if not text.strip():
        bad.add(f"{path}: empty, or only white space; leave the file out")
        return
    yield Document(text, source or stem(path), _short(path))


def _row_documents(path: Path, bad: BadRows, source: str | None) -> Iterator[Document]:
    for where, row in rows(path, bad):
        try:
            text = text_field(row, "text", where)
            if not text.strip():
                raise DataError(f'{where}: "text" is empty, or only white space; remove the row')
            document = Document(
                text,
                source or text_field(row, "source", where, stem(path)),
                name_field(row, "id", where, row_id(where)),
                text_field(row, "language", where, "en"),
            )
        except DataError as error:
            bad.add(str(error))
        else:
            yield document


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    """Write one JSON object per line (compressed if the name ends in .gz) and return the number of rows.

    The file is written under a temporary name, synced and renamed, so that it is never incomplete. The same rows give
    the same bytes. Raises DataError for a row that JSON cannot represent.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("wb") as file:
            # The gzip header gets no name and no time: they would make files of equal data differ.
            packed = gzip.GzipFile("", "wb", fileobj=file, mtime=0) if path.name.endswith(".gz") else nullcontext(file)
            with packed as out:
                for count, row in enumerate(rows, 1):
                    out.write(_to_line(row, f"{path}: row {count}"))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _to_line(row: Mapping[str, Any], where: str) -> bytes:
    try:
        return json.dumps(dict(row), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: cannot be written as JSON in UTF-8: {error}") from error
