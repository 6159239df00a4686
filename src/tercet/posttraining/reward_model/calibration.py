"""How far a reward model can be trusted: accuracy by how clear a pair is and by length, and the calibration curve.

A reward model is a model of choices (Bradley and Terry 1952): σ(r_a − r_b) is the probability that a is preferred. It is
calibrated where, of the pairs that it calls 80 % certain, 80 % are right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.statistics.intervals import LEVEL, Estimate, Reals, mean, pair_accuracy

Ints = NDArray[np.int64]

BINS = 5  # of the predicted probability, which begins at 1/2
MOST_GAPS = 6  # more different gaps than this are put together in quarters
DRAWS = 2000


def report(difference: Reals, gap: Reals, longer: Ints, prompt: Ints) -> dict[str, Any]:
    """What calibration.json holds: accuracy and its interval in groups of the P pairs, and the calibration error.

    Args:
        difference: [P] reward of the better answer minus that of the worse, in the units of the loss (log odds).
        gap: [P] how much better the better one was rated, 0 or more.
        longer: [P] characters of the better answer minus those of the worse.
        prompt: [P] the number of the pair's prompt; pairs of one prompt are not independent.
    """
    correct = np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))
    certain = 1 / (1 + np.exp(-np.abs(difference)))  # σ: of the answer that the model prefers
    uneven = longer != 0
    prefers = np.where(longer > 0, correct, 1 - correct)
    return {
        "pairs": len(difference),
        "by_gap": _groups(gap, _gap_groups(gap), correct, prompt),
        "by_length": _groups(longer, _length_groups(longer), correct, prompt),
        "by_certainty": _groups(certain, _certainty_groups(certain), correct, prompt),
        "calibration_error": calibration_error(certain, correct, prompt).to_json(),
        "overconfidence": mean(certain - correct, groups=prompt.tolist()).to_json(),
        "prefers_longer": _share(prefers[uneven], prompt[uneven]),
        "annotator_prefers_longer": _share((longer[uneven] > 0).astype(np.float64), prompt[uneven]),
    }


def calibration_error(certain: Reals, correct: Reals, prompt: Ints, seed: int = 0) -> Estimate:
    """The expected calibration error Σ_bins (share of pairs) · |right − predicted| (Naeini et al. 2015), in [0, 1].

    It is too high by chance, the more so the fewer the pairs, and more so again in a bootstrap over prompts. The interval
    is the basic bootstrap's, which takes that off again (Davison and Hinkley 1997, section 5.2); it may lie below the value.
    With few prompts it covers less than its 95 %: the value is still biased upwards then.
    """
    units, number = np.unique(prompt, return_inverse=True)
    sums = np.zeros((len(units), BINS))  # of right − predicted, by prompt and bin
    np.add.at(sums, (number, _certainty_groups(certain)), correct - certain)
    sizes = np.bincount(number).astype(np.float64)
    value = float(np.abs(sums.sum(0)).sum() / len(correct))
    if len(units) < 2:
        return Estimate(value, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    drawn = np.empty(DRAWS)
    for i in range(DRAWS):
        times = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units)).astype(np.float64)
        drawn[i] = np.abs(times @ sums).sum() / (times @ sizes)
    low, high = 2 * value - np.quantile(drawn, ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Estimate(value, max(float(low), 0.0), max(float(high), 0.0), len(units))


def _certainty_groups(certain: Reals) -> Ints:
    found: Ints = np.minimum((certain - 0.5) * 2 * BINS, BINS - 1).astype(np.int64)
    return found


def _gap_groups(gap: Reals) -> Ints:
    """Each gap by itself, or quarters where there are many."""
    if len(np.unique(gap)) <= MOST_GAPS:
        return np.unique(gap, return_inverse=True)[1].astype(np.int64)
    quarter: Ints = np.searchsorted(np.unique(np.quantile(gap, (0.25, 0.5, 0.75))), gap).astype(np.int64)
    return quarter


def _length_groups(longer: Ints) -> Ints:
    """The better answer is much shorter (−2), shorter, as long, longer, much longer (2); much is more than the median."""
    size = np.abs(longer)
    much = size > np.median(size[size > 0]) if size.any() else size > 0
    kind: Ints = (np.sign(longer) * (1 + much)).astype(np.int64)
    return kind


def _groups(values: Reals | Ints, group: Ints, correct: Reals, prompt: Ints) -> list[dict[str, Any]]:
    """Of each group: the least, greatest and mean value, how many pairs, and the accuracy."""
    out = []
    for number in np.unique(group):
        mine = group == number
        x = values[mine]
        out.append(
            {"from": float(x.min()), "to": float(x.max()), "mean": float(x.mean()), "pairs": int(mine.sum())}
            | {"accuracy": pair_accuracy(correct[mine], prompt[mine].tolist()).to_json()}
        )
    return out


def _share(hits: Reals, prompt: Ints) -> dict[str, Any] | None:
    return pair_accuracy(hits, prompt.tolist()).to_json() if len(hits) else None
