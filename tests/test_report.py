"""The report: what a reader sees of each stage, hostile text, missing parts, and that the page stands alone."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from report_runs import ABILITIES, PARAMETERS, estimate, full_report, make_run, pretrain_run, sft_run, tree
from tercet.errors import ConfigError, DataError
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.reporting.compare import select_examples
from tercet.reporting.figures import Curve, lines
from tercet.reporting.lineage import command, family
from tercet.reporting.report import write_report
from tercet.training.run import Run


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return full_report(tmp_path_factory.mktemp("report")).read_text(encoding="utf-8")


class _Page(HTMLParser):
    """Every element with its attributes; fails where tags do not close in order."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: dict[str, list[str]] = {}
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.text.setdefault(self.open[-1], []).append(data)

    def attributes(self, name: str) -> list[str]:
        return [str(a[name]) for _, a in self.elements if name in a]


def _visible(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())


def _sections(html: str) -> list[str]:
    return re.findall(r'<section id="(\w+)"', html)


# ---- the whole page


def test_stages_stand_in_the_order_of_the_lecture(page: str) -> None:
    assert _sections(page) == [
        "pretrain",
        "prompting",
        "sft",
        "annotate",
        "reward",
        "ppo",
        "scores",
        "answers",
        "limits",
        "lineage",
    ]
    assert [
        a.removeprefix("#") for a in _Page(page[page.index("<nav") : page.index("</nav>") + 6]).attributes("href")
    ] == _sections(page)


def test_page_stands_alone(page: str) -> None:
    parsed = _Page(page)
    assert {tag for tag, _ in parsed.elements}.isdisjoint(
        {"script", "img", "link", "iframe", "object", "foreignobject", "image", "base", "form"}
    )
    assert all(target.startswith("#") for name in ("href", "src", "xlink:href") for target in parsed.attributes(name))
    assert "http:" not in page
    assert "https:" not in page
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", page))
    assert not [name for _, a in parsed.elements for name in a if name.startswith("on")]
    assert len(page.encode()) < 1_500_000


def test_ids_are_unique_and_every_reference_has_one(page: str) -> None:
    parsed = _Page(page)
    ids = parsed.attributes("id")
    assert len(ids) == len(set(ids))
    references = (
        {h[1:] for h in parsed.attributes("href")}
        | set(re.findall(r"url\(#([^)]*)\)", page))
        | set(parsed.attributes("aria-labelledby"))
    )
    assert references <= set(ids)


def test_page_speaks_to_screen_readers(page: str) -> None:
    parsed = _Page(page)
    charts = [a for tag, a in parsed.elements if tag == "svg"]
    assert len(charts) >= 15
    assert all(a["role"] == "img" and len(a["aria-label"] or "") > 40 for a in charts)
    assert all(a.get("scope") in ("col", "row", "colgroup") for tag, a in parsed.elements if tag == "th")
    assert ("html", {"lang": "en"}) in parsed.elements
    assert page.count("<table>") == page.count("<caption><span>") == page.count('class="scroll"')
    assert "goes from 0.5 at 0 to 0.8 at 100; guessing is 0.5; the longer answer is 0.57" in page


def test_hostile_text_is_shown_and_never_run(page: str) -> None:
    assert "<script" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "{{ 7*7 }}" in page
    assert "&amp;lt;" in page
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]", page)
    assert "<b>&micro" not in page
    assert " _&lt;b&gt;&amp;micro$world$" in re.findall(
        r"<text[^>]*>([^<]*)</text>", page
    )  # in a legend, "_" and "$" kept


def test_every_table_row_is_as_wide_as_its_head(page: str) -> None:
    for table in re.findall(r"<table>.*?</table>", page, re.S):
        head, body = table.split("</thead>")
        width = head.count("<th scope")
        rows = [r for r in re.findall(r"<tr.*?</tr>", body, re.S) if "colspan" not in r]
        assert rows
        assert {r.count("<th scope") + r.count("<td") for r in rows} == {width}


