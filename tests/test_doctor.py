"""The doctor: healthy runs of every stage have nothing wrong, and every illness is found and named."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from helpers import At, World, press_ctrl_c, write_rows, write_world
from tercet.cli.main import main
from tercet.diagnostics import probe as doctor_probe
from tercet.diagnostics.doctor import examine
from tercet.diagnostics.findings import Finding, Records, judged
from tercet.errors import ConfigError, NonFiniteError
from tercet.posttraining.rl import policy
from tercet.posttraining.rl.rollouts import Rollouts, logprobs
from tercet.tokenizer.chat_template import Rendered, render_fitting
from tercet.training.run import Interrupted

HEALTHY = {"pretrain": "p", "sft": "s", "reward": "r", "dpo": "d", "ppo": "o", "grpo": "g"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A folder with a healthy run of every stage."""
    made = write_world(tmp_path_factory.mktemp("doctor"))
    for verb, name in HEALTHY.items():
        made.run(verb, name, **({"steps": 26} if verb == "reward" else {}))  # 13 are too few for some seeds
    return made


def verdicts(path: str | Path, probe: bool = False) -> dict[str, str]:
    return {f.name: f.verdict for f in examine(path, probe)}


def sick(
    world: World, name: str, change: Callable[[dict[str, Any]], dict[str, Any]], repeat: int = 1
) -> dict[str, str]:
    """Verdicts on a healthy run's copy whose records are changed; `repeat` makes it longer."""
    copy = world.folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(world.path(name), copy)
    rows = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    longer = [{**r, "step": r["step"] + 13 * n} for n in range(repeat) for r in rows]
    (copy / "metrics.jsonl").write_text("".join(json.dumps(change(dict(r))) + "\n" for r in longer))
    return verdicts(copy)


# -- health -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", HEALTHY)
def test_a_healthy_run_has_nothing_wrong(world: World, verb: str) -> None:
    before = {p: p.stat().st_mtime_ns for p in Path(world.path(HEALTHY[verb])).rglob("*") if p.is_file()}
    found = examine(world.path(HEALTHY[verb]))
    assert [f for f in found if f.verdict == "wrong" or (f.verdict != "ok" and not f.advice)] == []
    names = [f.name for f in found]
    assert len(names) == len(set(names))
    assert {
        "status",
        "checkpoints",
        "numbers that are not finite",
        "gradient norm (median)",
        "weights that are not finite",
    } <= {*names}
    assert "fresh measurements of the model" not in names  # the probe went through
    assert before == {p: p.stat().st_mtime_ns for p in before}  # nothing was touched


def test_the_probes_measure_what_they_say(world: World) -> None:
    tuned = {f.name: f for f in examine(world.path("s"))}
    assert 0.05 < tuned["share of tokens that are trained on"].value < 0.95
    assert tuned["share of answers whose end token is trained on"].value == 1
    for name in ("o", "g"):
        found = {f.name: f for f in examine(world.path(name))}
        assert 0 < found["log-probability of new samples, sampler − trainer"].value < 1e-4
        assert abs(found["probability ratio of new samples"].value - 1) < 1e-4
        assert found["KL to the reference on new samples, by k3"].value > 0
        assert 0 < found["share of prompts whose answers begin differently"].value <= 1
    reward = {f.name: f for f in examine(world.path("r"))}
    assert 0.5 < reward["spread of the scores"].value < 2
    assert reward["change of a score by padding or packing / spread of the scores"].value < 1e-4
    assert {f.name: f.value for f in examine(world.path("d"))}["log-ratio to the reference at step 1"] == 0


def test_a_run_that_makes_no_model_is_examined_too(world: World) -> None:
    world.run("annotate", "k")
    assert verdicts(world.path("k"), probe=True) == {"status": "ok"}


# -- status and checkpoints -------------------------------------------------------------------------------------------


