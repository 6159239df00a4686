"""Ladders of runs, reading them, the commands of `tercet scaling`, and the budget planner."""

from __future__ import annotations

import fcntl
import itertools
import json
import math
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import write_rows
from tercet.cli.main import main
from tercet.data import readers
from tercet.errors import CheckpointError, ConfigError, DataError
from tercet.microworld import documents
from tercet.model.config import ModelConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.scaling import budget, ladder, laws
from tercet.scaling import fit as scaling
from tercet.scaling import flops as counting
from tercet.scaling import ray as cluster
from tercet.scaling.config import LadderConfig, batch_rows, learning_rate, shape_of
from tercet.tokenizer.bpe import Tokenizer, train_tokenizer
from tercet.training.optim import schedule
from tercet.training.run import Run, in_use
from tercet.training.time_budget import Deadline

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, a tokenizer of 300 ids, and a ladder of 3 sizes and 3 lengths."""
    folder = tmp_path_factory.mktemp("scaling")
    texts = [d.text for d in documents.documents(0, 60)]
    write_rows(folder / "text.jsonl", ({"text": t} for t in texts))
    train_tokenizer(texts, 300).save(folder / "tokenizer.json")
    ladder.run_ladder(config(folder), folder / "ladder")
    return folder


def config(folder: Path, **changes: Any) -> LadderConfig:
    values: dict[str, Any] = {
        "data": (str(folder / "text.jsonl"),), "tokenizer": str(folder / "tokenizer.json"), "widths": (16, 32, 48),
        "tokens": (1024, 2048, 4096), "context_length": 32, "heldout_bytes": 2000,
    }  # fmt: skip
    return LadderConfig(**{**values, **changes})


def tercet(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["tercet", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


# -- the rules --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 32, 48, 64, 80, 96, 128, 192, 512, 1024])
def test_shapes_are_possible_and_grow(width: int) -> None:
    shape = ModelConfig(300, 64, **shape_of(width))
    assert shape.num_heads * shape.head_dim == width
    if width > 16:
        assert shape.parameters() > ModelConfig(300, 64, **shape_of(width - 16)).parameters()


def test_the_batch_grows_with_the_tokens_and_the_rate_falls() -> None:
    assert [batch_rows(65_536 * k, 128) for k in (1, 2, 16, 256)] == [4, 6, 16, 64]
    assert batch_rows(10, 128) == 1
    assert [learning_rate(0.01, 65_536 * k) for k in (1, 16, 256)] == pytest.approx([0.01, 0.005, 0.0025])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"widths": (20,)}, "--widths has 20; wanted multiples of 16"),
        ({"tokens": (), "flops": ()}, "either --tokens or --flops, but got neither"),
        ({"flops": (1e9,)}, "either --tokens or --flops, but got both"),
        ({"tokens": (5, 5)}, "wanted numbers of at least 1, each once"),
    ],
)
def test_impossible_ladders_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(Path(), **changes)


def test_an_iso_flop_ladder_spends_the_same_on_every_size() -> None:
    points = config(Path(), tokens=(), flops=(1e10, 4e10)).points(300)
    spent = []
    for point in points.values():
        shape = ModelConfig(300, 32, **{k: getattr(point, k) for k in shape_of(16)})
        spent.append(point.steps * point.batch_size * 32 * shape.flops_per_token())
    assert len(spent) == 6
    assert spent == sorted(spent)
    assert spent == pytest.approx([1e10] * 3 + [4e10] * 3, rel=0.02)
    grouped = scaling.budgets(np.array(spent))
    assert len(set(grouped)) == 2
    assert grouped == pytest.approx([1e10] * 3 + [4e10] * 3, rel=0.01)
    with pytest.raises(ConfigError, match="--max-flops is 1000, and every run has more"):
        config(Path(), max_flops=1e3).points(300)


# -- ladders ----------------------------------------------------------------------------------------------------------


def test_a_ladder_is_read_with_both_counts(home: Path) -> None:
    runs = ladder.read_runs([home / "ladder"])
    assert len(runs.paths) == 9
    for path, total, hidden, tokens, loss in zip(runs.paths, runs.total, runs.hidden, runs.tokens, runs.loss):
        run = Run(path)
        sizes = {n: w.numel() for n, w in run.weights().items()}
        assert total == sum(sizes.values())
        assert total - hidden == sizes["model.embed_tokens.weight"]
        assert tokens == run.config["steps"] * run.config["batch_size"] * 32
        assert loss == run.metrics("heldout")[-1]["heldout"]
    assert runs.points(embeddings=False).flops == pytest.approx(6 * runs.hidden * runs.tokens)


def test_a_ladder_goes_on_where_it_was(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finished runs are not touched, an interrupted one is resumed to the same bits, other settings are refused."""
    import shutil

    folder = tmp_path / "ladder"
    shutil.copytree(home / "ladder", folder)
    small = config(home)
    names = list(small.points(300))
    before = (folder / names[0] / "metrics.jsonl").stat().st_mtime_ns
    expected = Run(folder / names[1]).weights_hash()
    run = Run(folder / names[1])
    shutil.rmtree(run.path / "checkpoints")  # as if it had been killed before its first checkpoint
    run.update(status="running")
    shutil.rmtree(folder / names[2])
    lines = ladder.commands(small, folder)
    assert [shlex.split(line)[6] for line in lines] == ["resume", "pretrain"]
    ladder.run_ladder(small, folder)
    assert (folder / names[0] / "metrics.jsonl").stat().st_mtime_ns == before
    assert Run(folder / names[1]).weights_hash() == expected
    assert Run(folder / names[2]).weights_hash() == Run(home / "ladder" / names[2]).weights_hash()
    assert ladder.commands(small, folder) == []
    with pytest.raises(CheckpointError, match="other settings than this ladder;"):
        ladder.run_ladder(config(home, lr=0.001), folder)
    with pytest.raises(ConfigError, match="--jobs is 0"):
        ladder.run_ladder(small, folder, jobs=0)


