"""The known curves of preference learning: what is significant over worlds is asserted.

Four worlds each, and eight for over-optimisation. Numbers are printed (`pytest -s`) and in docs/measurements/curves.md.
"""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tercet.studies.estimates import above, below
from tercet.studies.known_reward.alignment_tax_study import ALIGNMENT_TAX
from tercet.studies.known_reward.frontier_study import FRONTIER
from tercet.studies.known_reward.over_optimisation import fell, fit, peak
from tercet.studies.known_reward.over_optimisation_study import OVER_OPTIMISATION
from tercet.studies.known_reward.sweeps import BETAS, GAMMAS
from tercet.studies.known_reward.why_rl_study import WHY_RL
from tercet.studies.known_reward.world import SIZES
from tercet.studies.study import Study

# The kind of world was chosen by a look at seeds 0 to 2, and what is asserted of curve a by one at seeds 0 to 19.
FRESH = 16


def results(study: Study, out: Path, **settings: int) -> Any:
    """The results of a study."""
    record = study(study.settings(**settings), out)
    print((out / "summary.md").read_text(encoding="utf-8"))
    return record["results"]


def test_gold_peaks_while_the_proxy_rises(tmp_path: Path) -> None:
    summary = results(OVER_OPTIMISATION, tmp_path / "out", seed=FRESH, seeds=8)["summary"]
    small, middle, large = map(str, SIZES)
    # the peak is inside, and both moves from there are beyond chance among the answers; not in every world
    # (docs/measurements/curves.md)
    assert sum(fell(summary["peak"][small])) >= 4
    assert above(summary["moves"]["d"])
    assert above(summary["moves"]["gold"])
    assert above(summary["fit"][small]["rl"]["beta"])  # it bends down
    for size in (small, middle, large):
        assert above(summary["fit"][size]["bon"]["r2"], 0.9)
        assert summary["fit"][size]["rl"]["r2"]["value"] > 0.5


def test_a_smaller_beta_buys_reward_with_kl(tmp_path: Path) -> None:
    differences = results(FRONTIER, tmp_path / "out")["differences"]
    # the last step, to no penalty at all, is too small to tell; from 0.1 it is not
    for earlier, later in (*itertools.pairwise(f"{b:g}" for b in BETAS[:-1]), ("0.1", "0")):
        difference = differences[f"{later} - {earlier}"]
        assert above(difference["kl"])
        assert above(difference["proxy"])


def test_without_the_pretraining_term_the_tax_is_highest(tmp_path: Path) -> None:
    found = results(ALIGNMENT_TAX, tmp_path / "out")
    assert above(found["points"]["0"]["tax"])
    for gamma in GAMMAS[1:]:
        assert below(found["differences"][f"{gamma:g} - 0"]["tax"])
    for earlier, later in itertools.pairwise(f"{g:g}" for g in GAMMAS):
        assert below(found["differences"][f"{later} - {earlier}"]["tax"])


def test_the_same_labels_are_worth_more_to_rl_than_to_imitation(tmp_path: Path) -> None:
    differences = results(WHY_RL, tmp_path / "out")["differences"]
    assert above(differences["SFT - base"]["gold"])
    assert above(differences["DPO, β 0.1 - SFT"]["gold"])
    assert above(differences["PPO, β 0.1 - SFT"]["gold"])


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