def test_interrupted_and_killed_runs(world: World) -> None:
    with pytest.raises(Interrupted):
        world.run("sft", "stopped", progress=At(3, press_ctrl_c))
    found = {f.name: f for f in examine(world.path("stopped"))}
    assert found["status"].verdict == "look"
    assert "tercet resume" in found["status"].advice
    assert "wrong" not in {f.verdict for f in found.values()}
    manifest = Path(world.path("stopped")) / "run.json"
    manifest.write_text(manifest.read_text().replace('"interrupted"', '"running"'))
    assert verdicts(world.path("stopped"))["status"] == "look"  # nobody works on it


def test_a_running_run_is_well(world: World) -> None:
    seen: dict[str, str] = {}
    world.run("sft", "alive", progress=At(6, lambda: seen.update(verdicts(world.path("alive"), probe=True))))
    assert seen["status"] == "ok"
    assert "wrong" not in seen.values()


def test_a_run_that_diverged(world: World) -> None:
    with pytest.raises(NonFiniteError):
        world.run("sft", "diverged", lr=1e30, muon_lr=0.0, warmup=0)
    found = {f.name: f for f in examine(world.path("diverged"))}
    assert found["status"].verdict == "wrong"
    assert "NonFiniteError" in found["status"].advice


def test_damaged_checkpoints(world: World) -> None:
    copy = world.folder / "damaged"
    shutil.copytree(world.path("s"), copy)
    newest = sorted((copy / "checkpoints").glob("step-*"))[-1] / "model.safetensors"
    tensors = load_file(newest)
    tensors[next(iter(tensors))][0] = float("nan")
    save_file(tensors, newest)
    assert verdicts(copy, probe=True)["weights that are not finite"] == "wrong"
    os.truncate(newest, newest.stat().st_size - 10)
    found = verdicts(copy, probe=True)
    assert found["checkpoints"] == "wrong"
    assert found["fresh measurements of the model"] == "look"
    shutil.rmtree(newest.parent)
    assert verdicts(copy)["checkpoints"] == "wrong"  # finished, but the last one is missing


def test_records_that_are_damaged_or_lost(world: World) -> None:
    copy = world.folder / "records"
    shutil.copytree(world.path("g"), copy)
    file, text = copy / "metrics.jsonl", (copy / "metrics.jsonl").read_text()
    for line in ("[1, 2]", '{"step": 2, "reward": "x"}', '{"step": 2, "reward": null}', '{"reward": 1.0}'):
        file.write_text(text + line + "\n")
        assert verdicts(copy)["metrics.jsonl"] == "wrong"
    file.unlink()
    assert verdicts(copy)["metrics.jsonl"] == "wrong"
    file.write_text(text)
    assert "metrics.jsonl" not in verdicts(copy)
    (copy / "model.json").unlink()
    assert verdicts(copy)["model.json"] == "wrong"
    reward = world.folder / "uncalibrated"
    shutil.copytree(world.path("r"), reward)
    for text in ("{", "{}", "[]"):
        (reward / "calibration.json").write_text(text)
        assert verdicts(reward)["calibration.json"] == "wrong"


def test_inputs_that_are_gone(world: World) -> None:
    copy = world.folder / "moved"
    shutil.copytree(world.path("s"), copy)
    config = copy / "config.json"
    config.write_text(config.read_text().replace("chats.jsonl", "nowhere.jsonl"))
    found = verdicts(copy, probe=True)
    assert found["fresh measurements of the model"] == "look"
    assert found["weights that are not finite"] == "ok"  # what could be measured before stays
    with pytest.raises(ConfigError):
        examine(world.folder / "nothing")


