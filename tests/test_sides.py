"""The train/held-out split: a prompt is on one side only, and an overlap of named files is logged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers import World, write_rows, write_world
from tercet.data.types import Message
from tercet.errors import DataError
from tercet.posttraining.held_out import split_key


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("sides"))
    made.make_parents("annotate")
    return made


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_variants_of_a_question_are_one_question() -> None:
    variants = [(Message("user", text),) for text in ("What is 1 + 1?", " what  is 1 + 1?\n", "WHAT IS 1 + 1?")]
    assert len({split_key(prompt) for prompt in variants}) == 1
    assert split_key(variants[0]) != split_key((Message("system", "What is 1 + 1?"),))
    assert split_key(variants[0]) != split_key((*variants[0], Message("assistant", "2")))


def test_the_annotator_keeps_a_prompt_on_one_side(world: World) -> None:
    file = world.folder / "twice.jsonl"
    write_rows(
        file,
        ({"prompt": f"How much is {i % 5} + 1?", "answers": ["1"], "id": f"row/{i}"} for i in range(40)),
    )
    run = world.run("annotate", "twice", questions=(str(file),), heldout_share=0.5)
    train, heldout = (
        {str(r["prompt"]) for r in rows(run.path / "rankings" / f"{n}.jsonl")} for n in ("train", "heldout")
    )
    assert train
    assert heldout
    assert not train & heldout


def test_one_question_alone_is_refused_and_the_reason_said(world: World) -> None:
    chats = [json.loads(line) for line in Path(world.path("chats.jsonl")).read_text().splitlines()]
    file = world.folder / "one.jsonl"
    write_rows(file, ([chats[0]] * 10))
    message = "10 conversations with 1 different first prompts, and --heldout-share 0.05: .*name --heldout"
    with pytest.raises(DataError, match=message):
        world.run("sft", "one", data=(str(file),))


@pytest.mark.parametrize("verb", ["sft", "reward", "dpo"])
def test_named_heldout_files_that_training_has_too_are_counted(world: World, verb: str) -> None:
    data = world.config(verb).data
    run = world.run(verb, f"{verb}-overlap", heldout=data, steps=1)
    count = len(Path(data[0]).read_text().splitlines())
    assert run.manifest["heldout_overlap"] == count
    assert f"warning: {count} of {count} held-out rows" in (run.path / "log.txt").read_text()
    assert "heldout_overlap" not in world.run(verb, f"{verb}-apart", steps=1).manifest