def test_numbers_are_those_of_the_runs(page: str) -> None:
    text = _visible(page)
    assert f"{PARAMETERS / 1e6:.1f} million parameters" in text or f"parameters {PARAMETERS / 1e6:.1f} million" in text
    assert (
        "The model was trained on 1.2 million tokens in 300 steps: 30 % bible and 70 % code." in text
    )  # 300 steps of 16 rows of 256 tokens
    assert "bible 3.500 1.660 [1.62, 1.70]" in text
    assert "bible 1.900 1.950 1.900 2.300" in text  # γ = 2 and γ = 0, first and last
    assert "80.4 % [77.4 %, 83.4 %]" in text
    assert "0.0 % 61.3 %" in text  # exact match before and after SFT
    assert "1,200 (33 %)" in text
    assert "20 min 2 s" in text  # six runs of 200.4 s
    assert "reward by the reward model 0.200 interval unknown, n = 1" in text
    assert "RLHF: β = 0.05, γ = 2, 60 steps. RLHF, γ = 0: β = 0.05, γ = 0, 60 steps." in text
    assert "done twice: with the pretraining term (γ above 0) and without it" in text
    assert "score (0 to 1)" in page  # of the scorer that the runs logged


def test_models_are_named_by_stage(page: str) -> None:
    table = next(t for t in re.findall(r"<table>.*?</table>", page, re.S) if "Scores on held-out" in t)
    assert re.findall(r'<th scope="col">([^<]*)</th>', table) == ["measure", "base", "SFT", "RLHF", "RLHF, γ = 0"]
    assert "Compared with SFT, answer by answer" in table


def test_simulated_rankings_always_say_so(page: str) -> None:
    section = page[page.index('<section id="annotate"') : page.index('<section id="reward"')]
    examples = re.findall(r"<article>.*?</article>", section, re.S)
    assert len(examples) == 1  # ties teach nothing and are not shown
    assert all("simulated" in e for e in examples)
    assert re.findall(r"<dt>([^<]*)</dt>", examples[0]) == [
        "rank 1",
        "rank 2",
        "rank 3",
        "rank 4",
    ]  # the most telling first
    assert examples[0].index("Paris is the capital.") < examples[0].index("I think Paris.") < examples[0].index("Lyon")


def test_limits_are_honest(page: str) -> None:
    text = _visible(page[page.index('<section id="limits"') :])
    assert "The annotator is simulated" in text
    assert "The model is tiny (" in text
    assert "Every stage was run once, with one random seed." in text


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    run = sft_run(tmp_path, tmp_path / "gone")
    assert (
        write_report([run], tmp_path / "a.html").read_bytes() == write_report([run], tmp_path / "b.html").read_bytes()
    )


# ---- partial input


def test_one_run_brings_its_ancestors(tmp_path: Path) -> None:
    run = sft_run(tmp_path, pretrain_run(tmp_path))
    html = write_report([run], tmp_path / "r.html").read_text()
    assert _sections(html) == ["pretrain", "sft", "limits", "lineage"]
    assert "simulated" not in html


def test_one_rlhf_run_is_not_said_to_be_done_twice(tmp_path: Path) -> None:
    html = write_report([tree(tmp_path)["ptx"]], tmp_path / "r.html").read_text()
    assert "The γ term adds pretraining text" in html
    assert "done twice" not in html


def test_scores_of_text_alone(tmp_path: Path) -> None:
    run = pretrain_run(tmp_path)
    row = {
        "verb": "pretrain",
        "parameters": PARAMETERS,
        "bits_per_byte": {"code": estimate(1.5)},
        "bits_per_byte_mean": 1.5,
    }
    scores = {"config": {"reference": ""}, "models": {str(run): row, "elsewhere/other": dict(row)}}
    html = write_report([run], tmp_path / "r.html", scores).read_text()
    assert _sections(html) == ["pretrain", "scores", "limits", "lineage"]
    table = next(t for t in re.findall(r"<table>.*?</table>", html, re.S) if "Scores on held-out" in t)
    assert re.findall(r'<th scope="col">([^<]*)</th>', table) == ["measure", "base", "base (other)"]
    assert "Right answers" not in table


def test_run_whose_parent_is_gone(tmp_path: Path) -> None:
    html = write_report([sft_run(tmp_path, tmp_path / "gone")], tmp_path / "r.html").read_text()
    assert _sections(html) == ["sft", "limits", "lineage"]
    assert f"{tmp_path / 'gone'}, which no longer exists" in html
    assert "left out" in _visible(html[html.index('id="limits"') :])


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    config = PretrainConfig(data=("a.txt",), tokenizer="t")
    run = make_run(tmp_path / "new", config, [], status="failed", error="NonFiniteError: <b>loss")
    (run / "metrics.jsonl").unlink()
    (run / "model.json").unlink()
    text = write_report([run], tmp_path / "r.html").read_text()
    assert "base: this run failed after step 0, so its numbers are not final. NonFiniteError" in text
    assert "NonFiniteError: &lt;b&gt;loss" in text
    assert "Not every run is finished: base." in _visible(text)


