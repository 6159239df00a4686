"""The known curves, four worlds each. What is significant is asserted; the rest is printed (`pytest -s`) and in docs/measurements/curves.md."""

from __future__ import annotations

import itertools
import math
import os
from typing import Any

import numpy as np
import pytest
from curves import curves
from curves_measure import BETAS, GAMMAS
from curves_summary import fit, peak
from curves_world import SIZES

SEEDS = range(4)
# of curve a: its world was chosen by a look at the seeds 0 to 2, and what is asserted of it by one at 0 to 19
FRESH = range(16, 24)


def found(curve: str, seeds: range = SEEDS) -> Any:
    """The summary of one curve."""
    return curves(curve, seeds, os.cpu_count() or 1)[curve]["summary"]


def above(estimate: dict[str, Any], bound: float = 0.0) -> bool:
    """Whether the whole interval is above the bound."""
    low: float = estimate["low"]
    return low > bound


def test_gold_peaks_while_the_proxy_rises() -> None:
    summary = found("a", FRESH)
    small, middle, large = map(str, SIZES)
    for size in (small, middle, large):
        print(size, summary["agreement"][size], summary["peak"][size], summary["fit"][size])
    print("from the smallest to the largest:", summary["moves"])
    top = summary["peak"][small]
    columns = ("fall", "fall_error", "rise", "rise_error", "d", "furthest")
    worlds = list(zip(*(top[name]["seeds"] for name in columns)))
    # the peak is inside, and both moves from there are beyond what chance among the answers can do; not in every world (docs/measurements/curves.md)
    fell = [
        fall > error and rise > rise_error and d < furthest for fall, error, rise, rise_error, d, furthest in worlds
    ]
    assert sum(fell) >= 4
    assert above(summary["moves"]["d"])
    assert above(summary["moves"]["gold"])
    assert above(summary["fit"][small]["rl"]["beta"])  # it bends down
    for size in (small, middle, large):
        assert above(summary["fit"][size]["bon"]["r2"], 0.9)
        assert summary["fit"][size]["rl"]["r2"]["value"] > 0.5


def test_a_smaller_beta_buys_reward_with_kl() -> None:
    summary = found("b")
    print(summary)
    # the last step, to no penalty at all, is too small to tell; from 0.1 it is not
    for earlier, later in (*itertools.pairwise(f"{b:g}" for b in BETAS[:-1]), ("0.1", "0")):
        step = summary["steps"][f"{later} - {earlier}"]
        assert above(step["kl"])
        assert above(step["proxy"])


def test_without_the_pretraining_term_the_tax_is_highest() -> None:
    summary = found("c")
    print(summary)
    assert above(summary["points"]["0"]["tax"])
    for gamma in GAMMAS[1:]:
        assert summary["steps"][f"{gamma:g} - 0"]["tax"]["high"] < 0
    for earlier, later in itertools.pairwise(f"{g:g}" for g in GAMMAS):
        assert summary["steps"][f"{later} - {earlier}"]["tax"]["high"] < 0


def test_the_same_labels_are_worth_more_to_rl_than_to_imitation() -> None:
    summary = found("f")
    print(summary)
    steps = summary["steps"]
    assert above(steps["SFT - base"]["gold"])
    assert above(steps["DPO, β .1 - SFT"]["gold"])
    assert above(steps["PPO, β .1 - SFT"]["gold"])


@pytest.mark.parametrize(("form", "top"), [("bon", 2.0), ("rl", math.e)])
def test_the_fit_finds_the_curve_it_was_given(form: str, top: float) -> None:
    d = np.linspace(0.3, 5, 40)
    curve = d * (2 - 0.5 * d) if form == "bon" else d * (2 - np.log(d))
    got = fit(d, curve, form)
    assert got["alpha"] == pytest.approx(2)
    assert got["beta"] == pytest.approx(0.5 if form == "bon" else 1)
    assert got["peak"] == pytest.approx(top)
    assert got["r2"] == pytest.approx(1)


def test_the_peak_is_chosen_on_other_steps_than_it_is_measured_on() -> None:
    def row(gold: float, d: float) -> dict[str, float]:
        return {"gold": gold, "proxy": d, "kl": d * d, "gold_error": 0.1, "proxy_error": 0.1}

    even, odd = [row(0, 0), row(9, 1), row(0, 2), row(0, 3)], [row(0, 0), row(1, 1), row(2, 2), row(0, 3)]
    got = peak({"even": even, "odd": odd, "points": odd})
    assert (got["d"], got["gold"], got["end"], got["fall"], got["rise"]) == (1, 1, 1, 0, 1.5)
