"""llama2.c's files: a model and tokenizer written here by hand, and the known answer of a real one."""

from __future__ import annotations

import json
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from tercet import import_model
from tercet.cli.main import app
from tercet.errors import ConfigError, DataError
from tercet.inference.language_model import TransformerLM
from tercet.interop.llama2c_tokenizer import read_llama2c_tokenizer, read_pieces
from tercet.interop.stage import ImportConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render
from tercet.training.load import load_language_model
from tercet.training.run import Run

DIM, HIDDEN, LAYERS, HEADS, KV, SEQ = 24, 20, 2, 4, 2, 16
PIECES = [*" abcé", "ab", " a", "aa", "abc", "aaa", " ab", "bc", "aab", "ca", " aba", "cab", "  ", "bcb", "\u3000"]
SCORES = [-(7.0 * i % 19) for i in range(len(PIECES))]  # in another order than the ids
VOCAB = 259 + len(PIECES)


def write_tokenizer(path: Path, pieces: list[tuple[str, float]]) -> str:
    first = ["<unk>", "\n<s>\n", "\n</s>\n", *(f"<0x{b:02X}>" for b in range(256))]
    every = [(text.encode(), score) for text, score in [*((t, 0.0) for t in first), *pieces]]
    path.write_bytes(struct.pack("<i", 7) + b"".join(struct.pack("<fi", s, len(t)) + t for t, s in every))
    return str(path)