def test_weights_that_changed_are_named(tmp_path: Path) -> None:
    base = pretrain_run(tmp_path)
    sft = sft_run(tmp_path, base)
    assert not any(p.changed for m in family([sft]) for p in m.parents)
    (base / "checkpoints" / "step-00000100" / "model.safetensors").write_text("trained on")
    assert (
        "Parents whose weights have changed since the run began: SFT (its model)."
        in write_report([sft], tmp_path / "r.html").read_text()
    )


def test_wrong_input_is_an_error_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        write_report([tmp_path], tmp_path / "r.html")
    run = pretrain_run(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report([run], tmp_path / "file" / "r.html")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"stepz": 1}))
    with pytest.raises(ConfigError, match=r"config.json: unknown setting 'stepz'; did you mean 'steps'"):
        write_report([run], tmp_path / "r.html")


# ---- lineage and commands


def test_family_is_in_order_and_named(tmp_path: Path) -> None:
    runs = tree(tmp_path)
    members = family([runs["plain"], runs["ptx"], runs["plain"]])
    assert [(m.label, m.level) for m in members] == [
        ("base", 0),
        ("SFT", 1),
        ("rankings", 2),
        ("reward model", 3),
        ("RLHF", 4),
        ("RLHF, γ = 0", 4),
    ]
    assert [(p.role, p.label) for p in members[3].parents] == [("model", "SFT"), ("rankings", "rankings")]
    assert not any(p.changed for m in members for p in m.parents)


def test_runs_of_one_stage_are_told_apart(tmp_path: Path) -> None:
    base = pretrain_run(tmp_path)
    first = sft_run(tmp_path, base)
    second = make_run(tmp_path / "sft-2", SFTConfig(model=str(base), data=("x",), seed=1), [], parents={"model": base})
    assert [m.label for m in family([first, second])] == ["base", "SFT (sft)", "SFT (sft-2)"]
    html = write_report([first, second], tmp_path / "r.html").read_text()
    assert "<h3>SFT (sft)</h3>" in html
    assert "run once" not in html


def test_command_has_only_what_differs(tmp_path: Path) -> None:
    run = Run(pretrain_run(tmp_path))
    data = "--data 'text/a b.jsonl' --data text/c.jsonl"
    mixture = "--mixture bible=0.3 --mixture code=0.7"
    start = f"tercet pretrain --steps 300 {data} --tokenizer tokenizer.json {mixture} --sample-prompts "
    assert command(run).startswith(f"{start}'In the beginning' --sample-prompts ")
    assert command(run).endswith(f" --out {run.path}")
    config = PPOConfig(
        model="m",
        reward="r",
        prompts=("p",),
        gamma=0,
        skip_bad_rows=True,
        whiten_advantages=False,
        missing_eos_score=-2.0,
        lr=1e-06,
    )
    run = Run(make_run(tmp_path / "x", config, []))
    shared = "--lr 1e-06 --skip-bad-rows --model m --reward r --prompts p"
    own = "--gamma 0 --missing-eos-score -2.0 --no-whiten-advantages"
    assert command(run) == f"tercet ppo {shared} {own} --out {run.path}"


# ---- parts


def test_selected_answers_are_half_right_and_spread() -> None:
    examples = [
        {"rubric": 1.0 if i % 4 else 0.0, "right": bool(i % 4), "answer": "a", "gold": "b", "ability": ABILITIES[i % 5]}
        for i in range(40)
    ]
    picked = [examples[i] for i in select_examples(examples)]
    for side in (0.0, 1.0):
        assert sorted(e["ability"] for e in picked if e["rubric"] == side) == sorted(ABILITIES)
    mostly_right = [dict(e, rubric=1.0, right=True) for e in examples[:38]] + [
        dict(e, rubric=0.0, right=False) for e in examples[38:]
    ]
    assert [mostly_right[i]["rubric"] for i in select_examples(mostly_right)].count(0.0) == 2
    assert len(select_examples(mostly_right)) == 10
    assert select_examples(examples[:3]) == [0, 1, 2]


def test_long_curves_are_thinned_and_gaps_left_out() -> None:
    steps = range(1, 20_001)
    chart = lines(
        "x",
        "Loss.",
        "step",
        "loss",
        [Curve("a", steps, [math.nan if s % 7 == 0 else 1 / s for s in steps])],
        smooth=True,
    )
    assert chart is not None
    assert len(chart.svg) < 60_000
    assert "nan" not in chart.svg.lower()
    assert lines("x", "Loss.", "step", "loss", [Curve("a", [1, 2], [math.nan, math.inf])]) is None