# -- records ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "metric", "value", "check"),
    [
        ("s", "loss", float("nan"), "numbers that are not finite"),
        ("o", "kl", -3.0, "KL to the reference, by k1"),
        ("o", "kl_k3", -0.5, "KL to the reference, by k3"),
        ("o", "kl_k3", 0.5, "KL to the reference at step 1"),
        ("g", "first_ratio", 1.2, "probability ratio before the first update"),
        ("g", "first_sampler_gap", 0.1, "log-probability, sampler − trainer"),
        ("g", "finished", 0.0, "share of answers that end by themselves"),
        ("g", "equal_groups", 1.0, "share of groups whose scores are all equal"),
        ("g", "advantage_std", 0.0, "standard deviation of the advantages"),
        ("g", "clip_fraction", 0.6, "share of clipped ratios"),
        ("o", "ptx_gradient_ratio", 1e3, "pretraining gradient / RL gradient"),
        ("o", "ptx_gradient_ratio", 1e-4, "pretraining gradient / RL gradient"),
        ("o", "grad_norm", 0.0, "gradient norm (median)"),
        ("d", "reward_margin", -0.2, "chosen reward − rejected reward"),
        ("d", "accuracy", 0.2, "share of training pairs in the right order"),
        ("d", "chosen_reward", 0.3, "log-ratio to the reference at step 1"),
    ],
)
def test_a_sick_number_is_found(world: World, run: str, metric: str, value: float, check: str) -> None:
    ended = {"finished": 1.0} if metric == "finished" else {}  # so small a model may also end too few by itself
    assert sick(world, run, lambda row: row | ended)[check] == "ok"
    assert sick(world, run, lambda row: row | ({metric: value} if metric in row else {}))[check] == "wrong"


@pytest.mark.parametrize(
    ("run", "metric", "curve", "check", "verdict"),
    [
        ("o", "entropy", lambda t: 1.5 * 0.9**t, "entropy / entropy at the start", "wrong"),
        ("o", "reward", lambda t: 0.0, "reward", "look"),
        ("o", "reward", lambda t: -0.1 * t, "reward", "wrong"),
        ("s", "loss", lambda t: 5.0 + 0.1 * t, "loss", "wrong"),
        ("s", "loss", lambda t: 5.0 - 0.1 * min(t, 20) + 0.15 * max(t - 20, 0), "loss", "wrong"),  # falls, then rises
        ("s", "loss", lambda t: 5.0, "loss", "look"),
        ("s", "loss", lambda t: 2.0 + 3.0 * 0.5**t, "share of the fall in the last quarter of the steps", "look"),
        ("s", "loss", lambda t: 5.0 - 0.05 * t, "share of the fall in the last quarter of the steps", "ok"),
        ("s", "heldout", lambda t: 5.0 + 0.1 * t, "held-out loss / before training", "wrong"),
        ("s", "heldout", lambda t: 5 - 0.1 * min(t, 20) + 0.03 * max(t - 20, 0), "held-out loss / its lowest", "look"),
        ("o", "heldout", lambda t: 2.0 + 0.05 * t, "bits per byte of held-out text / before training", "wrong"),
        ("s", "grad_norm", lambda t: 50.0, "share of gradients above 10 × --clip-norm", "look"),
        ("d", "chosen_logp", lambda t: -20.0 - t, "log-probability of the chosen answers", "wrong"),
        ("d", "chosen_logp", lambda t: -20.0 - 0.2 * t, "log-probability of the chosen answers", "look"),
        ("d", "chosen_logp", lambda t: -20.0 + 0.1 * t, "log-probability of the chosen answers", "ok"),
    ],
)  # fmt: skip
def test_a_sick_curve_is_found(world: World, run: str, metric: str, curve: Any, check: str, verdict: str) -> None:
    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row | ({metric: curve(row["step"])} if metric in row else {})

    assert sick(world, run, change, repeat=4)[check] == verdict


@pytest.mark.parametrize(
    ("key", "check"),
    [
        ("score/exact_match", "score by exact match"),
        ("score/numeric:0.5", "score by numeric:0.5"),
        ("gold", "score by rubric"),
    ],
)
def test_the_reward_rises_and_a_score_falls(world: World, key: str, check: str) -> None:
    """Also under the name that the rubric had in logs before scorers had names."""

    def change(row: dict[str, Any]) -> dict[str, Any]:
        return row | {"reward": 0.1 * row["step"], key: 0.9 - 0.01 * row["step"]} if "reward" in row else row

    assert sick(world, "o", change, repeat=3)[check] == "wrong"


