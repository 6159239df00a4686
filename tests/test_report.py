"""The report: what a reader sees of each stage, hostile text, missing parts, and that the page stands alone."""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tercet.errors import ConfigError, DataError
from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.reporting.compare import chosen
from tercet.reporting.figures import Curve, lines
from tercet.reporting.lineage import command, family
from tercet.reporting.report import write_report
from tercet.training.run import Run

HOSTILE = '<script>alert(1)</script> </svg><img src=x onerror="alert(2)"> {{ 7*7 }} &lt; \u202e\x00\x1b[31m $x_$ \ud800'
SOURCES = ("bible", "code", "_<b>&micro$world$")
ABILITIES = ("arithmetic", "capitals", "colours", "possession", "unknown")
MODEL = {
    "vocab_size": 2048,
    "context_length": 256,
    "hidden_size": 192,
    "num_layers": 5,
    "num_heads": 3,
    "num_kv_heads": 3,
    "head_dim": 64,
    "intermediate_size": 512,
}
PARAMETERS = 2048 * 192 + 192 + 5 * (4 * 192 * 192 + 2 * 64 + 3 * 192 * 512 + 2 * 192)


def _estimate(value: float, half: float = 0.03, n: int = 300) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def _run(path: Path, config: Any, metrics: list[dict[str, Any]], *, parents: dict[str, Path] | None = None, samples: list[dict[str, Any]] | None = None,
         status: str = "finished", **fields: Any) -> Path:  # fmt: skip
    """A run directory as training.run.Run writes it, without any training; its weights are its own name."""
    verb = {
        PretrainConfig: "pretrain",
        SFTConfig: "sft",
        AnnotateConfig: "annotate",
        RewardConfig: "reward",
        PPOConfig: "ppo",
    }[type(config)]
    weights = path / "checkpoints" / "step-00000100" / "model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_text(path.name)
    described = {
        r: {
            "path": f"../{p.name}",
            "checkpoint": "step-00000100",
            "sha256": hashlib.sha256(p.name.encode()).hexdigest(),
        }
        for r, p in (parents or {}).items()
    }
    manifest = {
        "format": 1, "verb": verb, "argv": ["tercet", verb], "parents": described, "status": status, "git": {"commit": "cb4644dd9f94", "diff": ""},
        "versions": {"python": "3.11.7", "tercet": "0.1.0", "torch": "2.13.0"}, "seed": config.seed, "device": "cpu", "threads": 2,
        "created": "2026-11-23T20:09:50+00:00", "resumed": [], "seconds": 200.4, "peak_memory_mb": 1522, **fields,
    }  # fmt: skip
    (path / "run.json").write_text(json.dumps(manifest))
    (path / "config.json").write_text(json.dumps(config.to_json()))
    (path / "model.json").write_text(json.dumps(MODEL))
    _lines(path / "metrics.jsonl", metrics)
    _lines(path / "samples.jsonl", samples or [])
    return path


def _bits(value: float) -> dict[str, float]:
    return {**{f"heldout/{s}": value + i / 5 for i, s in enumerate(SOURCES)}, "heldout": value + 0.2}


def _pretrain(root: Path, steps: int = 300) -> Path:
    rng = random.Random(0)
    config = PretrainConfig(
        data=("text/a b.jsonl", "text/c.jsonl"),
        tokenizer="tokenizer.json",
        mixture=("bible=0.3", "code=0.7"),
        steps=steps,
        sample_prompts=("In the beginning", HOSTILE),
    )
    metrics: list[dict[str, Any]] = [{"step": 0, **_bits(3.5)}]
    for step in range(1, steps + 1):
        metrics.append(
            {
                "step": step,
                "loss": 3 + 4.6 * math.exp(-step / 60) + rng.gauss(0, 0.15),
                "grad_norm": 0.5,
                "lr_scale": 1.0,
                "tokens_per_s": 6000.0,
            }
        )
        if step % 100 == 0:
            metrics.append({"step": step, **_bits(1.6 + 1.9 * math.exp(-step / 90))})
    samples = [
        {"step": s, "prompt": p, "text": f"at {s}: {HOSTILE}"}
        for s in (0, 100, 200, 300)
        for p in config.sample_prompts
    ]
    heldout = {s: _estimate(1.66 + i / 5, 0.04, 43) for i, s in enumerate(SOURCES)}
    return _run(root / "base", config, metrics, samples=samples, heldout=heldout)