def write_model(path: Path, vocab: int = VOCAB) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    q, kv, c = DIM, KV * DIM // HEADS, DIM // HEADS
    shapes = {
        "emb": (vocab, DIM), "att": (LAYERS, DIM), "q": (LAYERS, q, DIM), "k": (LAYERS, kv, DIM), "v": (LAYERS, kv,
        DIM),
        "o": (LAYERS, DIM, q), "ffn": (LAYERS, DIM), "w1": (LAYERS, HIDDEN, DIM), "w2": (LAYERS, DIM, HIDDEN),
        "w3": (LAYERS, HIDDEN, DIM), "final": (DIM,),
    }  # fmt: skip
    arrays = {k: rng.normal(0, 0.4, s).astype("<f4") for k, s in shapes.items()}
    angles = np.array([[t * 10_000 ** (-2 * i / c) for i in range(c // 2)] for t in range(SEQ)])
    arrays |= {"cos": np.cos(angles).astype("<f4"), "sin": np.sin(angles).astype("<f4")}
    header = struct.pack("<7i", DIM, HIDDEN, LAYERS, HEADS, KV, vocab, SEQ)
    path.write_bytes(header + b"".join(a.tobytes() for a in arrays.values()))
    return arrays


def naive_logits(w: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """llama2.c's forward pass, a position and a head at a time, with pairs of neighbours turned."""
    c = DIM // HEADS

    def norm(x: np.ndarray, gain: np.ndarray) -> np.ndarray:
        return gain * x / math.sqrt(float((x * x).mean()) + 1e-5)

    def turn(x: np.ndarray, t: int) -> np.ndarray:
        out = x.copy()
        for i in range(0, len(x), 2):
            cos, sin = w["cos"][t, (i % c) // 2], w["sin"][t, (i % c) // 2]
            out[i], out[i + 1] = x[i] * cos - x[i + 1] * sin, x[i] * sin + x[i + 1] * cos
        return out

    keys: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    values: list[list[np.ndarray]] = [[] for _ in range(LAYERS)]
    out = []
    for t, token in enumerate(ids):
        x = w["emb"][token].astype(np.float64)
        for layer in range(LAYERS):
            h = norm(x, w["att"][layer])
            q = turn(w["q"][layer] @ h, t)
            keys[layer].append(turn(w["k"][layer] @ h, t))
            values[layer].append(w["v"][layer] @ h)
            heads = []
            for head in range(HEADS):
                part = slice(head // (HEADS // KV) * c, head // (HEADS // KV) * c + c)
                scores = np.array([q[head * c : head * c + c] @ k[part] for k in keys[layer]]) / math.sqrt(c)
                weights = np.exp(scores - scores.max())
                heads.append(sum(p * v[part] for p, v in zip(weights / weights.sum(), values[layer])))
            x = x + w["o"][layer] @ np.concatenate(heads)
            h = norm(x, w["ffn"][layer])
            gate = w["w1"][layer] @ h
            x = x + w["w2"][layer] @ (gate / (1 + np.exp(-gate)) * (w["w3"][layer] @ h))
        out.append(w["emb"] @ norm(x, w["final"]))
    return np.array(out)


def naive_encode(pieces: list[tuple[str, float]], text: str) -> list[int]:
    """llama2.c's encoder: characters, or their bytes; then the best pair is merged until there is none."""
    ids = {p: i for i, (p, _) in enumerate(pieces) if i >= 259}
    out: list[int] = []
    for character in " " + text if text else "":
        out += [ids[character]] if character in ids else [byte + 3 for byte in character.encode()]
    while True:
        best, at = -math.inf, -1
        for i in range(len(out) - 1):
            if out[i] >= 259 <= out[i + 1]:
                joined = ids.get(pieces[out[i]][0] + pieces[out[i + 1]][0])
                if joined is not None and pieces[joined][1] > best:
                    best, at = pieces[joined][1], i
        if at < 0:
            return out
        out[at : at + 2] = [ids[pieces[out[at]][0] + pieces[out[at + 1]][0]]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama2c")
    write_model(folder / "model.bin")
    write_tokenizer(folder / "tokenizer.bin", list(zip(PIECES, SCORES)))
    return folder


@pytest.fixture(scope="module")
def run(files: Path) -> Run:
    return import_model(
        ImportConfig(model=str(files / "model.bin"), tokenizer=str(files / "tokenizer.bin")), files / "run"
    )


def test_logits_are_those_of_the_naive_forward_pass(files: Path, run: Run, tmp_path: Path) -> None:
    model, ids = load_language_model(run), [1, 260, 263, 5, 270, 261, 261, 277, 259]
    assert (model.config.qk_norm, model.config.norm_eps, model.config.num_kv_heads) == (False, 1e-5, KV)
    assert sum(p.numel() for p in model.parameters()) == model.config.parameters()
    with torch.no_grad():
        found = model(torch.tensor([ids]))[0].numpy()
    np.testing.assert_allclose(found, naive_logits(write_model(tmp_path / "same.bin"), ids), atol=1e-4)


@given(text=st.text(alphabet=st.sampled_from([*"abc \néß日\u3000<s>"]), max_size=40))
def test_ids_are_those_of_the_naive_encoder(run: Run, files: Path, text: str) -> None:
    tokenizer = Tokenizer.load(run.path)
    assert tokenizer.encode(text) == naive_encode(read_pieces(files / "tokenizer.bin"), text)
    assert tokenizer.decode(tokenizer.encode(text)) == (" " + text if text else "")


def test_special_tokens_have_their_roles_and_text_never_is_one(run: Run) -> None:
    tokenizer = Tokenizer.load(run.path)
    assert (tokenizer.endoftext, tokenizer.im_start, tokenizer.im_end, tokenizer.pad) == (1, 1, 2, 0)
    assert not tokenizer.special_ids & {*tokenizer.encode("<s>a</s><unk><|endoftext|>")}
    rendered = render(tokenizer, ())
    assert rendered.tokens == []


def test_every_command_takes_an_imported_run(run: Run, files: Path, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({"prompt": "ab", "answers": ["c"]}) + "\n")
    (tmp_path / "text.txt").write_text("abc a cab")
    runner = CliRunner()
    for command, said in [
        (["show", str(run.path)], "tercet import"),
        (["prompt", str(run.path), "--text", "ab", "--max-new-tokens", "4"], "ab"),
        (
            [
                "prompt",
                str(run.path),
                "--questions",
                str(tmp_path / "t.jsonl"),
                "--shots",
                "0",
                "--max-new-tokens",
                "2",
            ],
            "0",
        ),
        (["eval", str(run.path), "--text", str(tmp_path / "text.txt")], "bits per byte"),
        (["tokenizer", "show", str(run.path), "--text", "abc"], "tokens"),
        (["report", str(run.path), "--out", str(tmp_path / "report.html")], "report"),
    ]:
        done = runner.invoke(app, command)
        assert done.exit_code == 0, (command, done.output, done.exception)
        assert said in done.output
    done = runner.invoke(app, ["chat", str(run.path), "--base", "--max-new-tokens", "4"], input="ab\n")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:20], "20 bytes; a llama2.c file begins with 7 integers"),
        (lambda data: data[:-4], "a llama2.c file of this shape has"),
        (lambda data: data[:20] + struct.pack("<i", -VOCAB) + data[24:], "a separate output layer"),
        (lambda data: b"ak42" + data[4:], "not a llama2.c file of version 0"),
        (lambda data: data[:-40] + b"\0" * 40, "the rotary angles have another base; wanted base 10000"),
    ],
)
def test_another_file_is_refused(files: Path, tmp_path: Path, damage: object, said: str) -> None:
    (tmp_path / "model.bin").write_bytes(damage((files / "model.bin").read_bytes()))  # type: ignore[operator]
    config = ImportConfig(model=str(tmp_path / "model.bin"), tokenizer=str(files / "tokenizer.bin"))
    with pytest.raises(DataError, match=said):
        import_model(config, tmp_path / "run")
    assert not (tmp_path / "run" / "run.json").exists()


def test_a_tokenizer_that_is_none_or_another_one_is_refused(files: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.bin").write_bytes((files / "tokenizer.bin").read_bytes()[:-3])
    (tmp_path / "text.bin").write_bytes(b"abcdefghijklmnopqrstuvwxyz")
    twice = write_tokenizer(tmp_path / "twice.bin", [("a", -1.0), ("a", -2.0)])
    other = write_tokenizer(tmp_path / "other.bin", [("a", -1.0)])
    model = str(files / "model.bin")
    for path, said in [("cut.bin", "not a tokenizer"), ("text.bin", "not a tokenizer"), ("none.bin", "cannot be read")]:
        with pytest.raises(DataError, match=said):
            read_llama2c_tokenizer(tmp_path / path)
    with pytest.raises(DataError, match="occur twice"):
        read_llama2c_tokenizer(twice)
    with pytest.raises(DataError, match=r"260 ids, but .* has 278"):
        import_model(ImportConfig(model=model, tokenizer=other), tmp_path / "run")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        import_model(ImportConfig(model=model, tokenizer=other), files)


def known_answer() -> Path:
    folder = os.environ.get("TERCET_DATA")
    if not folder:
        pytest.skip("TERCET_DATA names no folder with known-answer/stories260K.bin")
    return Path(folder) / "known-answer"


def test_a_real_model_writes_its_known_text(tmp_path: Path) -> None:
    folder = known_answer()
    config = ImportConfig(model=str(folder / "stories260K.bin"), tokenizer=str(folder / "tok512.bin"))
    model = TransformerLM.of_run(import_model(config, tmp_path / "run").path)
    expected = (folder / "expected_greedy_200.txt").read_text(encoding="utf-8").removesuffix("\n")
    assert model.generate_until([("", ())], max_new_tokens=200) == [expected.replace("<0x0A>", "\n")]
    pieces = read_pieces(folder / "tok512.bin")
    for text in (expected, "Zoë’s “naïve” café\n\n  aaaaaaa…hhhhh\tthe theeethe 日本 <s>", ""):
        assert model.tokenizer.encode(text) == naive_encode(pieces, text)
