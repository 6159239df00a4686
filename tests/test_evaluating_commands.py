"""`tercet eval --suite`, `compare`, `winrate` and `prompt` as typed: output, files, errors, and continuing."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from helpers import TERCET, write_rows, write_world
from tercet.inference.language_model import TransformerLM
from test_cli import MADE, type_in
from test_import import known_answer

OWN = {"data": ["sums.jsonl"], "input": "{q}", "answers": "{a}", "examples": ["more.jsonl"], "shots": 1}
OWN |= {"template": "{input} {output}", "separator": "\n"}
SUITE = "--suite sums.json --suite bigger.json --threads 1"
KILLS = """
import os, signal
from tercet.inference.request_cache import RequestCache

real, left = RequestCache.put, int(os.environ.get("KILL_AT", "0"))

def put(self, results):
    global left
    left -= 1
    if left == 0:
        with self.path.open("ab") as file:
            file.write(b'{"key": "0123')  # a line that is cut off
        os.kill(os.getpid(), signal.SIGKILL)
    real(self, results)

RequestCache.put = put
"""
QUESTIONS = "--questions tasks.jsonl --limit 12 --max-new-tokens 6 --threads 1"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two language models, a reward model, tasks of one's own, and files with one thing wrong each."""
    folder = write_world(tmp_path_factory.mktemp("evaluating")).folder
    rows = [{"q": f"{n} + 1 =", "a": str(n + 1), "b": n % 2, "id": f"sum/{n}", "of": f"d{n // 4}"} for n in range(32)]
    write_rows(folder / "sums.jsonl", rows[:24])
    write_rows(folder / "more.jsonl", rows[24:])
    write_rows(folder / "same.jsonl", [{**row, "id": "same"} for row in rows])
    (folder / "empty.jsonl").write_text("")
    choice = {**OWN, "kind": "choice", "choices": ["odd", "even"], "answers": "{b}", "group": "{of}"}
    for name, task in {
        "sums": {"name": "sums", "max_new_tokens": 4, "id": "{id}", **OWN},
        "bigger": {"name": "bigger", "id": "{id}", **choice},
        "few": {"name": "few", **OWN, "shots": 9},
        "none": {"name": "none", **OWN, "data": ["empty.jsonl"]},
        "same": {"name": "same", "id": "{id}", **OWN, "data": ["same.jsonl"]},
        "unknown": {"name": "unknown", "shosts": 2, **OWN},
        "metric": {"name": "metric", **OWN, "metric": "blue"},
        "blank": {"name": "blank", **choice, "choices": ["", "even"], "answers": "even"},
        "right": {"name": "right", **choice, "choices": ["odd", "odd"], "answers": "odd"},
    }.items():
        (folder / f"{name}.json").write_text(json.dumps(task))
    for name, said in {
        "leaves": "raise SystemExit(0)",
        "breaks": "register(Task('broken', 'free', lambda: 1 / 0))",
        "empties": "register(Task('zero', 'choice', lambda: []))",
        "kills": KILLS,
        "generates": "items = lambda: (Item(str(n), 'a', ('b',)) for n in range(3))\n"
        "register(Task('generated', 'free', items, max_new_tokens=2))",
    }.items():
        (folder / f"{name}.py").write_text(f"from tercet.evaluation.task import Item, Task, register\n{said}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name in ("tokenizer", "pretrain", "sft", "reward"):
            done = type_in(MADE[name].replace("pairs.jsonl", "rankings.jsonl"))
            assert done.code == 0, done.err
        for number in range(3):  # "seeds" of one training
            for run in ("base", "sft"):
                shutil.copytree(f"runs/{run}", f"runs/{run}-{number}")
        done = type_in(f"eval runs/base runs/sft {SUITE} --training-text text.jsonl --out scores.json")
        assert (done.code, done.err) == (0, "")
        Path("printed.txt").write_text(done.out)
    return folder


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in that folder."""
    monkeypatch.chdir(home)
    return home


def models(name: str) -> dict[str, Any]:
    return dict(json.loads(Path(name).read_text())["models"])


# -- eval -------------------------------------------------------------------------------------------------------------


def test_a_suite_prints_and_writes_every_task_with_intervals_and_contamination(here: Path) -> None:
    printed = Path("printed.txt").read_text()
    for text in ("sums (exact_match, 1", "bigger (acc, 1", "in the training text", "clean items", "sums, centred"):
        assert text in printed, text
    for text in ("runs/base", "runs/sft", "all tasks, centred"):
        assert text in printed, text
    assert not re.search(r"^│ , centred", printed, re.MULTILINE)  # a task without an ability goes by its name
    for row in models("scores.json").values():
        sums, bigger = (row["suite"]["tasks"][name] for name in ("sums", "bigger"))
        assert sums["ids"] == [f"sum/{n}" for n in range(24)]
        assert sums["each"]["exact_match"] == [float(v) for v in sums["each"]["exact_match"]]
        assert sums["score"]["value"] == pytest.approx(sum(sums["each"]["exact_match"]) / 24)
        assert bigger["groups"] == [f"d{n // 4}" for n in range(24)]
        assert (sums["score"]["n"], bigger["score"]["n"]) == (24, 6)  # items, and documents
        assert bigger["contamination"]["too_short"] == 24


def test_what_training_holds_of_questions_and_of_held_out_text_stands_beside_their_scores(here: Path) -> None:
    held_out = [json.loads(line)["text"] for line in Path("heldout.jsonl").read_text().splitlines()]
    said = "Is it so or is it not so?"
    questions = [(said, "It is a cat"), (said.replace("not", "no"), "It is no dog"), ("How many?", "6")]
    write_rows(Path("asked.jsonl"), ({"prompt": q, "answers": [a], "ability": "x"} for q, a in questions))
    write_rows(Path("leak.jsonl"), [{"text": held_out[0]}, {"text": "NOT so? It is a cat, they say"}])
    leaked = "--questions asked.jsonl --max-new-tokens 2 --training-text leak.jsonl --threads 1 --out leak.json"
    done = type_in(f"eval runs/base --text heldout.jsonl {leaked}")
    assert (done.code, done.err) == (0, "")
    assert done.out.count("in the training text") == 2
    row = models("leak.json")["runs/base"]
    assert row["contamination"]["too_short"] == 1
    assert (row["contamination"]["found"], row["contamination"]["told"]) == (0, 2)  # seven words are too few
    assert row["contamination"]["clean"]["n"] == 3
    (text,) = row["text_contamination"].values()
    assert text["found"] == 1
    same = [{"id": "x", "text": f"{held_out[0]} {n}"} for n in range(2)]
    write_rows(Path("same-id.jsonl"), same)
    assert (
        type_in("eval runs/base --text same-id.jsonl --training-text leak.jsonl --threads 1 --out doubled.json").code
        == 0
    )
    (both,) = models("doubled.json")["runs/base"]["text_contamination"].values()
    assert both["found"] == 2  # documents of one name
    assert text["told"] + text["too_short"] == len(held_out)
    write_rows(Path("leak.jsonl"), [{"text": "Is it NOT so? It is a cat, they say"}])
    assert type_in(f"eval runs/base {leaked}").code == 0
    found = models("leak.json")["runs/base"]["contamination"]
    assert (found["found"], found["told"], found["clean"]["n"]) == (1, 2, 2)


def test_a_task_in_python_may_make_its_items_one_by_one(here: Path) -> None:
    done = type_in("eval runs/base --suite generated --import generates.py --threads 1 --out generated.json")
    assert (done.code, done.err) == (0, "")
    assert models("generated.json")["runs/base"]["suite"]["tasks"]["generated"]["items"] == 3


ALL_PARTS = "--text heldout.jsonl --questions tasks.jsonl --limit 12 --max-new-tokens 6"
ALL_PARTS += " --reference runs/base --reward runs/reward"


@pytest.mark.parametrize(
    ("line", "at"),
    [
        (f"eval runs/base runs/sft {SUITE} {ALL_PARTS} --training-text text.jsonl", 9),  # within the second model
        (f"eval runs/base runs/sft {SUITE} {ALL_PARTS}", 2),  # within the reference's answers
        ("prompt runs/base --task sums.json --task bigger.json --shots 0,1 --threads 1", 2),  # within the second task
    ],
)
def test_a_command_that_was_killed_ends_with_the_same_numbers_and_repeats_no_request(
    here: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, at: int
) -> None:
    """SIGKILL to a real process while it writes a line of its request cache."""

    def command(name: str) -> str:
        return f"{line} --import kills.py --cache {tmp_path / name}.jsonl --out {tmp_path / name}.json"

    def keys(name: str) -> list[str]:
        return [json.loads(row)["key"] for row in (tmp_path / f"{name}.jsonl").read_text().splitlines()]

    def scores(name: str) -> Any:
        found = json.loads((tmp_path / f"{name}.json").read_text())
        return found["models"] if line.startswith("eval") else found

    assert type_in(command("whole")).code == 0
    killed = subprocess.run(
        [TERCET, *shlex.split(command("parts"))], env={**os.environ, "KILL_AT": str(at)}, timeout=240
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "parts.json").exists()
    lines = (tmp_path / "parts.jsonl").read_text().splitlines()
    assert lines.pop() == '{"key": "0123'
    assert 0 < len(lines) < len(keys("whole"))
    computed: list[int] = []
    for name in ("_score_pass", "_generate_pass"):
        real = getattr(TransformerLM, name)

        def count(self: TransformerLM, work: Any, *rest: Any, real: Any = real) -> Any:
            computed.append(len(work))
            return real(self, work, *rest)

        monkeypatch.setattr(TransformerLM, name, count)
    assert type_in(command("parts")).code == 0
    assert scores("parts") == scores("whole")
    assert sum(computed) == len(keys("whole")) - len(lines)
    assert sorted(keys("parts")) == sorted(keys("whole"))
    assert len(set(keys("parts"))) == len(keys("parts"))
    computed.clear()
    assert type_in(command("parts")).code == 0  # all is known
    assert (computed, scores("parts")) == ([], scores("whole"))


def test_a_cache_serves_the_same_requests_to_the_same_weights_only(here: Path, tmp_path: Path) -> None:
    line = "--text heldout.jsonl --questions tasks.jsonl --limit 4 --max-new-tokens 6 --threads 1"
    cache, size = tmp_path / "shared.jsonl", 0
    for number, settings in enumerate(("", "--seed 1", "--max-new-tokens 5", "--heldout-bytes 99")):
        for run in ("base", "sft"):
            alone, shared = tmp_path / f"alone-{run}{number}.json", tmp_path / f"shared-{run}{number}.json"
            command = f"eval runs/{run} {line} {settings}"
            assert type_in(f"{command} --out {alone}").code == 0
            assert type_in(f"{command} --cache {cache} --out {shared}").code == 0
            assert models(str(shared)) == models(str(alone))
            before, size = size, cache.stat().st_size
            assert size > before  # some requests were new
    assert type_in(f"eval runs/base-0 {line} --cache {cache}").code == 0  # the same weights by another name
    assert cache.stat().st_size == size


def files_here() -> list[str]:
    """What a command may have written; Python's own cache of an imported file is not meant."""
    return sorted(str(p) for p in Path().rglob("*") if "__pycache__" not in p.parts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("eval runs/base --suite microwrld", r"--suite microwrld: no such suite or task; did you mean 'microworld'"),
        ("eval runs/base --suite blimp", r"wanted blimp=PATH"),
        ("eval runs/base --suite blimp=nowhere", r"nowhere: there is no such file"),
        ("eval runs/base --suite olmo=runs", r"runs: found no requests\.jsonl\.gz below it"),
        ("eval runs/base --suite none.json", r"empty\.jsonl: empty, no rows at all"),
        ("eval runs/base --suite nowhere.json", r"nowhere\.json: cannot be read as JSON"),
        ("eval runs/base --suite unknown.json", r"unknown\.json.*shosts.*did you mean 'shots'"),
        ("eval runs/base --suite metric.json --limit 2", r"task 'metric': there is no scorer 'blue'"),
        ("eval runs/base --suite few.json", r"task 'few': 9 shots, but there are only 8 examples to draw from"),
        ("eval runs/base --suite same.json",
         r"task 'same' \(same\.json\): 32 items have the id 'same'; give each its own"),
        ("eval runs/base --suite sums.json --suite sums.json", r"'sums' is in two of the suites"),
        ("eval runs/base --suite blank.json",
         r"sums\.jsonl:1: the choices are \['', 'even'\]; wanted texts that are not empty"),
        ("eval runs/base --suite right.json",
         r"sums\.jsonl:1: the choices are \['odd', 'odd'\]; wanted .* at least one of them wrong"),
        ("eval runs/base --suite x --import leaves.py", r"--import leaves\.py: cannot be imported: SystemExit: 0"),
        ("eval runs/base --suite broken --import breaks.py",
         r"task 'broken': its items cannot be made: ZeroDivisionError"),
        ("eval runs/base --suite zero --import empties.py", r"task 'zero': found no items"),
        ("prompt runs/base --task zero --import empties.py --shots 0", r"task 'zero': found no items"),
        ("prompt runs/base --task sums.json --shots 0,1,0", r"shots is \(0, 1, 0\); wanted each value once"),
        ("eval runs/base --suite sums.json --import nowhere.py", r"--import nowhere\.py: cannot be imported"),
        ("eval runs/base --suite sums.json --training-text nowhere.txt", r"nowhere\.txt: there is no such file"),
        ("eval runs/base --text heldout.jsonl --cache sums.jsonl",
         r"--cache sums\.jsonl: the file is not a request cache"),
        ("eval runs/base --questions tasks.jsonl --cache scores.json",
         r"--cache scores\.json: the file is not a request cache"),
        ("prompt runs/base --text Hi --cache j.jsonl", r"--cache: has no effect on --text; leave it out"),
        ("eval runs/base --suite sums.json --reward runs/reward",
         r"--reward is 'runs/reward', which has no effect without --questions"),
        ("eval runs/base --suite sums.json --cache runs", r"--cache runs: the file cannot be read or written"),
        ("eval runs/base --suite sums.json --out nowhere/scores.json",
         r"--out nowhere/scores\.json: cannot be written: make a writable folder"),
        ("eval runs --suite sums.json", r"runs: not a run directory"),
        ("eval runs/reward --suite sums.json", r"runs/reward is a reward model; wanted a language model"),
        ("eval runs/base ./runs/base/ --suite sums.json", r"runs/base is named twice"),
        ("compare runs/base runs/sft", r"no scores of runs/base; no file of scores is given: .*--scores"),
        ("compare runs/base runs/other --scores scores.json",
         r"no scores of runs/other; the files have runs/base, runs/sft"),
        ("compare scores.json runs/sft --scores scores.json", r"scores\.json holds 2 models"),
        ("compare runs/base runs/sft --scores nowhere.json",
         r"nowhere\.json: not a file that `tercet eval --out` writes"),
        ("compare runs/base runs/sft --scores sums.json", r"sums\.json: not a file that"),
        ("compare runs/base runs/sft --scores tasks.jsonl", r"tasks\.jsonl: not a file that"),
        ("compare runs/base,runs/sft runs/base,runs/sft --scores scores.json", r"a run is named twice"),
        ("compare runs/base, runs/sft --scores scores.json", r"no scores of a run without a name"),
        ("compare runs/base runs/sft --scores scores.json --out ./scores.json",
         r"is one of the inputs and would be overwritten"),
        ("compare runs/base runs/sft --scores scores.json --out runs",
         r"--out runs: cannot be written: it is a folder"),
        (f"winrate runs/base {QUESTIONS}", r"wanted two runs or more"),
        (f"winrate runs/base runs/base-0/../base {QUESTIONS}", r"a run is named twice"),
        (f"winrate runs/base runs/nowhere {QUESTIONS}", r"runs/nowhere: not a run directory"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge oracle",
         r"--judge 'oracle'; wanted a scorer such as exact_match, or reward:RUN"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge reward:runs/sft",
         r"runs/sft is a language model; wanted a reward model, as made by `tercet reward`"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge model:runs", r"runs: not a run directory"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge model:runs/sft",
         r"judge runs/sft: 24 of 24 prompts do not fit.* the context has 64: use fewer"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge http://127.0.0.1:9/v1", r"--judge-model"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge http://127.0.0.1:9/v1 --judge-model m --retries 0",
         r"error: judge: http://127.0.0.1:9/v1/chat"),
        (f"winrate runs/base runs/sft {QUESTIONS} --judge person", r"the input ended after 0 of 12 judgements"),
        (f"winrate runs/base runs/sft {QUESTIONS} --out nowhere/w.json", r"--out nowhere/w\.json: cannot be written"),
        ("winrate runs/base runs/sft --questions empty.jsonl", r"empty\.jsonl: empty, no rows at all"),
        ("prompt runs/nowhere --text Hi", r"runs/nowhere: not a run directory"),
        ("prompt runs/base --text Hi --shots 0 --vary labels --metric f1",
         r"--shots, --vary, --metric: has no effect on --text"),
        ("prompt runs/base --task sums.json --shots 0 --vary labels",
         r"--vary labels: it has no effect here; it needs --shots above 0"),
        ("prompt runs/base --task sums.json --shots 0,4 --orders 9",
         r"--orders 9: it has no effect without --vary order"),
        ("eval runs/base --suite sums.json --cache new.jsonl --out new.jsonl",
         r"--out new\.jsonl: is the file of --cache"),
        ("prompt runs/base --task sums.json --shots 0 --cache n.jsonl --out n.jsonl",
         r"--out n\.jsonl: is the file of --cache"),
        ("prompt runs/base --task sums.json --shots 0,1 --cache n.svg --figure n.svg",
         r"--figure n\.svg: is the file of --cache"),
        (f"winrate runs/base runs/sft {QUESTIONS} --cache n.jsonl --out n.jsonl",
         r"--out n\.jsonl: is the file of --cache"),
        ("prompt runs/base --text Hi --figure f.svg", r"--figure: has no effect on --text"),
        ("prompt runs/base --text Hi --out nowhere/p.json", r"--out nowhere/p\.json: cannot be written"),
        ("prompt runs/base --task mappin --shots 0", r"no task 'mappin'; did you mean 'mapping'"),
        ("prompt runs/base --task sums.json --shots 99", r"99 shots, but there are only 8 examples"),
        ("prompt runs/base --task code --shots 0 --limit 2",
         r"fewer --shots or --max-new-tokens, or a model with a longer context"),
        ("prompt runs/base --task sums.json --metric blue --shots 0", r"there is no scorer 'blue'"),
        ("prompt runs/base --task none.json --shots 0", r"empty\.jsonl: empty, no rows at all"),
        ("prompt runs/base --task sums.json --shots 0 --self-consistency 3", r"give --temperature"),
        ("prompt runs/base --task sums.json --shots 0 --calibrate", r"leave out --calibrate"),
    ],
)  # fmt: skip
def test_a_mistake_ends_with_2_and_one_line_and_nothing_is_printed_before(here: Path, line: str, message: str) -> None:
    if not line.startswith("compare"):
        line += " --threads 1" * ("--threads" not in line)
    before = files_here()
    done = type_in(line)
    assert done.code == 2, (done.out, done.err)
    assert re.search(message, done.err), done.err
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    if "person" not in line:
        assert done.out == ""
    assert files_here() == before


