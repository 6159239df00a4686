"""Exported folders in Hugging Face transformers: logits, scores, ids and chat form are tercet's own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")
from helpers import write_world
from tercet import import_model
from tercet.data.types import Message
from tercet.inference.language_model import TransformerLM
from tercet.interop.huggingface import export_model
from tercet.interop.stage import ImportConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import render, render_prompt
from tercet.training.load import load_language_model, load_reward_model
from tercet.training.run import Run
from test_import import PIECES, SCORES, write_model, write_tokenizer

CHAT = (Message("system", "Be brief."), Message("user", "Anna, how much is 2 + 2?"), Message("assistant", "It is 4."))
TEXTS = ["Anna has 3 apples.\n", " Übermäßig naïve!", "3 + 4 = 7\n4 + 4 = 8\n", "", "日本語 apples"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Run, Path]]:
    """Kind of model → (run, exported folder)."""
    folder = tmp_path_factory.mktemp("export")
    world = write_world(folder)
    tuned, judge = world.run("sft", "tuned"), world.run("reward", "judge")
    write_model(folder / "model.bin")
    write_tokenizer(folder / "tokenizer.bin", list(zip(PIECES, SCORES)))
    files = ImportConfig(model=str(folder / "model.bin"), tokenizer=str(folder / "tokenizer.bin"))
    runs = {"qwen3": tuned, "reward": judge, "llama": import_model(files, folder / "llama")}
    return {name: (run, export_model(run, folder / f"hf-{name}")) for name, run in runs.items()}


def load(folder: Path, kind: str = "AutoModelForCausalLM") -> Any:
    import transformers

    model, info = getattr(transformers, kind).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info  # nothing missing, nothing left over
    return model.eval()


def load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_logits_are_equal(folders: dict[str, tuple[Run, Path]], kind: str) -> None:
    run, folder = folders[kind]
    ours, theirs = load_language_model(run), load(folder)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(ours.config.vocab_size, (3, ours.config.context_length), generator=generator)
    with torch.no_grad():
        a, b = ours(tokens), theirs(tokens).logits
    assert b.std() > 0.01
    torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_ids_and_texts_are_equal(folders: dict[str, tuple[Run, Path]], kind: str) -> None:
    run, folder = folders[kind]
    ours, theirs = Tokenizer.load(run.path), load_tokenizer(folder)
    for text in TEXTS:
        ids = ours.encode(text)
        assert theirs.encode(text, add_special_tokens=False) == ids
        assert theirs.encode(text) == [ours.endoftext, *ids]
        assert theirs.decode(ids) == ours.decode(ids)
    assert len(theirs) == ours.vocab_size
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.endoftext, ours.im_end, ours.pad)


@pytest.mark.parametrize("kind", ["qwen3", "reward"])
def test_the_chat_template_gives_the_ids_of_the_renderer(folders: dict[str, tuple[Run, Path]], kind: str) -> None:
    run, folder = folders[kind]
    ours, theirs = Tokenizer.load(run.path), load_tokenizer(folder)

    def ids(conversation: tuple[Message, ...], **how: Any) -> list[int]:
        messages = [{"role": m.role, "content": m.content} for m in conversation]
        return list(theirs.apply_chat_template(messages, tokenize=True, return_dict=False, **how))

    whole = render(ours, CHAT).tokens
    assert ids(CHAT) == (whole[:-1] if kind == "reward" else whole)  # a judge's text ends with the end token
    for prompt in (CHAT[:2], CHAT[1:2], (*CHAT, Message("user", "And 3 + 3?"))):
        assert ids(prompt, add_generation_prompt=True) == render_prompt(ours, prompt)


def test_scores_are_equal_but_for_the_offset(folders: dict[str, tuple[Run, Path]]) -> None:
    run, folder = folders["reward"]
    ours, theirs = load_reward_model(run), load(folder, "AutoModelForSequenceClassification")
    tokenizer = load_tokenizer(folder)
    for answer in ("It is 4.", "4", "It is 5. I think."):
        messages = [{"role": "user", "content": CHAT[1].content}, {"role": "assistant", "content": answer}]
        tokens = torch.tensor([tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False)])
        with torch.no_grad():
            a, b = ours(tokens)[0, -1], theirs(tokens).logits[0, 0] + theirs.config.tercet_score_offset
        torch.testing.assert_close(a, b, atol=1e-4, rtol=0)


def test_greedy_continuations_are_equal(folders: dict[str, tuple[Run, Path]]) -> None:
    for kind in ("qwen3", "llama"):
        run, folder = folders[kind]
        ours, theirs, tokenizer = TransformerLM.of_run(run.path), load(folder), load_tokenizer(folder)
        tokens = tokenizer("a", return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            done = theirs.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens["input_ids"].shape[1] :]
        text = tokenizer.decode(done, skip_special_tokens=True)
        assert ours.generate_until([("a", ())], max_new_tokens=8) == [text]


def test_a_folder_that_transformers_saved_again_is_the_same(
    folders: dict[str, tuple[Run, Path]], tmp_path: Path
) -> None:
    run, folder = folders["qwen3"]
    load(folder).save_pretrained(tmp_path / "again")
    shutil.copy(folder / "tokenizer.json", tmp_path / "again")
    ours, theirs = load_language_model(run), load(tmp_path / "again")
    with torch.no_grad():
        torch.testing.assert_close(
            ours(torch.arange(40)[None]), theirs(torch.arange(40)[None]).logits, atol=1e-4, rtol=0
        )
