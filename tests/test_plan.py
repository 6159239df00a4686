"""The demo's plan: what is measured on this machine, and how many steps fit into the time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tercet.errors import ConfigError
from tercet.recipes import plan as module
from tercet.recipes.plan import CONTEXT, LIMITS, ROWS, DemoPlan, check_minutes
from tercet.training import step_time


class Clock:
    """Stands in for `time` and for the learner: a step takes as long as the test says, in two parts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, list[float]]) -> None:
        self.now, self.precision = 0.0, ""
        self.seconds = {precision: list(steps) for precision, steps in seconds.items()}
        for timed in (module, step_time):
            monkeypatch.setattr(timed, "time", SimpleNamespace(monotonic=lambda: self.now))
        monkeypatch.setattr(module, "Learner", self.learner)

    def learner(self, model: Any, optimizer: Any, precision: str) -> Clock:
        self.model, self.precision = model, precision
        return self

    def forward_backward(self, batches: list[Any], objective: Any) -> None:
        assert batches[0].tokens.shape == (ROWS, CONTEXT)
        self.now += 0.75 * self.seconds[self.precision][0]

    def optim_step(self, scale: float) -> None:
        assert scale == 1
        self.now += 0.25 * self.seconds[self.precision].pop(0)


@pytest.mark.parametrize(("fast", "precision"), [(0.25, "bfloat16"), (0.47, "float32"), (1.0, "float32")])
def test_the_speed_is_the_median_of_three_steps_after_one(
    monkeypatch: pytest.MonkeyPatch, fast: float, precision: str
) -> None:
    clock = Clock(monkeypatch, {"float32": [3.0, 0.5, 0.4, 0.6], "bfloat16": [3.0, fast, fast / 2, fast]})
    plan = DemoPlan(2, 1)
    plan.measure()
    assert clock.seconds == {"float32": [], "bfloat16": []}
    assert plan.speed == pytest.approx(ROWS * CONTEXT / 0.5)
    assert plan.precision == precision
    assert plan.fast_speed == pytest.approx(ROWS * CONTEXT / (fast if precision == "bfloat16" else 0.5))


def test_steps_fill_the_share_of_the_time_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {})
    plan = DemoPlan(10, 1, began=0.0, speed=4_000.0, fast_speed=8_000.0)
    clock.now = 100.0
    assert plan.clock() == "1:40"
    # 0.87 of 600 s, less 45 s for the scores at the end, less what has passed
    assert plan.left() == pytest.approx(522 - 45 - 100)
    assert plan.steps("pretrain") == int((0.44 * 377 - 15) * 8_000 / 2_048)
    assert plan.steps("ppo") == int((0.53 * 377 - 15) * 4_000 / 22_000)
    plan.correct(4_000.0)  # half as fast as was measured: so is float32
    assert (plan.speed, plan.fast_speed) == (2_000, 4_000)
    clock.now = 599.0
    assert [plan.steps(stage) for stage in LIMITS] == [60, 50, 20, 9]
    clock.now, plan.minutes, plan.speed, plan.fast_speed = 0.0, 120, 1e6, 1e6
    assert [plan.steps(stage) for stage in LIMITS] == [40_000, 1_200, 120, 300]


def test_more_minutes_are_a_larger_model() -> None:
    shapes = [DemoPlan(minutes, 1).shape() for minutes in (2, 5.9, 6, 24.9, 25, 60, 120)]
    sizes = [(s["num_layers"], s["hidden_size"], s["num_heads"], s["intermediate_size"]) for s in shapes]
    four, five, six, eight = (4, 128, 2, 320), (5, 192, 3, 512), (6, 256, 4, 640), (8, 320, 5, 832)
    assert sizes == [four, four, five, five, six, eight, eight]
    assert all(s["num_kv_heads"] == s["num_heads"] and s["num_heads"] * 64 == s["hidden_size"] for s in shapes)


@pytest.mark.parametrize("minutes", [1.9, 120.5, float("nan")])
def test_minutes_that_are_too_few_or_too_many_are_refused(minutes: float) -> None:
    check_minutes(2)
    check_minutes(120)
    with pytest.raises(ConfigError, match=r"--minutes is .*; wanted a number from 2 to 120"):
        check_minutes(minutes)