# -- compare ----------------------------------------------------------------------------------------------------------


def test_compare_says_in_a_sentence_who_is_better(here: Path) -> None:
    done = type_in("compare runs/base runs/sft/ --scores scores.json --out compared.json")
    assert (done.code, done.err) == (0, "")
    found = json.loads(Path("compared.json").read_text())
    assert done.out.endswith(found["sentence"] + "\n")
    each = [row["suite"]["tasks"] for row in models("scores.json").values()]
    for name, metric in (("sums", "exact_match"), ("bigger", "acc")):
        a, b = (t[name]["each"][metric] for t in each)
        assert found["measures"][name]["difference"]["value"] == pytest.approx((sum(b) - sum(a)) / 24)
    assert found["measures"]["bigger"]["difference"]["n"] == 6  # documents
    assert found["measures"]["bigger"]["test"] == "randomisation test"
    assert found["measures"]["sums"]["test"] == "McNemar's exact test"
    assert re.search(r"(better|worse) than|No difference between .* can be seen", found["sentence"])
    assert re.search(r"difference -?\d\.\d+ \[-?\d\.\d+, -?\d\.\d+\] \(p = ", found["sentence"])
    if found["overall"]["p"] >= 0.05:
        assert re.search(r"About [\d,]+ items are needed|Both give the same score on every item", found["sentence"])


