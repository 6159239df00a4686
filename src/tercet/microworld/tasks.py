"""Tasks with exact gold answers in three disjoint splits, and demonstrations of how to answer them.

What is held out: a *combination* (the colour of the frog is stated in the documents but never asked in training; a sum
occurs nowhere), a *template* (a known fact asked in new words) and an *entity* (a made-up name that occurs nowhere). A
hash of the item's key decides its split, so a seed changes only which items are drawn.
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

# Share of preference and held-out tasks that come after earlier turns.
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
        # A new wording of a known item and a new item are measured equally often.
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
    """Return how many different tasks each ability has in a split."""
    return {ability: sum(map(len, groups.values())) for ability, groups in catalogue(split).items()}


def spread(count: int, limits: Sequence[int]) -> list[int]:
    """Split `count` as evenly as `limits` allow: what a full one cannot take, the others share."""
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
    """Draw different items, balanced over the abilities and over the groups inside each, in random order."""
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
            f"microworld: {count} {split} tasks wanted, but {', '.join(abilities)} have only {sum(limits)} different "
            f"ones; ask for fewer, or for more abilities"
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
    """Return relation → ability → SFT items that can be asked by their subject alone, one for each key."""
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
    """Return a short question for an item whose relation the turn before has set ("And the snake?")."""
    return rng.choice(_FOLLOW_UPS).format(x=item.subject)


def _with_earlier_turn(item: MicroworldItem, rng: Random) -> Conversation:
    """Put an SFT question with its plain answer before the item; ask the item shortly where that is clear."""
    pool = _followers().get(item.relation, {})
    # A made-up thing follows a real one where it can: the learner must notice the difference.
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
    """Draw `count` different tasks of a split, in random order, as equally over the abilities as they have items.

    About 15 % of the preference and held-out tasks ask after an earlier turn ("And the snake?"); the others, and all of
    split "sft", are one user message. No prompt occurs twice, nor in two splits under any seeds.

    Raises:
        ConfigError: unknown split or ability, a negative count, or more tasks than there are (`sizes` says how many).
    """
    rng = Random(f"microworld/tasks/{split}/{seed}")
    made: dict[Conversation, Question] = {}
    for item in _draw(split, count, abilities, rng):
        prompt: Conversation = (Message("user", item.question),)
        if split != "sft" and rng.random() < _LATER_TURN:
            later = _with_earlier_turn(item, rng)
            # Two wordings of one item are the same short question; the rare second one is asked in full.
            prompt = prompt if later in made else later
        name = digest("\n".join(f"{message.role}: {message.content}" for message in prompt))
        made[prompt] = Question(
            prompt, item.answers(), item.ability, f"microworld/{item.ability}/{name:016x}", item.held_out
        )
    return list(made.values())


def _answer(item: MicroworldItem, habit: str, rng: Random) -> str:
    """Answer as one of three labelers does: in a plain sentence, as short as can be, or with hedges and padding."""
    if habit == "plain":
        return item.sentences[0]
    if habit == "short":
        return item.short[0]
    return rng.choice(hedged(rng.choice(item.sentences[:2])))


def _next_item(item: MicroworldItem, rng: Random) -> tuple[MicroworldItem, str]:
    """Return what is asked after `item`, and how: the same of another subject where possible, else anything."""
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
    """Write `count` demonstrations for instruction tuning; each starts with another task of split "sft".

    Three labelers with different habits write them, so that there is something left for preference learning: about 40 %
    have plain sentences ("The frog is green."), 30 % short answers ("green"), 30 % hedges and padding ("Well, I think
    the frog is green."). All answers are right. A third has two or three turns; a quarter starts with a system message.

    Raises:
        ConfigError: a negative count, or more than there are SFT tasks.
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
