"""PPO and the group methods as stages: every setting that changes the path, on tiny runs."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import At, World, assert_same_run, press_ctrl_c, records, write_world
from tercet import best_of_n
from tercet.errors import ConfigError, DataError
from tercet.model.ops import cross_entropy
from tercet.model.transformer import Transformer
from tercet.posttraining.rewards.stage import BestOfNConfig
from tercet.posttraining.rl import actor
from tercet.posttraining.rl.stage import METHODS
from tercet.reporting.report import write_report
from tercet.training.load import load_language_model
from tercet.training.run import Interrupted, Run
from tercet.training.stage import resume


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    made = write_world(tmp_path_factory.mktemp("world"))
    made.make_parents("ppo")
    return made


def finite(run: Run) -> list[dict[str, Any]]:
    rows = [r for r in records(run.path) if "reward" in r]
    assert all(math.isfinite(v) for row in rows for v in row.values())
    return rows


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_goes_on_where_it_stopped(world: World, tmp_path: Path, method: str) -> None:
    changes: dict[str, Any] = {
        "method": method,
        "steps": 3,
        "checkpoint_every": 1,
        "lora_rank": 2 if method == "rloo" else 0,
        "target_kl": 0.0 if method == "online_dpo" else 1.0,
    }
    whole = world.run("grpo", f"{method}-whole", **changes)
    rows = finite(whole)
    assert [r["step"] for r in rows] == [1, 2, 3]
    assert {
        "kl",
        "kl_k3",
        "finished",
        "length",
        "score/exact_match",
        "beta",
        "reward/rubric",
        "reward/exact_match",
    } <= rows[0].keys()
    assert all(r["kl_k3"] >= -1e-6 for r in rows)
    for phase in ("sample", "reward", "reference", "update"):
        line = json.loads((whole.path / "metrics.jsonl").read_text().splitlines()[0])
        assert line[f"seconds/{phase}"] > 0
    if "ratio" in rows[0]:
        assert rows[0]["first_ratio"] == pytest.approx(1, abs=1e-5)
        assert rows[0]["first_sampler_gap"] < 1e-5
    with pytest.raises(Interrupted):
        world.run("grpo", f"{method}-cut", progress=At(1, press_ctrl_c), **changes)
    resume(world.path(f"{method}-cut"))
    assert_same_run(Path(world.path(f"{method}-cut")), whole.path)


@pytest.mark.parametrize(
    "changes",
    [
        {"critic": "shared"},
        {"critic": "shared", "ema": 0.9, "epochs": 2},
        {"lora_rank": 2},
        {"whiten_rewards": True, "clip_reward": 0.5, "target_kl": 2.0},
        {"group_size": 2, "micro_batch": 3, "sync_every": 2},
        {"reward": ("rubric", "0.5*exact_match")},
        {"beta": 0.0, "log_kl": False},
    ],
    ids=str,
)
def test_ppo_with_its_settings(world: World, changes: dict[str, Any]) -> None:
    name = "-".join(changes)
    changes = {"steps": 3, "checkpoint_every": 1, "minibatches": 1, **changes}
    whole = world.run("ppo", f"whole-{name}", **changes)
    rows = finite(whole)
    assert ("kl" in rows[0]) == changes.get("log_kl", True)
    assert rows[0]["ptx_gradient_ratio"] > 0
    assert {"explained_variance", "value_loss", "advantage_std"} <= rows[0].keys()
    with pytest.raises(Interrupted):
        world.run("ppo", f"cut-{name}", progress=At(2, press_ctrl_c), **changes)
    resume(world.path(f"cut-{name}"))
    assert_same_run(Path(world.path(f"cut-{name}")), whole.path)
    assert isinstance(load_language_model(Run(whole.path)), Transformer)


def test_what_is_kept_is_the_average(world: World) -> None:
    run = world.run("ppo", "averaged", steps=3, ema=0.5, minibatches=1)
    kept, last = run.weights("model"), run.weights("policy")
    start = Run(world.path("tuned")).weights()
    name = "model.embed_tokens.weight"
    assert not torch.equal(kept[name], last[name])
    assert float((kept[name] - start[name]).norm()) < float((last[name] - start[name]).norm())
    assert torch.equal(load_language_model(run).output_weight, kept[name])


def test_a_lagging_sampler_is_known_as_such(world: World) -> None:
    """With sync_every 3 the second and third step's rollouts are stale: their gap to the trainer is not rounding."""
    run = world.run("grpo", "lagging", steps=4, sync_every=3, epochs=1, lr=5e-3, target_kl=0.0, ema=0.0)
    gaps = [r["first_sampler_gap"] for r in finite(run)]
    assert gaps[0] < 1e-5
    assert gaps[3] < 1e-5
    assert min(gaps[1:3]) > 1e-4