def test_compare_takes_files_with_one_model_each_and_several_seeds(here: Path) -> None:
    for run in ("base", "sft"):
        assert type_in(f"eval runs/{run} --suite bigger.json --threads 1 --out {run}.json").code == 0
        seeds = " ".join(f"runs/{run}-{n}" for n in range(3))
        assert type_in(f"eval {seeds} --suite bigger.json --threads 1 --out {run}-seeds.json").code == 0
    single = type_in("compare base.json sft.json")
    assert (single.code, single.err) == (0, "")
    assert "another seed of the same training may differ" in single.out
    names = [",".join(f"runs/{run}-{n}" for n in range(3)) for run in ("base", "sft")]
    several = type_in(f"compare {' '.join(names)} --scores base-seeds.json --scores sft-seeds.json")
    assert (several.code, several.err) == (0, "")
    assert "over 3 and 3 seeds and the same 24 items" in several.out
    needed = r"seeds of each are needed|No number of seeds is enough|the same score on every item, with every seed"
    assert bool(re.search(needed, several.out)) is several.out.startswith("No difference can be seen")
    assert type_in("compare base.json sft.json").out == single.out
    other = type_in("eval runs/sft --suite bigger.json --limit 9 --threads 1 --out fewer.json")
    assert other.code == 0
    refused = type_in("compare base.json fewer.json")
    assert (refused.code, "were evaluated on different items" in refused.err) == (2, True)


