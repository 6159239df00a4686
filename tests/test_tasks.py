"""Properties that every registered task must have, and the parts from which tasks are made."""

from __future__ import annotations

import random
import re
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring.scorers import scorer_of
from tercet.evaluation.task import Item, PromptTemplate, Task, find, from_questions, question_of, register, registered
from tercet.microworld.documents import documents
from tercet.microworld.facts import FACTS

NAMES = sorted(registered())
CODE = {name for name in NAMES if find(name).kind == "code"}


def answered(task: Task, item: Item, text: str) -> float:
    """Return the score of the answer `text`; for a choice, whether it is the right one."""
    return float(text == item.answers[0]) if task.kind == "choice" else scorer_of(task.metric)(question_of(item), text)


def some(task: Task, items=None) -> list[Item]:
    """Return all items, or a few of a task whose items each need a process."""
    items = list(task.items if items is None else items)
    return random.Random(0).sample(items, 4) if task.name in CODE else items


def test_there_is_a_task_of_every_kind():
    assert {"classification", "multiple_choice", "translation", "question_answering", "cloze"} <= set(NAMES)
    assert {"generation", "code", "dialogue"} <= set(NAMES)
    assert {find(n).kind for n in NAMES} == {"choice", "free", "code"}
    abilities = {find(n).ability for n in NAMES}
    assert {
        "fluency",
        "knowledge",
        "in-context learning",
        "reasoning",
        "code",
        "languages",
        "instruction following",
    } == abilities


@pytest.mark.parametrize("name", NAMES)
def test_gold_answers_score_one(name):
    task = find(name)
    assert len(task.items) >= 18
    for item in some(task):
        assert answered(task, item, item.answers[0]) == 1.0, item
    for item in task.examples[:2]:
        assert answered(task, item, item.answers[0]) == 1.0, item


