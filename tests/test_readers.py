"""Reading and writing files: paths, rows, documents, splits, and an error for each thing that can be wrong."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tercet.data.readers import BadRows, expand, read_documents, rows, stem, write_jsonl
from tercet.data.splits import check_overlap, drop_overlap, in_split, split
from tercet.data.types import Document
from tercet.errors import ConfigError, DataError


def _write(path: Path, *lines: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def _message(call) -> str:
    with pytest.raises(DataError) as caught:
        call()
    return str(caught.value)


# ---- paths


def test_expand_takes_files_folders_and_globs_in_order_and_once(tmp_path):
    names = ["z.jsonl", "a.txt", "sub/deep/c.jsonl.gz", "sub/b.txt.gz", "notes.md", "sub/d.csv"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    files = expand([str(tmp_path)])
    assert [path.relative_to(tmp_path).as_posix() for path in files] == [
        "a.txt",
        "sub/b.txt.gz",
        "sub/deep/c.jsonl.gz",
        "z.jsonl",
    ]
    assert expand([str(tmp_path / "*.txt"), str(tmp_path / "sub"), str(tmp_path / "a.txt")]) == files[:3]
    assert expand([str(tmp_path / "z.jsonl"), str(tmp_path)])[0] == tmp_path / "z.jsonl"
    assert len(expand([str(tmp_path / "**/*.gz")])) == 2


def test_expand_takes_a_file_whose_name_looks_like_a_glob(tmp_path):
    (tmp_path / "a[1].txt").write_text("x")
    assert expand([str(tmp_path / "a[1].txt")]) == [tmp_path / "a[1].txt"]


@pytest.mark.parametrize("name", ["missing.txt", "*.jsonl", "empty"])
def test_expand_says_which_path_means_no_file(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "there.txt").write_text("x")
    assert name in _message(lambda: expand([str(tmp_path / "there.txt"), str(tmp_path / name)]))


@pytest.mark.parametrize("paths", [[], [""]])
def test_expand_refuses_no_path(paths):
    assert "give" in _message(lambda: expand(paths))


# ---- rows


def test_rows_numbers_lines_and_passes_over_blank_ones_and_a_bom(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \t\n{"a": "\xe2\x80\xa8 \\ud83d\\ude00"}')
    assert list(rows(path, BadRows())) == [(f"{path}:1", {"a": 1}), (f"{path}:4", {"a": "\u2028 😀"})]


def test_rows_reads_gzip_like_plain(tmp_path):
    data = b'{"a": 1}\n{"a": 2}\n'
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data, mtime=0))
    plain, packed = ([row for _, row in rows(tmp_path / name, BadRows())] for name in ("a.jsonl", "a.jsonl.gz"))
    assert plain == packed == [{"a": 1}, {"a": 2}]


BAD_LINES = {
    "cut off": (b'{"a": ', "invalid JSON"),
    "two objects": (b'{"a": 1} {"a": 2}', "invalid JSON"),
    "array": (b"[1, 2]", "one object per line"),
    "string": (b'"text"', "found a string"),
    "NaN": (b'{"a": NaN}', "NaN"),
    "not UTF-8": (b'{"a": "caf\xe9"}', "not UTF-8 (byte 0xe9"),
    "half a pair": (b'{"a": ["\\ud800"]}', "\\ud800 is half"),
    "half a pair in a key": (b'{"\\udc00": 1}', "\\udc00 is half"),
    "NUL byte": (b'{"a": "\x00"}', "invalid JSON"),
    "too deep": (b'{"a":' + b"[" * 200_000, "invalid JSON"),
    "too many digits": (b'{"a": ' + b"1" * 5000 + b"}", "invalid JSON"),
}


@pytest.mark.parametrize(("line", "words"), BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named_or_skipped_and_counted(tmp_path, line, words):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 3}\n')
    message = _message(lambda: list(rows(path, BadRows())))
    assert message.startswith(f"{path}:2: ")
    assert words in message
    bad = BadRows(skip=True)
    assert [row for _, row in rows(path, bad)] == [{"a": 1}, {"a": 3}]
    assert (bad.count, bad.messages) == (1, [message])


def test_only_the_first_five_messages_are_kept(tmp_path):
    path = _write(tmp_path / "a.jsonl", *range(8), {"a": 1})
    bad = BadRows(skip=True)
    assert len(list(rows(path, bad))) == 1
    assert bad.count == 8
    assert [message.split(": ")[0] for message in bad.messages] == [f"{path}:{line}" for line in (1, 2, 3, 4, 5)]


def test_a_cut_off_gzip_stops_the_reading_even_when_bad_rows_are_skipped(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    lines = b"".join(json.dumps({"a": os.urandom(40).hex()}).encode() + b"\n" for _ in range(2000))
    path.write_bytes(gzip.compress(lines, mtime=0)[:-5000])
    got = []
    message = _message(lambda: got.extend(row for row in rows(path, BadRows(skip=True))))
    assert f"{path}:" in message
    assert "truncated gzip" in message
    assert int(message.removeprefix(f"{path}:").split(":")[0]) > 100


def test_a_plain_file_named_gz_and_a_missing_file_are_errors(tmp_path):
    (tmp_path / "a.jsonl.gz").write_text('{"a": 1}\n')
    assert "gzip" in _message(lambda: list(rows(tmp_path / "a.jsonl.gz", BadRows())))
    assert "No such file" in _message(lambda: list(rows(tmp_path / "b.jsonl", BadRows())))


def test_rows_refuses_a_text_file(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    assert "a.txt" in _message(lambda: list(rows(tmp_path / "a.txt", BadRows())))


# ---- documents


def test_documents_of_text_files_and_rows(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfOne.\r\nTwo.\n")
    (folder / "b.txt.gz").write_bytes(gzip.compress("Drei: ä".encode(), mtime=0))
    _write(folder / "c.jsonl", {"text": "x"}, {"text": "y", "source": "s", "id": 7, "language": "de", "more": None})
    assert list(read_documents([str(folder)], BadRows())) == [
        Document("One.\nTwo.\n", "a", "web/a.txt"),
        Document("Drei: ä", "b", "web/b.txt.gz"),
        Document("x", "c", "web/c.jsonl:1"),
        Document("y", "s", "7", "de"),
    ]
    assert {document.source for document in read_documents([str(folder)], BadRows(), source="mine")} == {"mine"}


def test_ids_do_not_depend_on_the_current_folder(tmp_path, monkeypatch):
    _write(tmp_path / "web" / "c.jsonl", {"text": "x"})
    (tmp_path / "web" / "a.txt").write_text("x")
    far = [document.id for document in read_documents([str(tmp_path)], BadRows())]
    monkeypatch.chdir(tmp_path / "web")
    assert (
        [document.id for document in read_documents(["a.txt", "c.jsonl"], BadRows())]
        == far
        == ["web/a.txt", "web/c.jsonl:1"]
    )


@pytest.mark.parametrize(
    "row", [{}, {"text": None}, {"text": 3}, {"text": ""}, {"text": " \n\t"}, {"text": "x", "id": []}]
)
def test_a_wrong_document_is_named_or_skipped(tmp_path, row):
    path = _write(tmp_path / "a.jsonl", {"text": "good"}, row)
    assert _message(lambda: list(read_documents([str(path)], BadRows()))).startswith(f"{path}:2: ")
    bad = BadRows(skip=True)
    assert [document.text for document in read_documents([str(path)], bad)] == ["good"]
    assert bad.count == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"ab\0c", "a.txt: not a text file (NUL byte at position 2)"),
        ("a.txt", b"fine\ncaf\xe9", "a.txt:2: not UTF-8 (byte 0xe9)"),
        ("a.txt", "hällo".encode("utf-16"), "a.txt"),
        ("a.txt.gz", gzip.compress(b"hello " * 99, mtime=0)[:-4], "truncated gzip"),
        ("a.csv", b"a,b", "unknown kind of file"),
    ],
)
def test_a_file_that_is_no_text_stops_the_reading(tmp_path, name, data, words):
    (tmp_path / name).write_bytes(data)
    assert words in _message(lambda: list(read_documents([str(tmp_path / name)], BadRows(skip=True))))


def test_an_empty_text_file_is_a_bad_row(tmp_path):
    (tmp_path / "a.txt").write_text(" \n")
    (tmp_path / "b.txt").write_text("b")
    assert "a.txt: empty" in _message(lambda: list(read_documents([str(tmp_path)], BadRows())))
    assert [document.text for document in read_documents([str(tmp_path)], BadRows(skip=True))] == ["b"]


def test_no_documents_at_all_names_the_empty_files(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n\n")
    message = _message(lambda: list(read_documents([str(tmp_path)], BadRows())))
    assert "a.jsonl" in message
    assert "b.jsonl" in message
    assert "no rows" in message
    _write(tmp_path / "c.jsonl", {"text": ""}, {"text": ""})
    assert "all 2 rows are bad" in _message(lambda: list(read_documents([str(tmp_path)], BadRows(skip=True))))


# ---- writing


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=9) | st.integers() | st.none() | st.booleans())),
    st.sampled_from(["x/a.jsonl", "x/a.jsonl.gz"]),
)
def test_written_rows_read_back(tmp_path, items, name):
    path = tmp_path / name
    assert write_jsonl(path, items) == len(items)
    assert [row for _, row in rows(path, BadRows())] == items
    assert [entry.name for entry in path.parent.iterdir() if entry.name.endswith("tmp")] == []


def test_writing_is_deterministic_and_keeps_letters(tmp_path):
    data = [{"text": "ä 😀"}]
    for name in ("one.jsonl.gz", "two.jsonl.gz", "plain.jsonl"):
        write_jsonl(tmp_path / name, data)
    packed = (tmp_path / "one.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "two.jsonl.gz").read_bytes()
    assert packed[4:8] == bytes(4)  # the header's time
    assert gzip.decompress(packed) == (tmp_path / "plain.jsonl").read_bytes() == '{"text": "ä 😀"}\n'.encode()


@pytest.mark.parametrize("value", ["\ud800", float("nan"), {1, 2}])
@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, value, name):
    write_jsonl(tmp_path / name, [{"a": "old"}])
    assert "row 2" in _message(lambda: write_jsonl(tmp_path / name, [{"a": "new"}, {"a": value}]))
    assert [row for _, row in rows(tmp_path / name, BadRows())] == [{"a": "old"}]
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(("name", "expected"), [("a.jsonl.gz", "a"), ("b.c.txt", "b.c"), ("d.jsonl", "d"), ("e", "e")])
def test_stem(name, expected):
    assert stem(Path("x") / name) == expected


# ---- splits


def test_in_split_is_uniform_nested_and_salted():
    ids = [f"doc/{number}" for number in range(4000)]
    small, large = ({id for id in ids if in_split(id, share)} for share in (0.05, 0.2))
    assert small < large
    assert 140 < len(small) < 260  # 200 expected, standard deviation 14
    assert 700 < len(large) < 900  # 800 expected, standard deviation 25
    other = {id for id in ids if in_split(id, 0.2, salt="other")}
    assert 100 < len(other & large) < 230  # 160 expected of independent splits
    assert not any(in_split(id, 0.0) for id in ids)
    assert all(in_split(id, 1.0) for id in ids)


def test_in_split_never_changes():
    # Written down once: a change would move held-out documents of old runs into training.
    assert [number for number in range(40) if in_split(f"d{number}", 0.1)] == [5, 9, 21]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_in_split_refuses_a_share_outside_0_to_1(share):
    with pytest.raises(ConfigError, match="heldout"):
        in_split("a", share)


def test_split_parts_all_documents_in_order():
    given = [Document(str(number), "s", f"id{number}") for number in range(50)]
    train, heldout = split(given, 0.3)
    assert sorted(train + heldout, key=given.index) == given
    assert train == [document for document in given if not in_split(document.id, 0.3)]
    assert train
    assert heldout


def test_overlap_counts_whole_texts_and_long_lines():
    long = "The quick brown fox jumps over the lazy dog, and then over the cat."
    train = iter([f"intro\n  {long.upper()}\noutro", "Same  text\n here", "never"])
    heldout = iter([f"{long}\nanother ending", "same text here", "same text HERE", "new", "x" * 80])
    overlap = check_overlap(train, heldout)
    assert (overlap.texts, overlap.duplicates) == (5, 2)
    assert (overlap.lines, overlap.shared_lines) == (2, 1)
    assert overlap.duplicate_share == pytest.approx(0.4)
    assert overlap.line_share == pytest.approx(0.5)
    assert check_overlap([long], [long], n=len(long) + 1).lines == 0
    assert check_overlap([], []).line_share == 0.0


def test_drop_overlap_keeps_only_new_texts():
    def document(text: str) -> Document:
        return Document(text, "s", text)

    kept = drop_overlap(
        [document("Seen Once"), document("b")], [document(" seen\nonce"), document("new"), document("B ")]
    )
    assert kept == [document("new")]