def _sft(root: Path, base: Path) -> Path:
    metrics: list[dict[str, Any]] = [{"step": 0, "heldout": 5.6, "exact_match": 0.0, "finished": 0.01}]
    metrics += [{"step": s, "loss": 1 + 4 * math.exp(-s / 20), "grad_norm": 1.0} for s in range(1, 101)]
    metrics += [{"step": 100, "heldout": 0.9, "exact_match": 0.613, "finished": 0.99}]
    samples = [
        {"step": s, "prompt": f"What is 2 + {i}? {HOSTILE}", "text": f"{HOSTILE} {s}", "gold": str(2 + i)}
        for s in (0, 100)
        for i in range(8)
    ]
    config = SFTConfig(model=str(base), data=("chat.jsonl",), questions=("tasks.jsonl",), steps=100)
    return _run(root / "sft", config, metrics, parents={"model": base}, samples=samples, heldout_loss=0.9)


def _rank(root: Path, sft: Path) -> Path:
    found = {"labeler": "simulated", "prompts": 600, "answers": 4, "pairs": 3600, "ties": 1200}
    run = _run(
        root / "annotate",
        AnnotateConfig(model=str(sft), questions=("tasks.jsonl",)),
        [],
        parents={"model": sft},
        rankings=found,
    )
    prompt = [{"role": "user", "content": f"Capital of France? {HOSTILE}"}]
    rows = [
        {
            "prompt": prompt,
            "responses": ["Lyon", "Paris is the capital.", HOSTILE, "I think Paris."],
            "ranks": [3, 1, 4, 2],
            "labeler": "simulated",
        }
    ]
    _lines(
        run / "rankings" / "train.jsonl",
        [{"prompt": "All the same?", "responses": ["a", "a"], "ranks": [1, 1], "labeler": "simulated"}] * 3 + rows,
    )
    return run


def _reward(root: Path, sft: Path, rank: Path) -> Path:
    metrics: list[dict[str, Any]] = [{"step": 0, "heldout_accuracy": 0.5, "longer_wins": 0.57}]
    metrics += [{"step": s, "loss": 0.3 + 0.39 * math.exp(-s / 30)} for s in range(1, 101)]
    metrics += [{"step": s, "heldout_accuracy": 0.6 + s / 500, "longer_wins": 0.57} for s in (50, 100)]
    config = RewardConfig(model=str(sft), data=(str(rank / "rankings" / "train.jsonl"),))
    return _run(
        root / "reward",
        config,
        metrics,
        parents={"model": sft},
        accuracy=_estimate(0.804),
        longer_wins=_estimate(0.57),
        demonstrations_mean=0.0,
    )


def _ppo(root: Path, sft: Path, reward: Path, gamma: float, name: str) -> Path:
    rng = random.Random(name)
    config = PPOConfig(
        model=str(sft),
        reward=str(reward),
        prompts=("tasks.jsonl",),
        pretrain_data=("text",) if gamma else (),
        gamma=gamma,
        seed=3,
    )
    metrics: list[dict[str, Any]] = [{"step": 0, **_bits(1.9)}]
    for step in range(1, 61):
        row = {"step": step, "reward": step / 60 + rng.gauss(0, 0.1), "kl": step / 15, "gold": 0.6 + step / 400, "finished": 0.98, "length": 9.5, "explained_variance": 0.4,
               "policy_loss": -0.01, "entropy": 0.6, "clip_fraction": 0.1, "value_loss": 0.2, "grad_norm": 1.0}  # fmt: skip
        metrics.append(row | ({"pretrain_loss": 3.0, "ptx_gradient_ratio": 0.7} if gamma else {}))
    return _run(
        root / name,
        config,
        [*metrics, {"step": 60, **_bits(1.95 if gamma else 2.3)}],
        parents={"model": sft, "reward": reward},
    )


