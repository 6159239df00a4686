"""Suites, contamination, and the sentence that says who is better."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tercet.cli.show import suite_table
from tercet.data.readers import BadRows
from tercet.errors import ConfigError, DataError
from tercet.evaluation.compare import compare
from tercet.evaluation.contamination import Contamination, contamination, ngram_length, words
from tercet.evaluation.suites import evaluate_tasks, open_suites, text_of
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.statistics.significance import clustered
from test_asking import Fake
from test_loaders import request_row, requests

# -- contamination ----------------------------------------------------------------------------------------------------


def naive(items, training, n):
    """By the definition: which items share a run of n words with between 1 and 10 documents."""
    documents = [" " + " ".join(words(t)) + " " for t in training]
    dirty = set()
    for id, text in items.items():
        w = words(text)
        for i in range(len(w) - n + 1):
            held = sum(f" {' '.join(w[i : i + n])} " in d for d in documents)
            if 0 < held <= 10:
                dirty.add(id)
    return dirty


def test_contamination_agrees_with_its_definition():
    rng = np.random.default_rng(0)
    vocabulary = [f"w{i}" for i in range(6)]
    text = lambda n: " ".join(rng.choice(vocabulary, n))  # noqa: E731
    items = {str(i): text(rng.integers(3, 12)) for i in range(60)}
    training = [text(30) for _ in range(30)]
    for n in (3, 4, 5):
        found = contamination({"t": items}, iter(training), n)["t"]
        assert found.dirty == naive(items, training, n)
        assert found.short == {i for i, t in items.items() if len(t.split()) < n}
    assert 0 < len(contamination({"t": items}, training, 5)["t"].dirty) < 60


def test_the_training_text_is_read_once_for_all_tasks():
    rng = np.random.default_rng(1)
    vocabulary = [f"w{i}" for i in range(4)]
    text = lambda n: " ".join(rng.choice(vocabulary, n))  # noqa: E731
    # of other lengths, so that each task has n-grams of its own
    tasks = {str(size): {f"{size}/{i}": text(size + i % 3) for i in range(40)} for size in (8, 10, 13, 10_0)}
    training = [text(400) for _ in range(12)]
    training += [items[next(iter(items))] for items in tasks.values()]  # each has an item that is surely held
    begun = []

    def read():
        begun.append(1)
        yield from training

    found = contamination(tasks, read())
    assert begun == [1]
    assert [found[name].n for name in tasks] == [8, 10, 13, 13]
    for name, items in tasks.items():
        assert found[name].dirty == naive(items, training, found[name].n)
        assert found[name] == contamination({name: items}, training)[name]
        assert found[name].dirty


def test_planted_items_are_found_whatever_their_case_and_punctuation():
    said = "The quick brown fox jumps over the lazy dog, and then it sleeps all day."
    items = {"a": said, "b": said.replace("fox", "cat"), "c": "too short"}
    found = contamination({"t": items}, [f"Once: {said.upper().replace(',', ' -')} The end."], 8)["t"]
    assert (found.dirty, found.short) == ({"a", "b"}, {"c"})  # b shares "jumps over … then it"
    assert contamination({"t": items}, [said] * 11, 8)["t"].dirty == frozenset()  # a common phrase
    split = found.split(["a", "b", "c"], [1.0, 0.0, 0.0])
    assert split["share"]["value"] == 1.0  # of the two that can be told
    assert (split["clean"]["value"], split["dirty"]["value"], split["too_short"]) == (0.0, 0.5, 1)


def test_clean_and_dirty_items_are_grouped_as_the_score_is():
    ids = [str(n) for n in range(80)]
    groups = [f"d{n // 8}" for n in range(80)]
    scores = [float(n // 8 % 2) for n in range(80)]  # all items of a document alike
    found = Contamination(8, 80, frozenset(ids[40:56]), frozenset(ids[72:])).split(ids, scores, groups)
    clean = [n for n in range(80) if not 40 <= n < 56]
    assert found["clean"] == clustered([scores[n] for n in clean], [groups[n] for n in clean]).to_json()
    assert (found["clean"]["n"], found["dirty"]["n"], found["share"]["n"]) == (8, 2, 9)  # documents, not items
    assert (found["found"], found["told"], found["too_short"]) == (16, 72, 8)
    wide = found["clean"]["high"] - found["clean"]["low"]
    alone = Contamination(8, 80, frozenset(ids[40:56]), frozenset()).split(ids, scores)["clean"]
    assert wide > 1.5 * (alone["high"] - alone["low"])


def test_examples_in_the_contexts_of_olmo_do_not_make_items_dirty(tmp_path):
    shot = "Question: Which animal is the biggest of all that live in the deep sea?\nAnswer: the blue whale"
    last = [
        "Which planet is the nearest one to the sun that we see",
        "Which metal was first worked by men of the north in old times",
    ]
    context = lambda doc: f"{shot}\n\nQuestion: {last[doc]}?\nAnswer:"  # noqa: E731
    rows = [request_row(doc, context(doc), c, 0) for doc in (0, 1) for c in (" iron", " tin")]
    requests(tmp_path / "t" / "mc_1shot" / "requests.jsonl.gz", rows)
    tasks = open_suites((f"olmo={tmp_path}",), (), BadRows())
    (found,) = contamination({t.name: text_of(t) for t in tasks}, [shot]).values()
    assert (found.dirty, found.short) == (frozenset(), frozenset())
    (found,) = contamination({t.name: text_of(t) for t in tasks}, [f"They asked: {last[1]}? Iron."]).values()
    assert found.dirty == {"1"}
    shown = suite_table({"models": {"m": {"suite": evaluate_tasks(Fake(lambda c, t: 0.0), tasks)}}})
    assert next(str(c) for c in shown.columns[0].cells) == "olmo/t/mc_1shot (acc, examples in its contexts, 2 items)"


def test_a_suite_of_many_tasks_prints_its_contamination_by_ability():
    long = "one two three four five six seven eight nine {} end"
    tasks = [
        Task(
            f"{'ab'[n % 2]}/{n}",
            "choice",
            lambda n=n: [Item(f"{n}/{i}", long.format(f"w{n} x{i}"), ("yes",), ("yes", "no")) for i in range(2)],
        )
        for n in range(42)
    ]
    said = [long.format(f"w{n} x1") + " yes" for n in (0, 2, 3)]
    dirty = {
        t.name: Contamination(8, 2, frozenset(i.id for i in t.items if f"{i.input} yes" in said), frozenset())
        for t in tasks
    }
    model = Fake(lambda c, t: 0.0 if ("x0" in c) == ("yes" in t) else -1.0)  # right on the clean ones of the pairs
    table = suite_table({"models": {"m": {"suite": evaluate_tasks(model, tasks, dirty=dirty)}}})
    rows = list(zip(*[[str(c) for c in column.cells] for column in table.columns]))
    assert rows[:6] == [
        ("a, centred", "0.000"), ("  in the training text (0 items too short to tell)", "2 of 42 items"),
        ("  clean items, centred", f"{2 / 21:.3f}"),
        ("b, centred", "0.000"), ("  in the training text (0 items too short to tell)", "1 of 42 items"),
        ("  clean items, centred", f"{1 / 21:.3f}"),
    ]  # fmt: skip


def test_a_suite_never_gives_fewer_examples_than_the_task_says():
    items = [Item(str(n), f"q{n}", ("a",), ("a", "b")) for n in range(4)]
    task = Task("few", "choice", lambda: items, lambda: items[:1], shots=3)  # an item is no example of itself
    with pytest.raises(ConfigError, match="3 shots, but there are only 0 examples"):
        evaluate_tasks(Fake(lambda c, t: 0.0), [task])
    assert Task("none", "choice", lambda: items).shots == 0  # nothing to draw from


def test_length_of_ngrams():
    assert ngram_length([100] * 20) == 13
    assert ngram_length([5] * 20) == 8
    assert ngram_length([10, *[50] * 19]) == 10
    with pytest.raises(ConfigError, match="found no items"):
        ngram_length([])


# -- suites -----------------------------------------------------------------------------------------------------------


def test_a_suite_of_a_model_that_is_always_right():
    tasks = open_suites(("cloze", "translation"), (), BadRows(), limit=12)
    gold = {
        (t.form.prompt(i.input, [(e.input, e.answers[0]) for e in t.draw(t.shots, 0, i)])): i
        for t in tasks
        for i in t.items
    }
    model = Fake(lambda c, t: 0.0 if t.strip() == gold[c].answers[0] else -9.0, lambda p, n: f" {gold[p].answers[0]}")
    found = evaluate_tasks(model, tasks, dirty=contamination({t.name: text_of(t) for t in tasks}, ["nothing of this"]))
    assert found["core"] == pytest.approx(1.0)
    assert found["abilities"] == {"knowledge": pytest.approx(1.0), "languages": pytest.approx(1.0)}
    row = found["tasks"]["cloze"]
    assert (row["items"], row["shots"], len(row["ids"]), len(row["each"]["acc_norm"])) == (12, 0, 12, 12)
    assert row["score"]["low"] == pytest.approx(12 / (12 + 1.959964**2))
    assert row["contamination"]["share"] is None  # all are too short to tell
    assert row["contamination"]["clean"] == row["score"]
    json.dumps(found)


def test_centred_accuracy_of_guesses_is_zero():
    items = [Item(str(i), f"q{i}", ("ab"[i % 2],), ("a", "b"), group=f"document {i // 4}") for i in range(40)]
    task = Task("t", "choice", lambda: items, form=PromptTemplate("", "{input} {output}"), shots=0)
    found = evaluate_tasks(Fake(lambda c, t: 0.0), [task])["tasks"]["t"]
    assert (found["score"]["value"], found["centred"], found["score"]["n"]) == (0.5, 0.0, 10)


def test_a_task_in_two_suites_is_refused():
    with pytest.raises(ConfigError, match="'cloze' is in two"):
        open_suites(("cloze", "microworld"), (), BadRows())


# -- compare ----------------------------------------------------------------------------------------------------------


def test_measures_of_the_same_items_are_not_independent_of_one_another(tmp_path):
    rng = np.random.default_rng(3)
    ps = []
    for trial in range(200):  # two models without a difference; both measures say the same of each item
        a, b = rng.random((2, 40)).round(2)
        row = lambda v: {"ids": [f"q{i}" for i in range(40)], "each": {"x": v.tolist(), "y": v.tolist()}}  # noqa: E731
        file = tmp_path / f"{trial}.json"
        file.write_text(json.dumps({"models": {"a": row(a), "b": row(b)}}))
        found = compare("a", "b", [str(file)])
        ps.append(found["overall"]["p"])
        if trial == 0:
            assert found["measures"]["x"]["p"] == found["overall"]["p"]
            assert "over 2 measures; measures of the same items count together as one" in found["sentence"]
    assert np.mean(np.array(ps) < 0.05) <= 0.05 + 3 * (0.05 * 0.95 / 200) ** 0.5
    seeds = {f"{m}{s}": row(rng.random(40)) for m in "ab" for s in range(3)}
    (tmp_path / "s.json").write_text(json.dumps({"models": seeds}))
    found = compare("a0,a1,a2", "b0,b1,b2", [str(tmp_path / "s.json")])
    assert found["overall"]["p"] == pytest.approx(found["measures"]["x"]["p"])
    assert "the same 40 items" in found["sentence"]


def test_documents_count_as_units_over_seeds_too(tmp_path):
    rng, rejected = np.random.default_rng(4), {"items": [], "documents": []}
    groups = [f"d{i // 10}" for i in range(80)]
    for _ in range(60):  # no difference but by document, the same for every seed: 8 documents, not 80 items
        luck = np.repeat(rng.normal(0, 1, 8), 10)
        models = {f"{m}{s}": luck * (m == "b") + rng.normal(0, 0.3, 80) for m in "ab" for s in range(3)}
        for name, of in (("items", None), ("documents", groups)):
            rows = {}
            for k, v in models.items():
                task = {"metric": "m", "each": {"m": v.tolist()}, "ids": list(range(80)), "groups": of}
                rows[k] = {"suite": {"tasks": {"t": task}}}
            (tmp_path / "s.json").write_text(json.dumps({"models": rows}))
            found = compare("a0,a1,a2", "b0,b1,b2", [str(tmp_path / "s.json")])
            rejected[name].append(found["overall"]["p"] < 0.05)
    assert np.mean(rejected["documents"]) <= 0.05 + 3 * (0.05 * 0.95 / 60) ** 0.5
    assert np.mean(rejected["items"]) > 0.3


def scores_file(path, models):
    def row(tasks):
        return {"suite": {"tasks": {
            name: {"metric": metric, "each": {metric: list(values)}, "ids": list(range(len(values))), "groups": None}
            for name, (metric, values) in tasks.items()
        }}}  # fmt: skip

    path.write_text(json.dumps({"models": {name: row(tasks) for name, tasks in models.items()}}))
    return str(path)


def test_compare_says_who_is_better(tmp_path):
    rng = np.random.default_rng(0)
    a = (rng.random(200) < 0.4).astype(float)
    b = np.maximum(a, (rng.random(200) < 0.3).astype(float))
    file = scores_file(tmp_path / "s.json", {"runs/a": {"t": ("acc", a)}, "runs/b": {"t": ("acc", b)}})
    found = compare("runs/a", "runs/b/", [file])
    assert found["sentence"].startswith(
        f"runs/b/ is better than runs/a: {b.mean():.3f} against {a.mean():.3f} on 200 items"
    )
    wins = int((b > a).sum())  # A never wins: the exact test of a fair coin that fell on one side every time
    assert found["overall"]["p"] == pytest.approx(2 / 2**wins)
    assert compare("runs/b", "runs/a", [file])["sentence"].startswith("runs/a is worse than runs/b")
    same = compare("runs/a", "runs/a", [file])
    assert same["sentence"].startswith("No difference")
    assert "same score on every item" in same["sentence"]


def test_compare_corrects_for_the_number_of_measures_and_minds_the_direction(tmp_path):
    rng = np.random.default_rng(1)
    tasks_a = {f"t{i}": ("acc", (rng.random(60) < 0.5).astype(float)) for i in range(5)} | {
        "bpb": ("bits_per_byte", np.full(60, 2.0))
    }
    tasks_b = {f"t{i}": ("acc", (rng.random(60) < 0.5).astype(float)) for i in range(5)} | {
        "bpb": ("bits_per_byte", np.full(60, 1.5))
    }
    one = scores_file(tmp_path / "a.json", {"a": tasks_a})
    two = scores_file(tmp_path / "b.json", {"b": tasks_b})
    found = compare(one, two, [])
    assert found["measures"]["bpb"]["difference"]["value"] == pytest.approx(0.5)  # fewer bits are better
    assert all(r["p_holm"] >= r["p"] for r in found["measures"].values())
    assert "mean over 6 measures" in found["sentence"]


def test_several_seeds_are_compared_as_seeds(tmp_path):
    rng = np.random.default_rng(2)
    items = rng.normal(0, 1, 100)
    models = {f"a{s}": {"t": ("m", items + rng.normal() + rng.normal(0, 0.1, 100))} for s in range(3)}
    models |= {f"b{s}": {"t": ("m", items + 0.3 + rng.normal() + rng.normal(0, 0.1, 100))} for s in range(3)}
    file = scores_file(tmp_path / "s.json", models)
    found = compare("a0,a1,a2", "b0,b1,b2", [file])
    assert found["sentence"].startswith("No difference can be seen between b0,b1,b2 and a0,a1,a2")
    single = compare("a0", "b0", [file])  # the same data taken as one seed each: certain, and about these runs only
    assert single["overall"]["p"] < 0.001
    assert "another seed of the same training may differ" in single["sentence"]
    with pytest.raises(ConfigError, match="two runs or more"):
        compare("a0", "b0,b1", [file])
    for twice in (("a0,a0", "b0,b1"), ("a0,a1", "b0,a0"), ("a0,./a0", "b0,b1")):
        with pytest.raises(ConfigError, match="named twice"):
            compare(*twice, [file])


def test_what_cannot_be_compared_is_said(tmp_path):
    file = scores_file(
        tmp_path / "s.json",
        {"a": {"t": ("acc", [1.0, 0.0])}, "b": {"u": ("acc", [1.0, 0.0])}, "c": {"t": ("acc", [1.0])}},
    )
    with pytest.raises(ConfigError, match="share no measure"):
        compare("a", "b", [file])
    with pytest.raises(ConfigError, match="on different items"):
        compare("a", "c", [file])
    with pytest.raises(ConfigError, match="no scores of d; the files have a, b, c"):
        compare("a", "d", [file])
    with pytest.raises(ConfigError, match="holds 3 models"):
        compare(file, "a", [file])
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ConfigError, match="not a file that `tercet eval"):
        compare(str(tmp_path / "x.json"), "a", [file])
    (tmp_path / "n.json").write_text(
        '{"models": {"a": {"suite": {"tasks": {"t": {"metric": "acc", "each": {"acc": ["1"]}, "ids": [0]}}}}}}'
    )
    with pytest.raises(DataError, match="score 0 is '1'"):
        compare(str(tmp_path / "n.json"), "a", [file])
    with pytest.raises(ConfigError, match="no scores of a; no file of scores is given"):
        compare("a", "b", [])
    damaged = json.loads(Path(file).read_text())
    damaged["models"]["a"]["suite"]["tasks"]["t"]["ids"].append(7)
    Path(file).write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="found 3 ids and 2 scores"):
        compare("a", "c", [file])


def test_scores_of_another_version_are_not_compared(tmp_path):
    rows = {}
    for name, version, shots in (("a", 1, 4), ("b", 2, 4), ("c", 1, 0)):
        task = {
            "metric": "acc",
            "version": version,
            "shots": shots,
            "each": {"acc": [1.0, 0.0]},
            "ids": ["x", "y"],
            "groups": None,
        }
        rows[name] = {"suite": {"tasks": {"t": task}}}
    (tmp_path / "s.json").write_text(json.dumps({"models": rows}))
    for other in "bc":
        with pytest.raises(ConfigError, match=r"evaluated in different ways \(acc, version 1, "):
            compare("a", other, [str(tmp_path / "s.json")])
