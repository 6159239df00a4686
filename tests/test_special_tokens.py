"""A tokenizer with other spellings of special tokens: all code uses their roles, and none relies on a spelling."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import jinja2
import pytest
from tokenizers import Tokenizer as Backend

import tercet
from tercet.data.types import Message
from tercet.errors import CheckpointError, ConfigError
from tercet.inference.chat import answer_params
from tercet.interop.huggingface import tokenizer_config, tokenizer_json
from tercet.model.config import ModelConfig
from tercet.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, train_tokenizer
from tercet.tokenizer.chat_template import answer_text, chat_template, render, render_prompt
from tercet.tokenizer.special import CHATML, LLAMA, SpecialTokens

OTHER = SpecialTokens("<|begin_of_text|>", "<|it's|>", "<|eot_id|>", "<|right\\pad|>", "<|blank|>")
TALK = (Message("user", "Say <|eot_id|> and <|im_end|>."), Message("assistant", "No."))


@pytest.fixture(scope="module")
def other() -> Tokenizer:
    return train_tokenizer(["Say no and yes.", "user assistant"] * 9, 290, OTHER)


def test_roles_have_ids_and_text_never_becomes_one(other: Tokenizer) -> None:
    ids = [other.endoftext, other.im_start, other.im_end, other.pad, other.mask]
    assert [other.token(i) for i in ids] == list(astuple(OTHER))
    assert other.special_ids == set(ids)
    assert len(other.special_ids) == 5
    for token in (*astuple(OTHER), *SPECIAL_TOKENS):
        assert not {*other.encode(token)} & other.special_ids
        assert other.decode(other.encode(token)) == token
    assert other.decode(ids) == ""


def test_saved_and_loaded_it_is_the_same(other: Tokenizer, tmp_path: Path) -> None:
    """The `tokenizers` library, with which other programs read the file, ignores the roles."""
    other.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path)
    assert again.special == OTHER
    assert (again.fingerprint(), again.to_json()) == (other.fingerprint(), other.to_json())
    assert again.im_end == other.im_end == Backend.from_file(str(tmp_path / "tokenizer.json")).token_to_id("<|eot_id|>")
    roles = {t["content"]: t["roles"] for t in json.loads(other.to_json())["added_tokens"]}
    assert roles["<|eot_id|>"] == ["turn_end"]


def test_one_token_may_have_two_roles(tmp_path: Path) -> None:
    shared = replace(OTHER, padding=OTHER.mask)
    tokenizer = train_tokenizer(["text"], 260, shared)
    tokenizer.save(tmp_path / "tokenizer.json")
    assert Tokenizer.load(tmp_path).special == shared
    assert (tokenizer.pad, len(tokenizer.special_ids)) == (tokenizer.mask, 4)
    with pytest.raises(ConfigError, match="wanted at least 260"):
        train_tokenizer(["text"], 259, shared)


def test_known_spellings_are_written_without_roles(tokenizer: Tokenizer, tmp_path: Path) -> None:
    assert tokenizer.special == CHATML
    assert '"roles"' not in tokenizer.to_json()
    llama = train_tokenizer(["text"], 259, LLAMA)
    llama.save(tmp_path / "tokenizer.json")
    assert '"roles"' not in llama.to_json()
    assert Tokenizer.load(tmp_path).special == LLAMA
    assert not LLAMA.turns
    assert OTHER.turns


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"<|eot_id|>": ["end"]}, "the role 'end' of <|eot_id|> is unknown"),
        ({"<|blank|>": ["mask", "padding"]}, "the role 'padding' of <|blank|> is unknown or given twice"),
        ({"<|blank|>": []}, "no token has the role mask"),
    ],
)
def test_roles_that_are_wrong_are_refused(
    other: Tokenizer, tmp_path: Path, roles: dict[str, list[str]], message: str
) -> None:
    whole = json.loads(other.to_json())
    for token in whole["added_tokens"]:
        token["roles"] = roles.get(token["content"], token["roles"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(whole))
    with pytest.raises(CheckpointError) as told:
        Tokenizer.load(tmp_path)
    assert message in str(told.value)


def test_a_spelling_that_the_vocabulary_lacks_is_refused(other: Tokenizer) -> None:
    backend = Backend.from_str(other.to_json())
    with pytest.raises(CheckpointError, match=r"without the special tokens <\|endoftext\|>, <\|im_start\|>"):
        Tokenizer(backend)
    with pytest.raises(CheckpointError, match="without the special tokens <mask>; train one"):
        Tokenizer(backend, replace(OTHER, mask="<mask>"))


def test_conversations_and_answers(other: Tokenizer) -> None:
    ids = render(other, TALK).tokens
    assert [i for i in ids if i in other.special_ids] == [other.im_start, other.im_end] * 2
    assert ids[: len(render_prompt(other, TALK[:1]))] == render_prompt(other, TALK[:1])
    assert answer_text(other, [*other.encode("No."), other.im_end]) == ("No.", True)
    assert answer_params(other, 5, temperature=0.0).stop_ids == (other.im_end, other.endoftext)


def test_the_exported_template_spells_what_the_renderer_does(other: Tokenizer) -> None:
    def spelled(ids: list[int]) -> str:
        return "".join(other.token(i) for i in ids)

    messages = [{"role": m.role, "content": m.content} for m in TALK]
    made = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string
    assert made(chat_template(OTHER)).render(messages=messages) == spelled(render(other, TALK).tokens)
    prompt = made(chat_template(OTHER)).render(messages=messages[:1], add_generation_prompt=True)
    assert prompt == spelled(render_prompt(other, TALK[:1]))
    config = tokenizer_config(other, ModelConfig(other.vocab_size), reward=True)
    names = [config[name] for name in ("bos_token", "eos_token", "pad_token")]
    assert names == [OTHER.begin_of_text, OTHER.turn_end, OTHER.padding]
    answer = made(config["chat_template"]).render(messages=messages)
    assert answer + "\n" == spelled(render(other, TALK).tokens)
    assert '"roles"' not in json.dumps(tokenizer_json(other))  # transformers would print a line for each
    encoded = Backend.from_str(json.dumps(tokenizer_json(other))).encode("Say no.").ids
    assert encoded == [other.endoftext, *other.encode("Say no.")]


def literals(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Return all strings of a file except docstrings."""
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.lineno, node.value


def test_no_spelling_of_a_special_token_stands_outside_the_tokenizer() -> None:
    source = Path(tercet.__file__).parent
    tokens = {*astuple(CHATML), *astuple(LLAMA)}
    files = {
        f"{file.relative_to(source)}:{line}": text
        for file in source.rglob("*.py")
        for line, text in literals(ast.parse(file.read_text()))
        if any(token in text for token in tokens)
    }
    assert files, "the tokenizer's own spellings are files by this search"
    assert {name for name in files if not name.startswith(("tokenizer/", "interop/llama2c_tokenizer.py"))} == set()