def _scores(runs: list[Path], sft: Path) -> dict[str, Any]:
    rng = random.Random(1)
    models = {}
    for number, run in enumerate(runs):
        examples = []
        for i in range(40):
            right = rng.random() < number / 4
            answer = f"It is {i}." if right else HOSTILE
            prompt = [{"role": "user", "content": f"Question {i}?"}]
            examples.append(
                {
                    "prompt": prompt,
                    "answer": answer,
                    "gold": str(i),
                    "ability": ABILITIES[i % 5],
                    "held_out": "template" if i % 3 else "",
                    "rubric": 1.0 if right else 0.3,
                    "right": right,
                }
            )
        row: dict[str, Any] = {
            "verb": Run(run).manifest["verb"], "parameters": PARAMETERS, "bits_per_byte": {s: _estimate(1.7 + i / 5) for i, s in enumerate(SOURCES)},
            "bits_per_byte_mean": 1.9, "exact_match": _estimate(0.2 + number / 5), "abilities": {a: _estimate(0.1 + number / 5) for a in ABILITIES},
            "held_out": {k: _estimate(0.3) for k in ("combination", "template")}, "rubric": _estimate(0.5), "examples": examples,
            "rubric_parts": {p: _estimate(0.5) for p in ("right", "sentence", "direct", "finished")}, "well_formed": _estimate(0.5), "finished": _estimate(0.9),
            "reward": {"value": 0.2, "low": None, "high": None, "n": 1}, "kl": _estimate(3.14), "win_rate": _estimate(0.5 + number / 20), "rubric_difference": _estimate(0.01),
        }  # fmt: skip
        models[str(run)] = row
    return {"config": {"reference": str(sft)}, "skipped_rows": 0, "tasks": 700, "models": models}


def _asking() -> list[dict[str, Any]]:
    return [
        {"shots": s, "ability": a, "accuracy": _estimate(0.1 + s / 20), "prompt": f"Q: 2 + 2?\nA: 4\n\nQ: {HOSTILE}\nA:", "answer": HOSTILE, "form": form}
        for form in ("question and answer", "completion") for s in (0, 1, 4) for a in ("all", *ABILITIES)
    ]  # fmt: skip


def _baselines() -> dict[str, Any]:
    return {
        "sources": {
            s: {"model": 1.7, "unigram": 2.9, "bigram": 2.4, "trigram": 2.2, "xz": 2.0, "bytes_per_token": 3.21}
            for s in SOURCES
        }
    }


def tree(root: Path) -> dict[str, Path]:
    base = _pretrain(root)
    sft = _sft(root, base)
    rank = _rank(root, sft)
    reward = _reward(root, sft, rank)
    return {
        "base": base, "sft": sft, "annotate": rank, "reward": reward,
        "plain": _ppo(root, sft, reward, 0.0, "rlhf-plain"), "ptx": _ppo(root, sft, reward, 2.0, "rlhf"),
    }  # fmt: skip


def full_report(root: Path) -> Path:
    runs = tree(root / "runs")
    models = [runs[k] for k in ("base", "sft", "ptx", "plain")]
    return write_report(
        [runs["plain"], runs["ptx"]],
        root / "pages" / "report.html",
        _scores(models, runs["sft"]),
        _asking(),
        _baselines(),
    )


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
        "It read 1.2 million tokens in 300 steps: 30 % bible and 70 % code." in text
    )  # 300 steps of 16 rows of 256 tokens
    assert "bible 3.500 1.660 1.62 to 1.70" in text
    assert "bible 1.900 1.950 1.900 2.300" in text  # γ = 2 and γ = 0, first and last
    assert "80.4 % 77.4 to 83.4 %" in text
    assert "0.0 % 61.3 %" in text  # exact match before and after SFT
    assert "1,200 (33 %)" in text
    assert "20 min 2 s" in text  # six runs of 200.4 s
    assert "interval unknown, n = 1" in text
    assert "RLHF: β = 0.05, γ = 2, 60 steps. RLHF, γ = 0: β = 0.05, γ = 0, 60 steps." in text
    assert "done twice: with the pretraining term (γ above 0) and without it" in text


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
    run = _sft(tmp_path, tmp_path / "gone")
    assert (
        write_report([run], tmp_path / "a.html").read_bytes() == write_report([run], tmp_path / "b.html").read_bytes()
    )


# ---- partial input


def test_one_run_brings_its_ancestors(tmp_path: Path) -> None:
    run = _sft(tmp_path, _pretrain(tmp_path))
    html = write_report([run], tmp_path / "r.html").read_text()
    assert _sections(html) == ["pretrain", "sft", "limits", "lineage"]
    assert "simulated" not in html


def test_one_rlhf_run_is_not_said_to_be_done_twice(tmp_path: Path) -> None:
    html = write_report([tree(tmp_path)["ptx"]], tmp_path / "r.html").read_text()
    assert "The γ term mixes in pretraining text" in html
    assert "done twice" not in html


