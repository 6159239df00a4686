"""Draw questions with gold answers from three disjoint splits, and write demonstrations of how to answer them.

A held-out question is new in one of three respects. A *combination*: the documents state the colour of the frog, but no
training question asks for it; or a sum never occurs in training. A *template*: a known fact, asked in new words. An
*entity*: a made-up name that never occurs in training. A hash of the item's key decides its split, so a seed changes
only which items are drawn.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from random import Random

from tercet.data.types import Conversation, Message, Question
from tercet.errors import ConfigError
from tercet.microworld.arithmetic import arithmetic_items, python_items
from tercet.microworld.facts import category_items, fact_items, translation_items, unknown_items
from tercet.microworld.items import SPLITS, MicroworldItem, Split, digest, hedged
from tercet.microworld.reading import reading_items

ABILITIES = ("facts", "reading", "arithmetic", "translation", "python", "category", "unknown")
SYSTEM = "You are a helpful assistant."

# Share of preference and held-out questions that follow an earlier turn.
_LATER_TURN = 0.15
_FOLLOW_UPS = ("And {x}?", "What about {x}?")

# ability → group → items, in a fixed order
Catalogue = dict[str, dict[str, tuple[MicroworldItem, ...]]]


@lru_cache(maxsize=1)
def _catalogues() -> dict[str, Catalogue]:
    lists: dict[str, dict[str, dict[str, list[MicroworldItem]]]]
    lists = {split: {ability: defaultdict(list) for ability in ABILITIES} for split in SPLITS}
    for item in chain(
        fact_items(),
        reading_items(),
        arithmetic_items(),
        translation_items(),
        python_items(),
        category_items(),
        unknown_items(),
    ):
        # Grouped by `held_out` too, so that new wordings and new items are drawn equally often.
        lists[item.split][item.ability][f"{item.group}/{item.held_out}"].append(item)
    return {
        split: {ability: {group: tuple(items) for group, items in groups.items()} for ability, groups in by.items()}
        for split, by in lists.items()
    }


def catalogue(split: Split) -> Catalogue:
    """Return every single-turn item of a split by ability and group.

    Raises:
        ConfigError: there is no such split.
    """
    if split not in SPLITS:
        raise ConfigError(f"microworld: no split {split!r}; choose one of {', '.join(SPLITS)}")
    return _catalogues()[split]


def sizes(split: Split) -> dict[str, int]:
    """Return the number of different questions of each ability in a split."""
    return {ability: sum(map(len, groups.values())) for ability, groups in catalogue(split).items()}


def spread(count: int, limits: Sequence[int]) -> list[int]:
    """Return shares that sum to `count`, as equal as the `limits` allow; at most the sum of the limits."""
    shares = [0] * len(limits)
    left = min(count, sum(limits))
    while left:
        open_ones = [i for i, limit in enumerate(limits) if shares[i] < limit]
        each = max(1, left // len(open_ones))
        for i in open_ones:
            taken = min(each, limits[i] - shares[i], left)
            shares[i] += taken
            left -= taken
    return shares


def _draw(split: Split, count: int, abilities: Sequence[str], rng: Random) -> list[MicroworldItem]:
    """Return different random items in random order, balanced over the abilities and the groups of each ability."""
    if count < 0:
        raise ConfigError(f"microworld: count is {count}; give 0 or more")
    unknown = [ability for ability in abilities if ability not in ABILITIES]
    if unknown or not abilities or len(set(abilities)) < len(abilities):
        raise ConfigError(
            f"microworld: abilities are {tuple(abilities)}; give one or more, each once, of {', '.join(ABILITIES)}"
        )
    limits = [sizes(split)[ability] for ability in abilities]
    if count > sum(limits):
        raise ConfigError(
            f"microworld: count is {count}, but {', '.join(abilities)} have only {sum(limits)} different {split} "
            "questions; draw fewer questions, or from more abilities"
        )
    drawn: list[MicroworldItem] = []
    for ability, share in zip(abilities, spread(count, limits)):
        groups = list(catalogue(split)[ability].values())
        for items, part in zip(groups, spread(share, [len(items) for items in groups])):
            drawn += rng.sample(items, part)
    rng.shuffle(drawn)
    return drawn


@lru_cache(maxsize=1)
def _followers() -> dict[str, dict[str, tuple[MicroworldItem, ...]]]:
    """Return relation → ability → SFT items that a question can name by their subject alone, one per key."""
    first: dict[str, dict[str, dict[tuple[str, str], MicroworldItem]]] = defaultdict(lambda: defaultdict(dict))
    for ability, groups in catalogue("sft").items():
        for item in chain.from_iterable(groups.values()):
            if item.relation:
                first[item.relation][ability].setdefault((item.key, item.subject), item)
    return {
        relation: {ability: tuple(items.values()) for ability, items in by.items()} for relation, by in first.items()
    }


def _any_item(rng: Random) -> MicroworldItem:
    groups = catalogue("sft")[rng.choice(ABILITIES)]
    return rng.choice(groups[rng.choice(list(groups))])


def follow_up(item: MicroworldItem, rng: Random) -> str:
    """Return a short question for an item whose relation is clear from the turn before ("And the snake?")."""
    return rng.choice(_FOLLOW_UPS).format(x=item.subject)


def _with_earlier_turn(item: MicroworldItem, rng: Random) -> Conversation:
    """Return an SFT question, its plain answer and then the item's question, shortened where that is clear."""
    pool = _followers().get(item.relation, {})
    # A made-up thing follows a real one if possible: the model must notice the difference.
    known = [ability for ability in pool if ability != "unknown"] or list(pool)
    if known:
        before = rng.choice(pool[known[0]])
        question = follow_up(item, rng)
    else:
        before = _any_item(rng)
        question = item.later_question()
    earlier = (Message("user", before.question), Message("assistant", before.sentences[0]))
    return (*earlier, Message("user", question))


