"""Text that cannot be memorised: training and held-out documents, and the questions."""

from __future__ import annotations

import collections
from itertools import pairwise

import pytest

from tercet.errors import ConfigError
from tercet.microworld.mappings import FAMILIES, PASSAGE, RESERVED, SIZES, WORDS, Family, Prompt, World, neighbours

WORLD = World(3)


def texts(family: Family, count: int, *, heldout: bool = False, tokens: int = 48) -> list[str]:
    return [d.text for d in WORLD.documents(family, count, tokens, heldout=heldout)]


def test_no_heldout_pair_stands_in_training() -> None:
    learnt = set().union(*(neighbours(t) for family in FAMILIES for n in SIZES for t in texts(family, 800, tokens=n)))
    heldout_pairs = {
        p for prompt in WORLD.prompts(300, 16) for p in (*prompt.examples, (prompt.question, prompt.answer))
    }
    heldout_pairs |= {pair for number in range(20) for pair in WORLD.drawn(number, 1)[0].items()}
    heldout_texts = [t.split() for t in texts("pairs", 100, heldout=True)]
    heldout_pairs |= {pair for words in heldout_texts for pair in zip(words[::2], words[1::2])}
    assert len(heldout_pairs) > 50
    assert not learnt & heldout_pairs
    # ... and nearly everything else does, so that this is not because little was written
    assert len(learnt) > 0.95 * len(WORDS) * (len(WORDS) - 1 - RESERVED)


def test_every_output_is_reserved_for_equally_many_words() -> None:
    counts = collections.Counter(w for reserved in WORLD.reserved.values() for w in reserved)
    assert counts == dict.fromkeys(WORDS, RESERVED)
    assert not any(word in reserved for word, reserved in WORLD.reserved.items())


@pytest.mark.parametrize("tokens", SIZES)
def test_a_document_of_pairs_has_one_mapping_and_others_have_others(tokens: int) -> None:
    seen = set()
    for text in texts("pairs", 80, tokens=tokens):
        words = text.split()
        pairs = set(zip(words[::2], words[1::2]))
        assert len(words) == tokens
        assert len({w for pair in pairs for w in pair}) == 2 * len(pairs) <= 2 * max(SIZES[tokens])
        seen.add(frozenset(pairs))
    assert len(seen) > 75
    assert {len(s) for s in seen} >= set(SIZES[tokens])


@pytest.mark.parametrize("tokens", SIZES)
def test_a_copied_document_is_a_passage_and_pieces_of_it(tokens: int) -> None:
    low, high = PASSAGE[tokens]
    for text in texts("copy", 80, tokens=tokens):
        words = text.split()
        assert len(words) == tokens
        length = next(i for i, word in enumerate(words) if word in words[:i])
        assert low <= length <= high
        assert set(words) == set(words[:length])
        goes_on = [words[:length].index(b) - words[:length].index(a) == 1 for a, b in pairwise(words[length:])]
        assert sum(goes_on) >= len(goes_on) / 2 - 1  # pieces have at least two words


def test_training_outputs_say_nothing_of_the_word() -> None:
    """Each word occurs with each of its unreserved outputs about equally often."""
    written = (t.split() for t in texts("pairs", 12_000, tokens=48))
    counts = collections.Counter(pair for words in written for pair in set(zip(words[::2], words[1::2])))
    expected = sum(counts.values()) / (len(WORDS) * (len(WORDS) - 1 - RESERVED))
    assert len(counts) == len(WORDS) * (len(WORDS) - 1 - RESERVED)
    assert max(abs(n - expected) for n in counts.values()) < 6 * expected**0.5


def test_fewer_examples_are_the_last_of_more() -> None:
    for none, four, sixteen in zip(*(WORLD.prompts(50, k) for k in (0, 4, 16))):
        assert none.text == f" {none.question}"
        assert sixteen.examples[-4:] == four.examples
        assert sixteen.question == four.question == none.question
        assert sixteen.text.endswith(four.text)
        assert dict(sixteen.examples).get(four.question, four.answer) == four.answer


@pytest.mark.parametrize("shots", [0, 1, 4, 16])
def test_the_ceiling_is_what_a_perfect_guesser_reaches(shots: int) -> None:
    """Return the answer from the examples; if it is not there, return any word that does not occur in them."""
    import random

    rng, right, prompts = random.Random(0), 0, WORLD.prompts(400, shots, heldout=False)
    for prompt in prompts * 25:
        free = [w for w in WORDS if w not in prompt.text.split()]
        right += dict(prompt.examples).get(prompt.question, rng.choice(free)) == prompt.answer
    assert right / len(prompts * 25) == pytest.approx(sum(p.ceiling for p in prompts) / len(prompts), abs=0.01)


def test_shown_is_whether_the_answer_stands_there() -> None:
    assert Prompt((("ba", "ko"), ("di", "fu")), "di", "fu").in_context
    assert not Prompt((("ba", "fu"),), "di", "fu").in_context
    assert Prompt((("ba", "fu"), ("ba", "fu")), "di", "ko").ceiling == 1 / (len(WORDS) - 3)


def test_a_seed_is_a_world() -> None:
    assert texts("copy", 3) == [d.text for d in World(3).documents("copy", 3, 48)]
    assert World(4).reserved != WORLD.reserved
    assert WORLD.prompts(9, 4) != WORLD.prompts(9, 4, seed=1) != World(4).prompts(9, 4)


def test_tasks_are_read_with_the_template_as_the_prompt_is() -> None:
    from tercet.evaluation.task import PromptTemplate, item_of
    from tercet.microworld.mappings import SEPARATOR, TEMPLATE

    form = PromptTemplate("", TEMPLATE, SEPARATOR)
    for task, prompt in zip(WORLD.tasks(20, 3), WORLD.prompts(20, 3)):
        assert form.prompt(item_of(task).input, []) == prompt.text
        assert task.answers == (prompt.answer,)


@pytest.mark.parametrize(
    ("family", "tokens", "message"),
    [
        ("words", 48, "family is 'words'; wanted one of pairs, copy"),
        ("pairs", 50, "documents of 50 tokens; wanted a length of 18, 48, 98 tokens"),
        ("copy", 0, "documents of 0 tokens"),
    ],
)
def test_wrong_documents_are_refused(family: Family, tokens: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        next(WORLD.documents(family, 1, tokens))