# -- winrate ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("judge", ["rubric", "f1", "reward:runs/reward", "model:runs/wide"])
def test_win_rates_of_three_models(here: Path, wide: str, judge: str) -> None:
    line = f"winrate runs/base runs/sft runs/sft-0 {QUESTIONS} --judge {judge} --out won.json"
    done = type_in(line)
    assert (done.code, done.err) == (0, "")
    assert all(word in done.out for word in ("win rate", "Bradley–Terry ratings", "runs/sft-0"))
    found = json.loads(Path("won.json").read_text())
    assert [(r["model"], r["against"]) for r in found["pairs"]] == [
        ("runs/sft", "runs/base"), ("runs/sft-0", "runs/base"), ("runs/sft-0", "runs/sft")
    ]  # fmt: skip
    for row in found["pairs"]:
        assert row["win_rate"]["value"] == pytest.approx(sum(row["wins"]) / 12)
        assert 0 <= row["length_controlled"]["low"] <= row["length_controlled"]["high"] <= 1
        assert (row["changed_with_order"] is None) is not judge.startswith("model")
    copies = found["pairs"][2]  # the same weights and seed: the same answers
    assert copies["wins"] == [0.5] * 12
    assert found["pairs"][0]["wins"] == found["pairs"][1]["wins"]
    assert sum(s["value"] for s in found["strengths"].values()) == pytest.approx(0, abs=1e-9)
    first = Path("won.json").read_text()
    assert type_in(line).code == 0
    assert Path("won.json").read_text() == first


