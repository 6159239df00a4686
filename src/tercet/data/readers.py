"""Files in, rows out: text and JSONL files (plain or gzip), read as streams, with errors that name file and line.

Two kinds of trouble are told apart. A *bad row* is one line that is not what it must be; `BadRows` decides whether it
stops the reading or is counted and skipped. A *bad file* (missing, no text, a gzip that was cut off) always stops the
reading, because nobody knows how much of it is lost.
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
    """What to do with a wrong row: raise (`skip=False`), or count it and keep the first five messages (`skip=True`)."""

    skip: bool = False
    count: int = 0
    messages: list[str] = field(default_factory=list)

    def add(self, message: str) -> None:
        """Record one bad row; raises DataError with this message where bad rows are not skipped."""
        if not self.skip:
            raise DataError(message)
        self.count += 1
        if len(self.messages) < _KEPT_MESSAGES:
            self.messages.append(message)


def expand(paths: Sequence[str]) -> list[Path]:
    """The files that `paths` mean: files as they are, folders searched through, globs such as "data/*.jsonl".

    A folder gives all its .txt, .txt.gz, .jsonl and .jsonl.gz files, at any depth. Order: that of `paths`, sorted by
    name within a folder or glob; a file met twice counts once. Raises DataError where a path or glob means no file.
    """
    found: dict[Path, Path] = {}
    for text in paths:
        if not text:  # an unset shell variable, say; Path("") would be the whole current folder
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
            found.setdefault(path.resolve(), path)
    if not found:
        raise DataError("no input files were named; give at least one file, folder or glob")
    return list(found.values())


def _inside(folder: Path) -> list[Path]:
    files = (path for path in folder.rglob("*") if path.name.endswith(TEXT_SUFFIXES + ROW_SUFFIXES) and path.is_file())
    return sorted(files, key=lambda path: path.as_posix())


def _nothing_found(text: str, given: Path) -> str:
    wanted = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
    if given.is_dir():
        return f"{text}: the folder holds no data file; wanted files that end in {wanted}"
    if glob.has_magic(text):
        return f"{text}: the pattern matches no file; check it, and quote it if the shell changes it"
    return f"{text}: there is no such file or folder; check the spelling (the current folder is {Path.cwd()})"


def _opened(path: Path) -> BinaryIO:
    """Open for reading bytes, unpacked where the name ends in .gz."""
    return cast(BinaryIO, gzip.open(path, "rb")) if path.name.endswith(".gz") else path.open("rb")


def _unreadable(where: str, error: Exception) -> DataError:
    """The error for a file that cannot be read on, from one of `_READ_ERRORS`."""
    if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile):
        return DataError(
            f"{where}: cannot be read ({error.strerror or error}); check that it exists and is yours to read"
        )
    return DataError(
        f"{where}: damaged or cut-off gzip file ({error}); fetch or write it again, or drop .gz from the name of a plain file"
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines, split at line feeds only (JSON may hold U+2028); DataError where the file cannot be read on."""
    number = 0
    try:
        with _opened(path) as file:
            for number, line in enumerate(file, 1):
                yield number, line.removeprefix(_BOM) if number == 1 else line
    except _READ_ERRORS as error:
        raise _unreadable(f"{path}:{number + 1}" if number else str(path), error) from error