def test_a_gap_of_stale_rollouts_is_not_a_fault(world: World) -> None:
    stale = sick(world, "g", lambda r: r | ({"first_sampler_gap": 0.1} if r["step"] % 3 != 1 and "kl" in r else {}))
    assert stale["log-probability, sampler − trainer"] == "ok"  # the run hands on its weights every third step
    assert stale["log-probability gap of stale rollouts"] == "ok"


# -- runs that are sick in truth --------------------------------------------------------------------------------------


def test_answers_that_never_end_teach_nothing(world: World) -> None:
    world.run("grpo", "endless", max_new_tokens=1, steps=10, ema=0.0, target_kl=0.0, beta=0.0)
    found = verdicts(world.path("endless"), probe=True)
    assert found["share of new samples that end by themselves"] != "ok"
    for check in ("share of answers that end by themselves", "share of groups whose scores are all equal",
                  "standard deviation of the advantages", "gradient norm (median)"):  # fmt: skip
        assert found[check] == "wrong", check


@pytest.mark.parametrize("gamma", [1e-5, 1e4])
def test_a_pretraining_term_that_is_far_too_small_or_large(world: World, gamma: float) -> None:
    world.run("ppo", f"gamma{gamma}", gamma=gamma, steps=4)
    assert verdicts(world.path(f"gamma{gamma}"))["pretraining gradient / RL gradient"] == "wrong"


def test_a_critic_that_does_not_learn(world: World) -> None:
    world.run("ppo", "critic", critic_lr=0.0, steps=22, gamma=0.0)
    assert verdicts(world.path("critic"))["variance explained by the critic"] == "wrong"


def test_another_temperature_in_the_trainer(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "logprobs", lambda m, r, temperature: logprobs(m, r, 1.3 * temperature))
    world.run("grpo", "temperature", steps=4)
    assert verdicts(world.path("temperature"))["probability ratio before the first update"] == "wrong"
    monkeypatch.setattr(doctor_probe, "logprobs", lambda m, r, temperature: logprobs(m, r, 1.3 * temperature))
    fresh = verdicts(world.path("g"), probe=True)
    assert (
        fresh["log-probability of new samples, sampler − trainer"]
        == fresh["probability ratio of new samples"]
        == "wrong"
    )


