"""The simulated annotator: its rankings follow the rubric, and its errors are as frequent as its noise implies."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from tercet.data.types import Message, Question
from tercet.microworld.annotator import ranked

TASK = Question((Message("user", "What is 5 + 7?"),), ("12", "The answer is 12."), "arithmetic", "t1")
ANSWERS = [
    ("The answer is 12.", True),  # all of it: 1.0
    ("12", True),  # no sentence: .8
    ("I think 13", True),  # only finished: .1
    ("The answer is 13.", True),  # all but right: .5
    ("The answer is 13.", False),  # only direct: .2
    ("", True),  # nothing: 0
    ("12.", True),  # as good as the second
]


@pytest.mark.parametrize(
    ("tie_width", "ranks"),
    [(0.1, (1, 2, 5, 3, 4, 6, 2)), (1e-6, (1, 2, 5, 3, 4, 6, 2)), (0.3, (1, 1, 4, 2, 3, 4, 1)), (10.0, (1,) * 7)],
)
def test_without_noise_the_ranking_is_the_rubrics(tie_width: float, ranks: tuple[int, ...]) -> None:
    comparison = ranked(TASK, ANSWERS, 0.0, tie_width, random.Random(0))
    assert comparison.ranks == ranks
    assert comparison.responses == tuple(text for text, _ in ANSWERS)
    assert (comparison.prompt, comparison.labeler) == (TASK.prompt, "simulated")
    for order in itertools.islice(
        itertools.permutations(range(7)), 0, 5040, 411
    ):  # the order of asking does not matter
        shuffled = ranked(TASK, [ANSWERS[i] for i in order], 0.0, tie_width, random.Random(0))
        assert shuffled.ranks == tuple(ranks[i] for i in order)


def test_the_annotator_is_deterministic_and_errs_as_often_as_its_noise_says() -> None:
    first = [ranked(TASK, ANSWERS, 0.2, 0.1, random.Random(n)) for n in range(20)]
    assert first == [ranked(TASK, ANSWERS, 0.2, 0.1, random.Random(n)) for n in range(20)]
    assert len({c.ranks for c in first}) > 10
    # .3 apart with noise .3 on each: wrong with probability Φ(−.3 / (.3 √2)) = .2398; no ties at this width.
    n, wrong = 4_000, 0
    rng = random.Random(7)
    for _ in range(n):
        ranks = ranked(TASK, [ANSWERS[1], ANSWERS[3]], 0.3, 1e-6, rng).ranks
        assert sorted(ranks) == [1, 2]
        wrong += ranks == (2, 1)
    assert wrong / n == pytest.approx(0.2398, abs=4 * math.sqrt(0.24 * 0.76 / n))