def test_scores_of_text_alone(tmp_path: Path) -> None:
    run = _pretrain(tmp_path)
    row = {
        "verb": "pretrain",
        "parameters": PARAMETERS,
        "bits_per_byte": {"code": _estimate(1.5)},
        "bits_per_byte_mean": 1.5,
    }
    scores = {"config": {"reference": ""}, "models": {str(run): row, "elsewhere/other": dict(row)}}
    html = write_report([run], tmp_path / "r.html", scores).read_text()
    assert _sections(html) == ["pretrain", "scores", "limits", "lineage"]
    table = next(t for t in re.findall(r"<table>.*?</table>", html, re.S) if "Scores on held-out" in t)
    assert re.findall(r'<th scope="col">([^<]*)</th>', table) == ["measure", "base", "base (other)"]
    assert "Right answers" not in table


def test_run_whose_parent_is_gone(tmp_path: Path) -> None:
    html = write_report([_sft(tmp_path, tmp_path / "gone")], tmp_path / "r.html").read_text()
    assert _sections(html) == ["sft", "limits", "lineage"]
    assert f"{tmp_path / 'gone'}, no longer there" in html
    assert "left out" in _visible(html[html.index('id="limits"') :])


def test_run_that_has_only_begun(tmp_path: Path) -> None:
    config = PretrainConfig(data=("a.txt",), tokenizer="t")
    run = _run(tmp_path / "new", config, [], status="failed", error="NonFiniteError: <b>loss")
    (run / "metrics.jsonl").unlink()
    (run / "model.json").unlink()
    text = write_report([run], tmp_path / "r.html").read_text()
    assert "This run is failed after step 0" in text
    assert "NonFiniteError: &lt;b&gt;loss" in text
    assert "Not every run is finished: base." in _visible(text)


def test_weights_that_changed_are_named(tmp_path: Path) -> None:
    base = _pretrain(tmp_path)
    sft = _sft(tmp_path, base)
    assert not any(p.changed for m in family([sft]) for p in m.parents)
    (base / "checkpoints" / "step-00000100" / "model.safetensors").write_text("trained on")
    assert (
        "Parents whose weights have changed since the run began: SFT (its model)."
        in write_report([sft], tmp_path / "r.html").read_text()
    )


def test_wrong_input_is_an_error_with_a_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run directory"):
        write_report([tmp_path], tmp_path / "r.html")
    run = _pretrain(tmp_path)
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
    base = _pretrain(tmp_path)
    first = _sft(tmp_path, base)
    second = _run(tmp_path / "sft-2", SFTConfig(model=str(base), data=("x",), seed=1), [], parents={"model": base})
    assert [m.label for m in family([first, second])] == ["base", "SFT (sft)", "SFT (sft-2)"]
    html = write_report([first, second], tmp_path / "r.html").read_text()
    assert "<h3>SFT (sft)</h3>" in html
    assert "run once" not in html


def test_command_has_only_what_differs(tmp_path: Path) -> None:
    run = Run(_pretrain(tmp_path))
    data = "--data 'text/a b.jsonl' --data text/c.jsonl"
    expected = f"tercet pretrain --steps 300 {data} --tokenizer tokenizer.json --mixture bible=0.3 --mixture code=0.7 --sample-prompts 'In the beginning' --sample-prompts "
    assert command(run).startswith(expected)
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
    run = Run(_run(tmp_path / "x", config, []))
    flags = "--lr 1e-06 --skip-bad-rows --model m --reward r --prompts p --gamma 0 --missing-eos-score -2.0 --no-whiten-advantages"
    assert command(run) == f"tercet ppo {flags} --out {run.path}"


# ---- parts


def test_shown_answers_are_half_right_and_spread() -> None:
    examples = [
        {"rubric": 1.0 if i % 4 else 0.0, "right": bool(i % 4), "answer": "a", "gold": "b", "ability": ABILITIES[i % 5]}
        for i in range(40)
    ]
    picked = [examples[i] for i in chosen(examples)]
    for side in (0.0, 1.0):
        assert sorted(e["ability"] for e in picked if e["rubric"] == side) == sorted(ABILITIES)
    mostly_right = [dict(e, rubric=1.0, right=True) for e in examples[:38]] + [
        dict(e, rubric=0.0, right=False) for e in examples[38:]
    ]
    assert [mostly_right[i]["rubric"] for i in chosen(mostly_right)].count(0.0) == 2
    assert len(chosen(mostly_right)) == 10
    assert chosen(examples[:3]) == [0, 1, 2]


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