def test_a_kl_of_the_wrong_sign(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Rollouts.kl
    with monkeypatch.context() as patch:
        patch.setattr(Rollouts, "kl", lambda self: -right(self))
        world.run("grpo", "sign", lr=6e-3, steps=30, beta=0.0, target_kl=0.0, sync_every=1, ema=0.0)
        assert verdicts(world.path("sign"), probe=True)["KL to the reference on new samples, by k1"] == "wrong"
    assert verdicts(world.path("sign"))["KL to the reference, by k1"] == "wrong"


def test_random_numbers_that_a_group_shares(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    generate = doctor_probe.generate_rollouts

    def shared(*args: Any, **rest: Any) -> Any:
        return generate(*args[:4], [0] * len(args[4]), *args[5:], **rest)

    monkeypatch.setattr(doctor_probe, "generate_rollouts", shared)
    found = {f.name: f for f in examine(world.path("g"))}["share of prompts whose answers begin differently"]
    assert (found.value, found.verdict) == (0.0, "wrong")


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_mask_of_all_or_nothing(world: World, monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    def lost(*args: Any) -> tuple[Rendered, int]:
        rendered, cut = render_fitting(*args)
        return Rendered(rendered.tokens, [weight] * len(rendered)), cut

    monkeypatch.setattr(doctor_probe, "render_fitting", lost)
    found = verdicts(world.path("s"), probe=True)
    assert found["share of tokens that are trained on"] == "wrong"
    assert found["share of other roles' tokens that are trained on"] == ("wrong" if weight else "ok")


def test_an_end_token_that_is_not_trained_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(tokenizer: Any, *args: Any) -> tuple[Rendered, int]:
        rendered, cut = render_fitting(tokenizer, *args)
        return Rendered(
            rendered.tokens, [w * (t != tokenizer.im_end) for t, w in zip(rendered.tokens, rendered.weights)]
        ), cut

    monkeypatch.setattr(doctor_probe, "render_fitting", endless)
    assert verdicts(world.path("s"), probe=True)["share of answers whose end token is trained on"] == "wrong"


def test_a_score_that_depends_on_the_batch(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    right = doctor_probe.score_texts
    monkeypatch.setattr(doctor_probe, "score_texts", lambda m, t, pad: [x + 0.1 * len(t) for x in right(m, t, pad)])
    assert (
        verdicts(world.path("r"), probe=True)["change of a score by padding or packing / spread of the scores"]
        == "wrong"
    )


@pytest.mark.parametrize(("accuracy", "verdict"), [(0.7, "ok"), (0.4, "look")])
def test_the_order_of_a_run_that_is_not_done_is_that_of_its_last_measurement(
    world: World, accuracy: float, verdict: str
) -> None:
    """`run.json` gets the accuracy with its interval at the end only."""
    sick(world, "r", lambda row: row | ({"heldout_accuracy": accuracy} if "heldout_accuracy" in row else {}))
    manifest = json.loads((world.folder / "copy" / "run.json").read_text())
    del manifest["accuracy"]
    (world.folder / "copy" / "run.json").write_text(json.dumps(manifest))
    assert verdicts(world.folder / "copy")["held-out accuracy"] == verdict


def test_labels_that_are_swapped(world: World) -> None:
    rows = [json.loads(line) for line in Path(world.path("rankings.jsonl")).read_text().splitlines()]
    swapped = write_rows(world.folder / "swapped.jsonl", ({**row, "ranks": row["ranks"][::-1]} for row in rows))
    world.run("reward", "swapped", heldout=(swapped,), steps=26)
    assert verdicts(world.path("swapped"))["held-out accuracy"] == "wrong"


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "code"), [("o", 0), ("sick", 1)])
def test_the_command(world: World, run: str, code: int, monkeypatch: Any, capsys: Any) -> None:
    if code:
        sick(world, "o", lambda row: row | ({"kl": -3.0} if "kl" in row else {}))
        Path(world.path("copy")).rename(world.path("sick"))
    monkeypatch.setattr(sys, "argv", ["tercet", "doctor", world.path(run), "--no-probe"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().out
    assert (end.value.code or 0) == code
    assert f"{code} wrong" in said
    assert ("Its sign is wrong, or the reference is another model" in said) == bool(code)


def test_the_trend_is_of_the_first_and_the_last_fifth() -> None:
    """Means and standard errors by hand: what lies between the two does not count."""
    losses = [1.0, 2.0, 3.0, *[50.0, -50.0] * 5, 8.0, 8.0, 11.0]
    rows = [{"step": n, "loss": loss} for n, loss in enumerate(losses, 1)]
    records = Records(SimpleNamespace(config={}, read_lines=lambda name: rows))  # type: ignore[arg-type]
    assert records.trend("loss") == (2, 9, pytest.approx(((2 / 3 + 2) / 3) ** 0.5))


def test_bands() -> None:
    def verdict(value: float) -> str:
        return judged("x", value, "", "do this", look=(1, 2), wrong=(0, 3)).verdict

    assert [verdict(v) for v in (1.5, 1, 2, 0.5, 3, -0.1, 3.1, float("nan"))] == ["ok"] * 3 + ["look"] * 2 + [
        "wrong"
    ] * 3
    assert isinstance(judged("x", 1, ""), Finding)
