"""The reliability of a reward model: accuracy by rating gap and by length, and the calibration curve.

A reward model is a model of choices (Bradley and Terry 1952): σ(r_a − r_b) is the probability that a is preferred. It
is calibrated if, for example, 80 % of the pairs that it predicts with a probability of 80 % are right.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tercet.statistics.intervals import LEVEL, Estimate, Reals, mean, pair_accuracy

Ints = NDArray[np.int64]

BINS = 5  # bins of the predicted probability, from 0.5 to 1
MOST_GAPS = 6  # more distinct gaps than this are grouped into quarters
BOOTSTRAP_DRAWS = 2000  # bootstrap samples


def calibration_report(difference: Reals, gap: Reals, longer: Ints, prompt: Ints) -> dict[str, Any]:
    """Return the content of calibration.json: accuracy with its interval in groups of pairs, and the calibration error.

    Args:
        difference: [P] reward of the better answer minus that of the worse, in the units of the loss (log odds).
        gap: [P] rating of the better answer minus that of the worse, 0 or more.
        longer: [P] characters of the better answer minus those of the worse.
        prompt: [P] number of the pair's prompt; pairs of one prompt are not independent.
    """
    correct = np.where(difference > 0, 1.0, np.where(difference < 0, 0.0, 0.5))
    certain = 1 / (1 + np.exp(-np.abs(difference)))  # predicted probability of the answer that the model prefers
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
    """Return the expected calibration error Σ_bins (share of pairs) · |right − predicted| (Naeini et al. 2015).

    The value is in [0, 1]. Chance makes it too high, the more the fewer pairs there are, and makes a bootstrap over
    prompts higher still. The interval is that of the basic bootstrap, which corrects for this (Davison and Hinkley
    1997, section 5.2), so it may lie below the value. With few prompts it covers the true error in less than 95 % of
    cases, because the value is still too high.
    """
    units, number = np.unique(prompt, return_inverse=True)
    sums = np.zeros((len(units), BINS))  # Σ (right − predicted) by prompt and bin
    np.add.at(sums, (number, _certainty_groups(certain)), correct - certain)
    sizes = np.bincount(number).astype(np.float64)
    value = float(np.abs(sums.sum(0)).sum() / len(correct))
    if len(units) < 2:
        return Estimate(value, float("nan"), float("nan"), 1)
    rng = np.random.default_rng(seed)
    drawn = np.empty(BOOTSTRAP_DRAWS)
    for i in range(BOOTSTRAP_DRAWS):
        times = np.bincount(rng.integers(len(units), size=len(units)), minlength=len(units)).astype(np.float64)
        drawn[i] = np.abs(times @ sums).sum() / (times @ sizes)
    low, high = 2 * value - np.quantile(drawn, ((1 + LEVEL) / 2, (1 - LEVEL) / 2))
    return Estimate(value, max(float(low), 0.0), max(float(high), 0.0), len(units))


def _certainty_groups(certain: Reals) -> Ints:
    bins: Ints = np.minimum((certain - 0.5) * 2 * BINS, BINS - 1).astype(np.int64)
    return bins


def _gap_groups(gap: Reals) -> Ints:
    """Return the group of each pair: one group per distinct gap, or quarters if there are many."""
    if len(np.unique(gap)) <= MOST_GAPS:
        return np.unique(gap, return_inverse=True)[1].astype(np.int64)
    quarter: Ints = np.searchsorted(np.unique(np.quantile(gap, (0.25, 0.5, 0.75))), gap).astype(np.int64)
    return quarter


def _length_groups(longer: Ints) -> Ints:
    """Return −2 to 2 for each pair: the better answer is much shorter, shorter, as long, longer, much longer.

    "Much" is more than the median difference.
    """
    size = np.abs(longer)
    much = size > np.median(size[size > 0]) if size.any() else size > 0
    groups: Ints = (np.sign(longer) * (1 + much)).astype(np.int64)
    return groups


def _groups(values: Reals | Ints, group: Ints, correct: Reals, prompt: Ints) -> list[dict[str, Any]]:
    """Return the lowest, highest and mean value, the number of pairs, and the accuracy of each group."""
    out = []
    for number in np.unique(group):
        members = group == number
        x = values[members]
        out.append(
            {"from": float(x.min()), "to": float(x.max()), "mean": float(x.mean()), "pairs": int(members.sum())}
            | {"accuracy": pair_accuracy(correct[members], prompt[members].tolist()).to_json()}
        )
    return out


def _share(hits: Reals, prompt: Ints) -> dict[str, Any] | None:
    return pair_accuracy(hits, prompt.tolist()).to_json() if len(hits) else None