@pytest.mark.parametrize("name", NAMES)
def test_shuffled_answers_score_at_chance(name):
    task, rng = find(name), random.Random(1)
    pools = defaultdict(list)
    for item in task.items:
        pools[item.choices if task.kind == "choice" and name != "fluency" else item.ability].append(item)
    got = by_chance = count = 0.0
    for items in list(pools.values())[: 2 if name in CODE else None]:
        for _ in range(1 if name in CODE else max(2, 2000 // len(items))):
            pairs = list(zip(items, rng.sample(items, len(items))))
            pairs = rng.sample(pairs, min(3, len(pairs))) if name in CODE else pairs
            if name == "fluency":  # every item has choices of its own: the shuffled answer is a side
                got += sum(item.rights == other.rights for item, other in pairs)
            else:
                got += sum(answered(task, item, other.answers[0]) for item, other in pairs)
            # by counting which answers are the same, not by asking the metric
            same = sum(a.answers[0] in b.answers for a in items for b in items) / len(items) ** 2
            count, by_chance = count + len(pairs), by_chance + (0.5 if name == "fluency" else same) * len(pairs)
    assert got / count == pytest.approx(by_chance / count, abs=0.05 if name not in CODE else 0.4)
    assert got / count < 0.6
    if task.kind == "choice":
        assert task.guessing() == pytest.approx(by_chance / count, abs=0.12)


@pytest.mark.parametrize("name", NAMES)
def test_splits_are_disjoint_and_ids_unique(name):
    task = find(name)
    assert len({i.id for i in task.items}) == len(task.items)
    if name != "fluency":
        assert not {i.input for i in task.items} & {e.input for e in task.examples}
        assert len(task.examples) >= 8
        assert len({i.input for i in task.items}) == len(task.items)


@pytest.mark.parametrize("name", NAMES)
def test_prompts_never_contain_the_answer(name):
    task = find(name)
    for form in (task.form, *task.formats):
        for item in task.items:
            hidden = replace(
                item, answers=("@@", *item.answers[1:]), choices=("@@", "##") if item.choices else (), test="%%"
            )
            prompt = form.prompt(item.input, [])
            # nothing but the input can reach the prompt ...
            assert form.prompt(hidden.input, []) == prompt
            # ... the input does not give it away where it is no story or list ...
            if not task.open_book:
                tail = form.question(item.input)
                assert not re.search(rf"(?<!\w){re.escape(item.answers[0].strip())}(?!\w)", tail), (
                    tail,
                    item.answers[0],
                )
        if task.examples:
            for item in task.items[:5]:
                assert item.input not in [e.input for e in task.draw(min(4, len(task.examples)), 0, item)]


def test_the_page_says_truly_what_the_microworlds_text_holds():
    """docs/measurements/evaluation.md: some tasks ask what the text states, the others what it lacks."""
    text = "\n".join(d.text for d in documents(1, 300))  # not the documents that were counted
    line = {
        "translation": lambda i: f"{i.input} => {i.answers[0]}\n",
        "cloze": lambda i: f"{i.input} {i.answers[0]}.",
        "fluency": lambda i: i.answers[0].removesuffix("."),
        "mapping": lambda i: f"{i.input} => {i.answers[0]}",
    }
    page = (Path(__file__).parents[1] / "docs" / "measurements" / "evaluation.md").read_text(encoding="utf-8")
    table = page.split("known by construction")[1].split("\n\n")[1]
    held_out = {"arithmetic", "question_answering", "dialogue", "fluency", "instructions", "code", "mapping"}
    for name in NAMES:
        assert f"`{name}`" in table
        matches = sum(line.get(name, lambda i: i.input)(i) in text for i in find(name).items)
        if name in held_out:
            assert matches == 0, name
        elif name in line:
            assert matches > len(find(name).items) / 5, name
    for row in table.splitlines()[2:]:
        said = [int(n) for n in re.findall(r"\d+", row.rpartition(" of ")[2])]
        named = re.findall(r"`(\w+)`", row.split("|")[1])
        assert said == [len(find(n).items) for n in named]
        assert row.split("|")[3].strip().startswith("0 of") is (set(named) <= held_out)
    # every fact that cloze asks is stated, if of things in other words ("A book is made of paper.")
    stated = {s for fact in FACTS for s in fact.sentences()}
    missing = [i for i in find("cloze").items if f"{i.input} {i.answers[0]}." not in stated]
    assert len(missing) == 12
    assert all(f"A{i.input.removeprefix('The')} {i.answers[0]}." in stated for i in missing)


@pytest.mark.parametrize("name", NAMES)
def test_forms_join_where_the_words_do(name):
    task = find(name)
    for form in (task.form, *task.formats):
        item = task.items[0]
        prompt, answer = form.prompt(item.input, []), form.answer(item.answers[0])
        whole = form.description + form.template.replace("{input}", item.input).replace("{output}", item.answers[0])
        assert prompt + answer == whole
        assert not prompt.endswith(" ")


def test_the_lectures_prompts_come_out_verbatim():
    form = find("translation").form
    examples = [("sea otter", "loutre de mer"), ("peppermint", "menthe poivrée"), ("plush giraffe", "girafe peluche")]
    assert form.prompt("cheese", []) == "Translate English to French:\ncheese =>"
    assert form.prompt("cheese", examples[:1]) == "Translate English to French:\nsea otter => loutre de mer\ncheese =>"
    assert form.prompt("cheese", examples) == (
        "Translate English to French:\nsea otter => loutre de mer\npeppermint => menthe poivrée\n"
        "plush giraffe => girafe peluche\ncheese =>"
    )
    assert (
        PromptTemplate().prompt("Who wrote Hamlet?", [("2 + 2?", "4")]) == "Q: 2 + 2?\nA: 4\n\nQ: Who wrote Hamlet?\nA:"
    )
    assert form.answer("fromage") == " fromage"


def test_examples_are_nested_and_differ_by_seed():
    task = find("classification")
    four, eight = task.draw(4, 3), task.draw(8, 3)
    assert eight[:4] == four
    assert task.draw(4, 4) != four
    with pytest.raises(ConfigError, match="only 18 examples"):
        task.draw(19, 0)


def test_labels_of_examples():
    task = find("classification")
    drawn = task.draw(18, 0)
    gold, wrong, mixed = (task.labelled(drawn, labels, 0) for labels in ("gold", "wrong", "random"))
    assert [o for _, o in gold] == [e.answers[0] for e in drawn]
    assert all(o != e.answers[0] and o in task.labels for (_, o), e in zip(wrong, drawn))
    right = [sum(o == e.answers[0] for (_, o), e in zip(task.labelled(drawn, "random", s), drawn)) for s in range(60)]
    assert sum(right) / 60 / 18 == pytest.approx(1 / 6, abs=0.04)
    assert [i for i, _ in mixed] == [e.input for e in drawn]
    free = find("translation")
    shown = free.labelled(free.draw(5, 0), "wrong", 0)
    assert all(o != e.answers[0] for (_, o), e in zip(shown, free.draw(5, 0)))


def test_limits_keep_items_of_the_task():
    task = find("cloze")
    fewer = task.limited(7, seed=1)
    assert len(fewer.items) == 7
    assert set(fewer.items) < set(task.items)
    assert task.limited(0) is task


def test_questions_of_a_file_become_a_task():
    from tercet.data.types import Message, Question

    one = Question((Message("user", "What is 2 + 2?"),), ("4", "four"), "sums", "a")
    other = Question((Message("user", "What is 3 + 3?"),), ("6",), "sums", "b")
    task = from_questions("mine", [one], [one, other], PromptTemplate(), 8)
    assert [e.id for e in task.draw(1, 0, task.items[0])] == ["b"]
    with pytest.raises(ConfigError, match="2 shots, but there are only 1 examples of 'sums'"):
        task.draw(2, 0, task.items[0])
    assert task.by_ability
    assert scorer_of(task.metric)(question_of(task.items[0]), " Four.") == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "essay"}, "kind 'essay'"),
        ({"form": PromptTemplate("", "{output} {input}")}, "must end with"),
        ({"name": "two words"}, "without spaces"),
    ],
)
def test_impossible_tasks_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(find("cloze"), **change)


@pytest.mark.parametrize(
    ("kind", "item", "message"),
    [
        ("choice", Item("1", "x", ("a",), ("b", "c")), "not among the choices"),
        ("choice", Item("1", "x", ("a",), ("a",)), "at least two choices"),
        ("free", Item("1", "x", ()), "no answer"),
        ("code", Item("1", "x", ("a",)), '"test"'),
    ],
)
def test_wrong_items_are_named(kind, item, message):
    with pytest.raises(DataError, match=message):
        _ = Task("t", kind, lambda: [item]).items


def test_names_are_unique_and_unknown_ones_get_a_suggestion():
    with pytest.raises(ConfigError, match="did you mean 'cloze'"):
        find("clozze")
    with pytest.raises(ConfigError, match="already a task"):
        register(replace(find("cloze"), version=2))