def draw_questions(split: Split, seed: int, count: int, abilities: Sequence[str] = ABILITIES) -> list[Question]:
    """Return `count` different questions of a split in random order, as equal in number per ability as possible.

    About 15 % of the preference and held-out questions follow an earlier turn ("And the snake?"); the others, and all
    of split "sft", are a single user message. No prompt occurs twice, or in two splits under any seeds.

    Raises:
        ConfigError: unknown split or ability, a negative count, or more questions than there are (see `sizes`).
    """
    rng = Random(f"microworld/tasks/{split}/{seed}")
    made: dict[Conversation, Question] = {}
    for item in _draw(split, count, abilities, rng):
        prompt: Conversation = (Message("user", item.question),)
        if split != "sft" and rng.random() < _LATER_TURN:
            later = _with_earlier_turn(item, rng)
            # Two wordings of one item give the same short question; the second one, which is rare, stays long.
            prompt = prompt if later in made else later
        name = digest("\n".join(f"{message.role}: {message.content}" for message in prompt))
        made[prompt] = Question(
            prompt, item.answers(), item.ability, f"microworld/{item.ability}/{name:016x}", item.held_out
        )
    return list(made.values())


def _answer(item: MicroworldItem, habit: str, rng: Random) -> str:
    """Return an answer in the style of one of three labelers: a plain sentence, short, or with hedges and padding."""
    if habit == "plain":
        return item.sentences[0]
    if habit == "short":
        return item.short[0]
    return rng.choice(hedged(rng.choice(item.sentences[:2])))


def _next_item(item: MicroworldItem, rng: Random) -> tuple[MicroworldItem, str]:
    """Return the next item and its question: the same relation of another subject if possible, else any item."""
    pool = _followers().get(item.relation)
    if pool is None:
        other = _any_item(rng)
        return other, other.later_question()
    candidates = pool[rng.choice(list(pool))]
    other = rng.choice(candidates)
    while other.subject == item.subject:
        other = rng.choice(candidates)
    return other, follow_up(other, rng)


def conversations(seed: int, count: int) -> list[Conversation]:
    """Return `count` demonstrations for instruction tuning; each starts with a different question of split "sft".

    Three simulated labelers with different habits write them, which leaves room for preference learning: about 40 %
    have plain sentences ("The frog is green."), 30 % short answers ("green"), 30 % hedges and padding ("Well, I think
    the frog is green."). All answers are right. A third have two or three turns; a quarter start with a system message.

    Raises:
        ConfigError: a negative count, or more than there are SFT questions.
    """
    rng = Random(f"microworld/conversations/{seed}")
    written: list[Conversation] = []
    for first in _draw("sft", count, ABILITIES, rng):
        habit = rng.choices(("plain", "short", "hedged"), (40, 30, 30))[0]
        messages = [Message("system", SYSTEM)] if rng.random() < 0.25 else []
        item, question = first, first.question
        for turn in range(rng.choices((1, 2, 3), (67, 22, 11))[0]):
            if turn:
                item, question = _next_item(item, rng)
            messages += [Message("user", question), Message("assistant", _answer(item, habit, rng))]
        written.append(tuple(messages))
    return written