def test_a_person_judges(here: Path) -> None:
    done = type_in(
        f"winrate runs/base runs/sft {QUESTIONS} --limit 2 --judge person --out won.json", stdin="what\n1\n=\n"
    )
    assert (done.code, done.err) == (0, "")
    assert "Please type 1, 2 or =." in done.out
    assert sorted(json.loads(Path("won.json").read_text())["pairs"][0]["wins"])[:1] in ([0.0], [0.5])


def test_what_a_person_has_judged_is_not_shown_again(here: Path) -> None:
    line = f"winrate runs/base runs/sft {QUESTIONS} --limit 3 --judge person"
    whole = type_in(f"{line} --out whole.json", stdin="1\n2\n2\n")
    assert whole.code == 0
    stopped = type_in(f"{line} --cache judged.jsonl --out parts.json", stdin="1\n2\n")
    assert (stopped.code, "after 2 of 3" in stopped.err, Path("parts.json").exists()) == (2, True, False)
    again = type_in(f"{line} --cache judged.jsonl --out parts.json", stdin="1\n" * 9)
    assert (again.code, again.out.count("Which is better")) == (0, 1)
    before, after = (json.loads(Path(f"{n}.json").read_text())["pairs"][0]["wins"] for n in ("whole", "parts"))
    assert before[:2] == after[:2]
    third = type_in(f"{line} --cache judged.jsonl --out parts.json")
    assert (third.code, "Which is better" in third.out) == (0, False)
    assert json.loads(Path("parts.json").read_text())["pairs"][0]["wins"] == after
    refused = type_in(f"winrate runs/base runs/sft {QUESTIONS} --judge rubric --cache judged.jsonl")
    assert (refused.code, "leave out --cache" in refused.err) == (2, True)