def test_memory_never_holds_all_logits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No matrix product with the vocabulary has more than CHUNK rows, whatever the batch."""
    seen: list[int] = []
    whole = cross_entropy._log_softmax

    def watched(hidden: torch.Tensor, *more: Any) -> torch.Tensor:
        seen.append(len(hidden))
        return whole(hidden, *more)

    monkeypatch.setattr(cross_entropy, "CHUNK", 50)
    monkeypatch.setattr(cross_entropy, "_log_softmax", watched)
    world.run("grpo", "bounded", steps=1, batch_size=8, group_size=4)
    assert sum(seen) > 400
    assert max(seen) <= 50


@pytest.mark.parametrize(
    ("reward", "error", "message"),
    [
        ("exact", ConfigError, "neither a known reward nor a folder.*did you mean 'exact_match'"),
        ("0*rubric", ConfigError, "every weight is 0"),
        ("python:missing.py:f", DataError, "missing.py"),
    ],
)
def test_rewards_that_cannot_be_had_leave_nothing_behind(
    world: World, tmp_path: Path, reward: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        world.run("grpo", "refused", reward=(reward,))
    assert not Path(world.path("refused")).exists() or not any(Path(world.path("refused")).iterdir())


def test_a_function_that_fails_says_where(world: World, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def score(prompt, answer, answers):\n    return {}['x']\n")
    with pytest.raises(DataError, match=r"tasks\.jsonl:\d+: reward score failed on the answer .*KeyError"):
        world.run("grpo", "failing", reward=(f"python:{tmp_path}/mine.py:score",))


def test_the_report_has_a_section_for_each_way(world: World) -> None:
    group = world.run("grpo", "told", steps=2)
    direct = world.run("dpo", "direct", steps=2)
    config = BestOfNConfig(
        model=world.path("tuned"),
        reward=("rubric",),
        prompts=(world.path("tasks.jsonl"),),
        answers=4,
        max_new_tokens=10,
        threads=1,
    )
    best = best_of_n(config, world.path("best"))
    page = write_report([r.path for r in (group, direct, best)], world.path("report.html")).read_text()
    for section in ("dpo", "best-of-n", "ppo"):
        assert f'<section id="{section}"' in page
    assert "loss kto, 2 steps" in page
    assert f"{best.manifest['best_of_n'][-1]['kl']:.3f}" in page


def test_groups_that_teach_nothing_give_way_to_prompts_not_seen_yet(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all answers have the same score, each round of each step samples prompts that no earlier round had."""
    (tmp_path / "flat.py").write_text("def score(prompt, answer, answers):\n    return 1.0\n")
    sampled: list[tuple[int, ...]] = []
    generate_rollouts = actor.generate_rollouts

    def watched(policy: Transformer, reference: Any, prompts: Any, *more: Any, **options: Any) -> Any:
        sampled.extend(map(tuple, prompts))
        return generate_rollouts(policy, reference, prompts, *more, **options)

    monkeypatch.setattr(actor, "generate_rollouts", watched)
    run = world.run(
        "grpo",
        "flat",
        method="dapo",
        reward=(f"python:{tmp_path}/flat.py:score",),
        missing_eos_score=1.0,
        steps=3,
        resample=3,
        batch_size=2,
        sync_every=1,
        target_kl=0.0,
        seed=0,
    )
    assert len(sampled) == 3 * 4 * 2
    texts = [json.loads(line)["prompt"] for line in Path(world.path("tasks.jsonl")).read_text().splitlines()]
    assert sorted(Counter(sampled).values()) == sorted(Counter(texts).values())  # all of the world's tasks, each once
    assert [row["equal_groups"] for row in finite(run)] == [1.0] * 3
