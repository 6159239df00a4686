"""Generate pretraining text of the microworld: stories, facts, questions with answers, sums, word lists and code.

The documents state every fact and every translation. They contain only questions of the SFT split, in its wordings, and
only sums and differences of that split. So the held-out questions of `tasks` can be answered from the documents, but
the answers cannot be copied from them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from random import Random

from tercet.data.types import Document
from tercet.errors import ConfigError
from tercet.microworld.arithmetic import OPERATORS, pair_split, programs, spoken, value
from tercet.microworld.facts import FACTS, KINDS, Fact, kind_sentence
from tercet.microworld.items import split_of
from tercet.microworld.stories import story
from tercet.microworld.tasks import ABILITIES, catalogue
from tercet.microworld.words import LANGUAGES, WORDS

SHORTEST, LONGEST = 150, 900


def _subjects() -> dict[str, list[Fact]]:
    """Group the facts by subject; which animal says "moo" is among the facts about the cow."""
    subjects: dict[str, list[Fact]] = {}
    for fact in FACTS:
        if fact.group != "sound":
            subjects.setdefault(fact.subject, []).append(fact)
    return subjects


def _code() -> dict[str, list[tuple[str, str]]]:
    """Group the programs of the SFT split, each with its output, by their form."""
    forms: dict[str, list[tuple[str, str]]] = {}
    for key, form, code, output in programs():
        if split_of(key) == "sft":
            forms.setdefault(form, []).append((code, output))
    return forms


_CODE = _code()
_FORMS = tuple(_CODE)
_SUBJECTS = _subjects()
_SUBJECT_NAMES = tuple(_SUBJECTS)
_MEMBERS = tuple((member, kind) for kind, members in KINDS.items() for member in members)
_KIND_OF = dict(_MEMBERS)


def _filled(rng: Random, head: str, part: Callable[[], str], separator: str, least: int = 200) -> str:
    """Add parts to `head` until a random length is reached, but never beyond `LONGEST` characters."""
    text = head + part()
    length = rng.randint(least, LONGEST - 200)
    while len(text) < length:
        more = separator + part()
        if len(text) + len(more) > LONGEST:
            break
        text += more
    return text


def _story(rng: Random) -> str:
    return story(rng, rng.randint(300, LONGEST - 100))


def _fact_paragraph(rng: Random) -> str:
    """State all facts about one subject, each in one of its wordings, sometimes with the pronoun."""
    name = rng.choice(_SUBJECT_NAMES)
    facts = list(_SUBJECTS[name])
    rng.shuffle(facts)
    member = name.replace("the ", "a ") if name.startswith("the ") else name
    member = member if member in _KIND_OF else member.replace("a ", "an ", 1)
    lines = [kind_sentence(member, _KIND_OF[member])]
    for fact in facts:
        lines.append(rng.choice(fact.sentences()))
    return " ".join(lines)


def _facts(rng: Random) -> str:
    return _filled(rng, "", lambda: _fact_paragraph(rng), "\n")


def _kinds(rng: Random) -> str:
    return _filled(rng, "", lambda: kind_sentence(*rng.choice(_MEMBERS)), " ")


def _questions(rng: Random) -> str:
    """Write questions of the SFT split, with answers that are all sentences or all short."""
    in_sentences = rng.random() < 0.6
    pools = catalogue("sft")

    def part() -> str:
        groups = pools[rng.choice(ABILITIES)]
        item = rng.choice(groups[rng.choice(list(groups))])
        answer = item.sentences[0] if in_sentences else item.short[0]
        return f"Q: {item.question}\nA: {answer}\n\n"

    return _filled(rng, "", part, "")


def _sums(rng: Random) -> str:
    """Write sums in one of three forms; half of them have one-digit operands."""
    form = rng.choice(("{a} {o} {b} = {r}", "{a} {o} {b} = {r}", "{a} {o} {b} is {r}.", "{a} {w} {b} is {r}."))

    def part() -> str:
        while True:
            largest = 9 if rng.random() < 0.5 else 99
            operator = rng.choice(OPERATORS)
            a, b = rng.randint(0, largest), rng.randint(0, largest)
            if operator == "-":
                a, b = max(a, b), min(a, b)
            if a + b <= 99 + b * (operator == "-") and pair_split(operator, a, b) == "sft":
                return form.format(a=a, b=b, o=operator, w=spoken(operator), r=value(operator, a, b))

    return _filled(rng, "", part, "\n", SHORTEST)


def _word_list(rng: Random) -> str:
    language = rng.choice(LANGUAGES)
    head = rng.choice(("English to {}:\n", "Translate English to {}:\n")).format(language)
    words = iter(rng.sample(list(WORDS), len(WORDS)))

    def part() -> str:
        word = next(words)
        return f"{word} => {WORDS[word][language]}"

    return _filled(rng, head, part, "\n")


def _dictionary(rng: Random) -> str:
    """State translations in sentences."""
    language = rng.choice(LANGUAGES)
    words = iter(rng.sample(list(WORDS), len(WORDS)))
    form = rng.choice(("The {l} word for {w} is {t}.", "In {l}, {w} is {t}."))

    def part() -> str:
        word = next(words)
        return form.format(l=language, w=word, t=WORDS[word][language])

    return _filled(rng, "", part, "\n")


def _programs(rng: Random) -> str:
    def part() -> str:
        code, output = rng.choice(_CODE[rng.choice(_FORMS)])
        return f"Code:\n{code}\nOutput:\n{output}\n\n"

    return _filled(rng, "", part, "")


# Function that writes a kind of document, and the share of that kind in percent.
_MIXTURE: tuple[tuple[Callable[[Random], str], int], ...] = (
    (_story, 26),
    (_facts, 16),
    (_kinds, 4),
    (_questions, 22),
    (_sums, 14),
    (_word_list, 7),
    (_dictionary, 3),
    (_programs, 8),
)
_DECK = tuple(chain.from_iterable([writer] * share for writer, share in _MIXTURE))


def documents(seed: int, count: int) -> Iterator[Document]:
    """Yield `count` documents of 150 to 900 characters; document i depends only on the seed and i.

    Raises:
        ConfigError: `count` is negative.
    """
    if count < 0:
        raise ConfigError(f"microworld: count is {count}; wanted 0 or more documents")
    return (_document(f"microworld/{seed}/{i}") for i in range(count))


def _document(name: str) -> Document:
    rng = Random(name)
    return Document(rng.choice(_DECK)(rng).rstrip("\n") + "\n", "microworld", name)