# -- prompt -----------------------------------------------------------------------------------------------------------

TRANSLATE = "Translate English to French:"
LECTURE = {
    "translation, zero-shot": f"{TRANSLATE}\\ncheese =>",
    "translation, zero-shot, on one line": f"{TRANSLATE} cheese =>",
    "translation, one-shot": f"{TRANSLATE}\\nsea otter => loutre de mer\\ncheese =>",
    "translation, few-shot": f"{TRANSLATE}\\nsea otter => loutre de mer\\npeppermint => menthe poivrée\\n"
    "plush girafe => girafe peluche\\ncheese =>",
    "question, zero-shot": "Q: What is the capital of France?\\nA:",
    "question, one-shot": "Q: Who wrote Hamlet?\\nA: Shakespeare\\n\\nQ: What is the capital of France?\\nA:",
}


def says_verbatim(run: str, prompt: str, room: int) -> None:
    """`tercet prompt --text` shows the prompt as it is, then what the model makes of exactly this text."""
    lm = TransformerLM.of_run(run)
    text = prompt.replace("\\n", "\n")
    assert len(lm.tokenizer.encode(text)) < room, "the test's model is too small for this prompt"
    done = type_in(f"prompt {run} --text '{prompt}' --max-new-tokens 6 --threads 1 --out said.json")
    assert (done.code, done.err) == (0, "")
    said = json.loads(Path("said.json").read_text())
    assert said["prompt"] == text
    assert said["text"] == lm.generate_until([(text, ())], 6)[0]  # greedy, by the other way in
    assert done.out == f"{text}{said['text']}\n"