def ladder_options(home: Path, out: Path) -> list[str]:
    text = f"scaling run --data {home}/text.jsonl --tokenizer {home}/tokenizer.json --widths 16 --tokens 1024"
    return [*text.split(), "--context-length", "32", "--heldout-bytes", "2000", "--out", str(out)]


def test_the_printed_commands_make_the_same_runs(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                 capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert tercet(monkeypatch, *ladder_options(home, tmp_path / "l"), "--print-commands") == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert not (tmp_path / "l").exists()
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["sh", "-c", line], check=True, capture_output=True, env={**os.environ, "PATH": programs}, timeout=300
    )
    (name,) = config(home, widths=(16,), tokens=(1024,)).points(300)
    run = Run(tmp_path / "l" / name)
    assert run.manifest["status"] == "finished"
    assert run.weights_hash() == Run(home / "ladder" / name).weights_hash()


def test_several_processes_for_one_run_are_refused(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """What `torchrun --nproc-per-node 2` would do: two runs in one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    options = ["--data", str(home / "text.jsonl"), "--tokenizer", str(home / "tokenizer.json")]
    assert tercet(monkeypatch, "pretrain", *options, "--out", str(tmp_path / "run")) == 2
    assert "2 processes for one run; wanted 1" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_cluster_that_cannot_be_had_is_said(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                              capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    """Ray itself is met in proofs/test_ray.py."""
    options = ladder_options(home, tmp_path)
    for more, message in (
        (["--backend", "slurm"], "--backend is 'slurm'; wanted processes or ray"),
        (["--address", "auto"], "--address is auto, but only --backend ray uses it"),
        (["--backend", "ray", "--jobs", "2"], "--jobs is 2, but --backend ray decides"),
        (["--backend", "ray"], "install it with `pip install 'tercet[ray]'`"),
    ):
        monkeypatch.setitem(sys.modules, "ray", None)
        assert tercet(monkeypatch, *options, *more) == 2
        assert message in capsys.readouterr().err


def test_a_node_must_see_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = PretrainConfig(data=("text",), tokenizer="tokenizer.json")
    seen = []

    def work(config: PretrainConfig, path: str) -> float:
        seen.append(path)
        return 2.0

    for home, mark in ((tmp_path / "none", "mark"), (tmp_path, "ladder/mark")):
        with pytest.raises(ConfigError, match=r"ladder/run: the node .* does not see the folder"):
            cluster.at_home(work, given, "ladder/run", str(home), mark)
    (tmp_path / "ladder").mkdir()
    (tmp_path / "ladder" / "mark").touch()
    assert not seen
    assert cluster.at_home(work, given, "ladder/run", str(tmp_path), "ladder/mark") == 2.0
    assert seen == ["ladder/run"]


def test_a_task_waits_for_a_process_that_is_still_at_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of a node which Ray gave up; not without end."""
    monkeypatch.chdir(tmp_path)
    given = PretrainConfig(data=("text",), tokenizer="tokenizer.json")
    (tmp_path / "mark").touch()
    (tmp_path / "run").mkdir()
    slept: list[float] = []

    def work(config: PretrainConfig, path: str) -> float:
        return float(in_use(Path(path)))

    with (tmp_path / "run" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        monkeypatch.setattr(cluster, "LOST", 0.01)
        assert cluster.at_home(work, given, "run", str(tmp_path), "mark") == 1.0
        monkeypatch.setattr(cluster, "LOST", 60.0)
        monkeypatch.setattr("time.sleep", lambda seconds: (slept.append(seconds), lock.close()))
        assert cluster.at_home(work, given, "run", str(tmp_path), "mark") == 0.0
    assert len(slept) == 1


def test_side_by_side_is_the_same(home: Path, tmp_path: Path) -> None:
    two = config(home, widths=(16,), tokens=(1024, 2048))
    ladder.run_ladder(two, tmp_path, jobs=2)
    for name in two.points(300):
        assert Run(tmp_path / name).weights_hash() == Run(home / "ladder" / name).weights_hash()


def test_what_is_no_ladder_is_refused(home: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no finished pretraining run"):
        ladder.read_runs([tmp_path])
    with pytest.raises(DataError, match="no such folder"):
        ladder.read_runs([tmp_path / "none"])
    other = config(home, widths=(16,), tokens=(1024,), heldout_bytes=1000)
    ladder.run_ladder(other, tmp_path / "other")
    with pytest.raises(DataError, match="one law cannot hold for both"):
        ladder.read_runs([home / "ladder", tmp_path / "other"])


# -- commands ---------------------------------------------------------------------------------------------------------


def test_fit_and_predict(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tercet(monkeypatch, "scaling", "fit", str(home / "ladder"), "--out", str(tmp_path), "--draws", "20") == 0
    assert "parametric" in capsys.readouterr().out
    found = json.loads((tmp_path / "fit.json").read_text())
    assert set(found["laws"]) | set(found["missing"]) == {*laws.LAWS, "parametric_hidden", "iso_flop"} - (
        set() if "iso_flop" in found["missing"] else {"iso_flop"}
    )
    assert len(found["runs"]) == 9
    assert (tmp_path / "loss.png").stat().st_size > 5_000
    assert tercet(monkeypatch, "scaling", "predict", str(tmp_path), "--size", "20000", "--tokens", "8192") == 0
    said = capsys.readouterr().out
    law = scaling.Law.load(tmp_path)
    assert f"expected loss: {law.loss(20000, 8192):.3f}" in said
    assert tercet(monkeypatch, "scaling", "predict", str(tmp_path), "--flops", "1e9") == 0
    assert "best size" in capsys.readouterr().out
    assert tercet(monkeypatch, "scaling", "predict", str(tmp_path), "--size", "20000") == 2
    assert "give either --flops, or both --size and --tokens" in capsys.readouterr().err
    assert tercet(monkeypatch, "scaling", "predict", str(home / "text.jsonl"), "--flops", "1e9") == 2
    assert "not a fit.json" in capsys.readouterr().err
    assert tercet(monkeypatch, "scaling", "fit", str(home / "ladder"), "--max-flops", "1") == 2


def law_of(tmp_path: Path) -> scaling.Law:
    """A law without noise: 1 + 60 / N^.36 + 120 / D^.32."""
    n, d = np.array(list(itertools.product(np.geomspace(2e3, 2e6, 5), np.geomspace(1e4, 1e7, 5)))).T
    fit = laws.fit_parametric(laws.Points.of(n, d, 1 + 60 / n**0.36 + 120 / d**0.32), draws=20)
    return scaling.Law({"parametric": fit}, 300, 64, 1e12)


def test_how_far_the_laws_stray_is_seen_on_the_ladder_itself() -> None:
    """Losses of a law that both laws contain have no drift; with 2 % less per doubling in held-back runs they do."""
    n, c = np.array(list(itertools.product(np.geomspace(2e3, 2e5, 6), 1e10 * 2.0 ** np.arange(6)))).T
    exact = 20 / n**0.25 + 60 / (c / (6 * n)) ** 0.25
    assert scaling.drift_of(laws.Points.of(n, c / (6 * n), exact)) < 1e-4
    fitted_to = 1e10 * 2.0**3  # the last of the budgets that are at most a third of the largest
    bent = exact * 0.98 ** np.maximum(np.log2(c / fitted_to), 0)
    drift = scaling.drift_of(laws.Points.of(n, c / (6 * n), bent))
    assert drift == pytest.approx(-math.log(0.98), rel=0.02)
    assert scaling.drift_of(laws.Points.of(n[:6], c[:6] / (6 * n[:6]), exact[:6])) is None
    last = c == c.max()  # one budget: none of its runs is small
    assert scaling.drift_of(laws.Points.of(n[last], c[last] / (6 * n[last]), exact[last])) is None
    fit = laws.fit_simple(laws.Points.of(n, c / (6 * n), bent), draws=20)
    plain, wide = (
        scaling.Law({"simple": fit}, 300, 64, c.max(), d).predict(1e5, 8 * c.max() / 6e5) for d in (0, drift)
    )
    assert wide.value == plain.value
    assert wide.low == pytest.approx(plain.low * 0.98**3, rel=0.01)
    assert wide.high == pytest.approx(plain.high / 0.98**3, rel=0.01)


def test_the_best_size_is_that_of_all_widths_tried(tmp_path: Path) -> None:
    law = law_of(tmp_path)
    choice = scaling.best_for_flops(law, 1e13)

    def loss(width: int) -> float:
        shape = ModelConfig(300, 64, **shape_of(width))
        return 1 + 60 / shape.parameters() ** 0.36 + 120 / (1e13 / shape.flops_per_token()) ** 0.32

    assert choice.width == min(scaling.WIDTHS, key=loss)
    assert choice.loss == pytest.approx(loss(choice.width), rel=1e-3)


def test_the_cheapest_run_for_a_target(tmp_path: Path) -> None:
    law = law_of(tmp_path)
    found = budget.least_flops(law, 2.0, 300, 64)
    flops = found.tokens * found.shape.flops_per_token()
    assert found.loss <= 2.0
    assert scaling.best_for_flops(law, flops / 1.01).loss > 2.0
    with pytest.raises(ConfigError, match=r"1e24 FLOPs on this text give 1\.0"):
        budget.least_flops(law, 0.9, 300, 64)


# -- the dial ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("20min", (1200, 0)), ("90s", (90, 0)), ("1.5h", (5400, 0)), ("1e15flops", (0, 1e15)), ("2 hours", (7200, 0))],
)
def test_budgets_are_read(text: str, found: tuple[float, float]) -> None:
    assert budget.parse_budget(text) == pytest.approx(found)


@pytest.mark.parametrize("text", ["20", "min", "-3s", "0s", "1e999flops", "20 parsecs"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="wanted a time or FLOPs"):
        budget.parse_budget(text)


def test_tokens_within_a_time() -> None:
    cost = (0.01, 0.02)
    tokens = budget.tokens_within(30.0, 128, cost)
    steps = tokens / 128 / batch_rows(tokens, 128)
    assert tokens / 128 * 0.01 + steps * 0.02 == pytest.approx(30, rel=0.03)
    more = tokens * 1.02
    assert more / 128 * (0.01 + 0.02 / batch_rows(more, 128)) > 30


def base(home: Path, **changes: Any) -> PretrainConfig:
    values: dict[str, Any] = {
        "data": (str(home / "text.jsonl"),), "tokenizer": str(home / "tokenizer.json"), "context_length": 32,
        "heldout_bytes": 2000, "threads": 1,
    }  # fmt: skip
    return PretrainConfig(**{**values, **changes})


def test_a_plan_for_flops_spends_them(home: Path) -> None:
    found = budget.plan(base(home), budget="3e10flops")
    assert found.tokens * found.shape.flops_per_token() == pytest.approx(3e10, rel=0.05)
    assert found.config.minutes == 0
    assert found.expected.low < found.expected.value < found.expected.high
    assert "the law's runs have 512 token ids, this one 300" in found.lines()[-1]
    assert "context" not in found.lines()[-1]  # both are 32
    assert "at most 1.3e+12 FLOPs, this one 76 times as many" in budget.plan(base(home), budget="1e14flops").lines()[-1]


def test_what_repeated_text_is_worth() -> None:
    """A quarter of what is read comes from a source of 100 tokens: beyond 1,600 tokens it gives nothing more."""
    text = counting.Text(((0.25, 100.0), (0.75, 5000.0)))
    assert [text.worth(tokens) for tokens in (300.0, 1600.0, 2000.0, 1e6)] == [300, 1600, 400 + 1500, 400 + 20_000]
    assert text.epochs(2000) == 5


def test_the_dial_counts_the_text_that_there_is(home: Path) -> None:
    settings = base(home)
    tokenizer = Tokenizer.load(settings.tokenizer)
    ids = sum(len(tokenizer.encode(d.text)) + 1 for d in readers.read_documents(settings.data, readers.BadRows()))
    ((share, tokens),) = budget.estimate_text(settings, tokenizer).sources
    assert (share, tokens) == (1.0, pytest.approx(ids, rel=0.05))
    found = budget.plan(settings, budget="1e11flops")
    assert found.epochs == pytest.approx(found.tokens / tokens)
    assert any(f"{found.epochs:,.1f} epochs of your text" in line for line in found.lines())
    fresh = scaling.best_for_flops(scaling.Law.load(budget.DEFAULT_LAW), 1e11, tokenizer.vocab_size, 32)
    assert (
        fresh.tokens > counting.EPOCHS * tokens > found.tokens
    )  # a larger model, rather than the same text still again
    assert found.expected.value > fresh.loss
    with pytest.raises(ConfigError, match="--mixture and --data disagree on other"):
        budget.plan(base(home, mixture=("other=1",)), budget="1min")


def test_the_planner_limits_parameters_by_the_text(home: Path, tmp_path: Path) -> None:
    """A few sentences and a huge budget: at most 16 parameters per token, except at the smallest width."""
    write_rows(tmp_path / "few.jsonl", ({"text": t} for t in ["A red cat sat on a mat."] * 400))
    settings = base(home, data=(str(tmp_path / "few.jsonl"),))
    found = budget.plan(settings, budget="1e15flops")
    tokens = budget.estimate_text(settings, Tokenizer.load(settings.tokenizer)).tokens()
    assert 8 * tokens < found.shape.parameters() <= 16 * tokens
    assert "epochs beyond the fourth are not expected to help" in found.lines()[-1]
    assert budget.estimate_text(settings, Tokenizer.load(settings.tokenizer), until=0.0) == counting.ENDLESS


def test_a_fit_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    value = json.loads(budget.DEFAULT_LAW.read_text())
    for changed, said in (
        ({"format": 1}, "its format is 1, wanted 2; fit the laws again"),
        ({"drift": math.nan}, "drift is nan"),
        ({"drift": -0.5}, "wanted 0 to 1"),
    ):
        (tmp_path / "fit.json").write_text(json.dumps({**value, **changed}))
        with pytest.raises(DataError, match=said):
            scaling.Law.load(tmp_path)
    (tmp_path / "fit.json").write_text(json.dumps({**value, "drift": None}))
    assert scaling.Law.load(tmp_path).drift is None


def test_the_planner_refuses_settings_that_it_chooses_itself(home: Path) -> None:
    with pytest.raises(ConfigError, match="--hidden-size, --steps cannot be combined with --budget or --target-bpb"):
        budget.plan(base(home, hidden_size=64, steps=7), budget="1min")
    with pytest.raises(ConfigError, match="wanted either --budget or --target-bpb, above 0"):
        budget.plan(base(home), budget="1min", target_bpb=2)
    with pytest.raises(ConfigError, match="too small for a single step"):
        budget.plan(base(home), budget="10flops")


@pytest.mark.parametrize("share", [1.0, 0.2])
@pytest.mark.parametrize("text", ["1min", "20min", "20h"])
def test_planning_has_its_own_end(home: Path, monkeypatch: pytest.MonkeyPatch, text: str, share: float) -> None:
    """Planning ends within about 5 % and 60 s, and chooses the same size as with unlimited time.

    Only the learner moves the clock, on a machine that gives it all of a core or a fifth. Costs grow as estimated here.
    """
    now, speed = 0.0, 2e9 * share
    monkeypatch.setattr(time, "monotonic", lambda: now)

    def work(self: Any, batches: Any = (), *rest: Any) -> dict[str, float]:
        nonlocal now
        now += sum(b.tokens.numel() for b in batches) * self.model.config.flops_per_token() / speed
        return {}

    def update(self: Any, scale: float) -> float:
        nonlocal now
        now += self.model.config.parameters() * 20 / speed
        return 0.0

    monkeypatch.setattr(budget.Learner, "forward_backward", work)
    monkeypatch.setattr(budget.Learner, "optim_step", update)
    found = budget.plan(base(home), budget=text)
    seconds = budget.parse_budget(text)[0]
    assert 0 < now <= min(0.06 * seconds, 60)
    assert found.config.minutes * 60 == pytest.approx(seconds - now)
    capped = now
    monkeypatch.setattr(budget, "PLANNING", 1e6)
    monkeypatch.setattr(budget, "PLANNING_MOST", math.inf)
    began, free = now, budget.plan(base(home), budget=text, began=now)
    assert free.measured
    assert free.shape == found.shape
    assert free.seconds == pytest.approx(found.seconds, rel=0.02)
    assert found.measured or now - began > capped


def test_a_deadline_follows_the_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of 1 s that become steps of 3 s: the run still ends at its time, and the rate falls to 0 with it."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    deadline = Deadline.after(100.0)
    deadline.reserve = 4.0
    steps, done, rates = 1000, 0, []
    while done < steps:
        rates.append(schedule(done, steps, 2, 0.6))
        now += 1.0 if now < 50 else 3.0
        done += 1
        steps = deadline.steps(done)
    assert 92 <= now <= 96.5
    assert done == pytest.approx(50 + 46 / 3, abs=2)
    assert rates[-1] < 0.1


def test_a_run_ends_at_its_time(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = time.monotonic()
    words = f"pretrain --data {home}/text.jsonl --tokenizer {home}/tokenizer.json --budget 6s --context-length 32"
    more = f"--heldout-bytes 2000 --threads 1 --out {tmp_path}/run"
    assert tercet(monkeypatch, *words.split(), *more.split()) == 0
    seconds = time.monotonic() - start
    out = capsys.readouterr().out
    assert out.startswith("plan: ")
    assert "expected" in out
    assert 4.5 < seconds < 9  # generous: a busy machine; docs/measurements/scaling.md has the measured times
    run = Run(tmp_path / "run")
    assert run.manifest["status"] == "finished"
    last = run.metrics("heldout")[-1]["step"]
    assert last == run.metrics("loss")[-1]["step"]
    assert math.isclose(run.metrics("lr_scale")[-1]["lr_scale"], 0, abs_tol=0.2)
    assert ladder.read_runs([run.path]).tokens[0] == last * run.config["batch_size"] * 32


def test_a_run_with_a_deadline_can_be_resumed(home: Path, tmp_path: Path) -> None:
    from tercet import pretrain

    timed = base(
        home, minutes=0.03, hidden_size=16, num_heads=1, num_kv_heads=1, head_dim=16, steps=1, checkpoint_every=10
    )
    run = pretrain(timed, tmp_path / "run")
    first = run.metrics("loss")[-1]["step"]
    assert first > 1  # beyond the first guess
    run.update(status="running", seconds=0.0)  # as if no time had gone by
    again = pretrain(timed, tmp_path / "run", resume=True)
    assert again.metrics("heldout")[-1]["step"] > first