def file_hashes(*inputs: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file that the inputs mean, by its path: what a run was made from."""
    files = [file for paths in inputs if paths for file in expand(paths)]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def rows(path: Path, bad: BadRows) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ("file:line", row) for each line of a JSONL file; blank lines are passed over, a BOM is tolerated.

    Bad rows: invalid UTF-8 or JSON, a row that is no JSON object, half of a surrogate pair (no UTF-8 can hold it).
    Raises DataError for those unless `bad.skip`, and always for a file that cannot be read or a damaged gzip.
    """
    if path.name.endswith(TEXT_SUFFIXES):
        raise DataError(
            f"{path}: found a text file where rows are wanted; give a .jsonl file with one JSON object per line"
        )
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
        if b"\\u" in line:  # only an escape can bring in half a surrogate pair
            json.dumps(row, ensure_ascii=False).encode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {line[error.start]:#04x} at {error.start}); save the file as UTF-8"
        ) from error
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise DataError(
            f"{where}: {half} is half of a surrogate pair and no character; escape the whole pair or write UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        hint = "write the whole object on one line, and nothing else"
        raise DataError(f"{where}: invalid JSON: {error.msg} at column {error.colno}; {hint}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: invalid JSON: {error}") from error
    if not isinstance(row, dict):
        hint = "write one object per line, not an array" if isinstance(row, list) else "write {...}"
        raise DataError(f"{where}: wanted a JSON object, found {json_type(row)}; {hint}")
    return row


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def json_type(value: object) -> str:
    """A JSON value's type, as the messages call it: "a string", "a list", ..."""
    names = {
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def text_field(row: Mapping[str, Any], key: str, where: str, default: str | None = None) -> str:
    """The string under `key`; `default` where the key is missing or null. Raises DataError if it is no string."""
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        found = json_type(value) if key in row else "no such key"
        raise DataError(f'{where}: "{key}" must be a string, found {found}')
    return value


def name_field(row: Mapping[str, Any], key: str, where: str, default: str = "") -> str:
    """As `text_field`, for identifiers and times: whole numbers count as text too."""
    value = row.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return text_field(row, key, where, default)


def row_id(where: str) -> str:
    """An id for a row without one, from "path/to/folder/file.jsonl:3" to "folder/file.jsonl:3".

    Only the last two parts, so that a document's split does not change with the place from which a command is run.
    """
    path, _, line = where.rpartition(":")
    return f"{_short(Path(path))}:{line}"


def _short(path: Path) -> str:
    return "/".join(path.absolute().parts[-2:])


def stem(path: Path) -> str:
    """A data file's name without folder and ending: "stories" for "data/stories.jsonl.gz"."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def parsed_rows(
    paths: Sequence[str], bad: BadRows, parse: Callable[[dict[str, Any], str], T]
) -> Iterator[tuple[str, T]]:
    """Yield ("file:line", parse(row, "file:line")) for all rows of all files; `parse` raises DataError for a bad row.

    Raises DataError too if there was no row at all, or no good one.
    """
    files = expand(paths)
    return parsed((row for path in files for row in rows(path, bad)), bad, parse, _names(files))


def parsed(
    found: Iterable[tuple[str, dict[str, Any]]], bad: BadRows, parse: Callable[[dict[str, Any], str], T], names: str
) -> Iterator[tuple[str, T]]:
    """As `parsed_rows`, for rows (place, row) from elsewhere; `names` says in the error what they are from."""
    bad_before, any_good = bad.count, False
    for where, row in found:
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

    A row may also have "source", "id" and "language". The source is the argument where given, else the row's own, else
    the file's stem. Bad rows: no "text", or one that is empty or only white space (an empty text file likewise).
    Raises DataError for these unless `bad.skip`, and always for a file that is no text, or if no document was found.
    """
    files = expand(paths)
    bad_before, found = bad.count, False
    for path in files:
        for document in _text_document(path, bad, source) if _is_text(path) else _row_documents(path, bad, source):
            found = True
            yield document
    if not found:
        raise DataError(_no_rows(_names(files), bad, bad_before))


def _is_text(path: Path) -> bool:
    if path.name.endswith(TEXT_SUFFIXES + ROW_SUFFIXES):
        return path.name.endswith(TEXT_SUFFIXES)
    wanted = ", ".join(TEXT_SUFFIXES + ROW_SUFFIXES)
    raise DataError(f"{path}: unknown kind of file; wanted a name that ends in {wanted}")


def _text_document(path: Path, bad: BadRows, source: str | None) -> Iterator[Document]:
    try:
        with _opened(path) as file:
            data = file.read().removeprefix(_BOM)
    except _READ_ERRORS as error:
        raise _unreadable(str(path), error) from error
    if (at := data.find(b"\0")) >= 0:
        raise DataError(f"{path}: no text (a NUL byte at {at}); give a text file in UTF-8")
    try:
        text = data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8 (byte {data[error.start]:#04x}); save the file as UTF-8") from error
    if not text.strip():
        bad.add(f"{path}: empty, or only white space; fill the file or leave it out")
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
    """Write one JSON object per line (packed where the name ends in .gz) and return how many.

    The file appears whole or not at all: it is written under a temporary name, synced, and renamed. The same rows give
    the same bytes. Raises DataError for a row that JSON cannot hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    count = 0
    try:
        with temporary.open("wb") as file:
            # No name and no time in the gzip header: they would make equal data differ.
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