@pytest.mark.parametrize("name", LECTURE)
def test_the_lectures_prompts_work_on_a_run(wide: str, name: str) -> None:
    says_verbatim(wide, LECTURE[name], 512)


@pytest.fixture(scope="module")
def wide(home: Path) -> str:
    """A run whose context holds the longest of these prompts, and "tercet prompt" in its folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        line = MADE["pretrain"].replace("--context-length 64", "--context-length 512").replace("runs/base", "runs/wide")
        done = type_in(line.replace("--steps 20", "--steps 2"))
        assert done.code == 0, done.err
        yield "runs/wide"


@pytest.mark.parametrize("name", LECTURE)
def test_the_lectures_prompts_work_on_an_imported_model(imported: str, name: str) -> None:
    says_verbatim(imported, LECTURE[name], 512)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The 260 K Llama, imported by the command."""
    folder = known_answer()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("imported"))
        done = type_in(f"import {folder}/stories260K.bin --tokenizer {folder}/tok512.bin --out runs/llama")
        assert (done.code, done.err) == (0, "")
        yield "runs/llama"


def test_an_imported_model_is_prompted_and_evaluated(imported: str) -> None:
    for line in (
        f"prompt {imported} --task translation --shots 0,1,4 --limit 3 --max-new-tokens 4 --threads 1 --out asked.json",
        f"prompt {imported} --task question_answering --shots 1 --limit 2 --max-new-tokens 4 --threads 1",
        f"eval {imported} --suite mapping --limit 3 --threads 1 --out suite.json",
    ):
        done = type_in(line)
        assert (done.code, done.err) == (0, "")
    rows = json.loads(Path("asked.json").read_text())
    assert [r["shots"] for r in rows] == [0, 1, 4]
    assert rows[0]["prompt"].startswith(f"{TRANSLATE}\n")
    assert rows[2]["prompt"].count("=>") == 5
