"""The models side by side: prompting without training, scores on held-out text and tasks, and the answers themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tercet.errors import ConfigError
from tercet.evaluation.evaluate import estimate
from tercet.evaluation.scoring.score_files import current, scorer_label
from tercet.evaluation.scoring.scorers import describe, is_share
from tercet.reporting import figures
from tercet.reporting.blocks import (
    EMPTY,
    Block,
    Cell,
    Exchange,
    Exchanges,
    Prose,
    Row,
    Said,
    Section,
    Table,
    charts,
    compact,
    measured,
    plain,
    shorten,
)
from tercet.reporting.figures import Curve
from tercet.reporting.lineage import Member, label_of
from tercet.statistics.intervals import Estimate

SHOWN = 10  # prompts answered side by side

Scores = Mapping[str, Any]


# -- prompting --------------------------------------------------------------------------------------------------


def prompting(asking: Sequence[Mapping[str, Any]]) -> Section:
    """Accuracy against the number of examples in the prompt."""
    lead = (
        "Here nothing was trained. The base model only continued a text in which a question stands, after no, one or several worked examples: "
        "zero-, one- and few-shot prompting.",
        "If accuracy grows with the examples, the model picks up a task from its context alone, without any change of its weights (in-context learning). "
        "Small models do little of this; it comes with size.",
    )
    forms = list(dict.fromkeys(str(row["form"]) for row in asking))
    shots = sorted({int(row["shots"]) for row in asking})
    curves = []
    for form in forms:
        rows = sorted((r for r in asking if r["form"] == form and r["ability"] == "all"), key=lambda r: int(r["shots"]))
        found = [estimate(r["accuracy"]) for r in rows]
        curves.append(Curve(form, [r["shots"] for r in rows], [e.value for e in found], found))
    blocks = charts(
        figures.lines("asking", "Right answers (greedy) by the number of examples in the prompt; bars are 95 % intervals.", "examples in the prompt (shots)",
                      "right answers", curves, percent=True)
    )  # fmt: skip
    table = []
    for form in forms:
        table.append(Row(form))
        for ability in dict.fromkeys(r["ability"] for r in asking if r["form"] == form):
            by_shots = {int(r["shots"]): r["accuracy"] for r in asking if r["form"] == form and r["ability"] == ability}
            table.append(
                Row(
                    "all questions" if ability == "all" else str(ability),
                    tuple(measured(by_shots.get(s), percent=True) for s in shots),
                )
            )
    caption = "Right answers by form of the prompt, ability and number of examples, with 95 % intervals"
    blocks.append(Table(caption, ("ability", *(f"{s}-shot" for s in shots)), tuple(table)))
    example = next((r for r in asking if r["shots"] == (1 if 1 in shots else shots[-1])), asking[0])
    heading, answer = f"{example['form']}, {example['shots']}-shot", Said("the model", shorten(example["answer"]))
    shown = Exchange(heading, (("text to continue", shorten(example["prompt"])),), (answer,))
    return Section("prompting", "Prompting", lead, [*blocks, Exchanges("One prompt as the model sees it", (shown,))])


def shots_figure(asking: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy against the number of examples as an SVG file of its own: one line a task and condition.

    Raises ConfigError where there is nothing to draw.
    """
    kept = [r for r in asking if r["ability"] == "all"]
    several = len({r["task"] for r in kept}) > 1
    curves = []
    for task, condition in dict.fromkeys((r["task"], r["condition"]) for r in kept):
        rows = sorted(
            (r for r in kept if (r["task"], r["condition"]) == (task, condition)), key=lambda r: int(r["shots"])
        )
        found = [estimate(r["accuracy"]) for r in rows]
        name = f"{task}, {condition}" if several else str(condition)
        curves.append(Curve(name, [r["shots"] for r in rows], [e.value for e in found], found))
    levels = {"guessing": float(kept[0]["chance"])} if kept and not several and kept[0]["chance"] else None
    chart = figures.lines("shots", "Bars are 95 % intervals.", "examples in the prompt (shots)", "right answers", curves,
                          levels=levels, percent=True)  # fmt: skip
    if chart is None:
        raise ConfigError("--figure: there is nothing to draw")
    return figures.standalone(chart)


# -- scores -----------------------------------------------------------------------------------------------------


def labels(scores: Scores, members: Sequence[Member]) -> dict[str, str]:
    """What each model of the scores is called."""
    return {path: label_of(path, row["verb"], members) for path, row in scores["models"].items()}


def scoring(scores: Scores, members: Sequence[Member]) -> Section:
    """The score table: rows are measures, columns are models."""
    names, models = labels(scores, members), rows_of(scores)
    reference = (scores.get("config") or {}).get("reference") or ""
    against = label_of(reference, "sft", members) if reference else "the reference"
    lead = (
        "Every model read the same held-out text and answered the same held-out questions, with the same random numbers. An interval is where the true value "
        "lies with 95 % confidence, as far as the choice of texts and questions goes: where two intervals overlap widely, the difference may be chance.",
        "Scores are given for greedy answers (always the likeliest token) and for answers sampled at temperature 1. "
        "Reward, KL and win rate are of sampled answers.",
    )
    sizes = [m["parameters"] for m in models.values()]
    rows = [Row("parameters", tuple(EMPTY if n is None else Cell(compact(n)) for n in sizes))]
    rows += [*_text_rows(models), *_answer_rows(models), *_against_rows(models, against)]
    table = Table(
        "Scores on held-out text and questions, with 95 % intervals", ("measure", *names.values()), tuple(rows)
    )
    return Section("scores", "Scores", lead, [*_score_charts(models, names), table])


def rows_of(scores: Scores) -> dict[str, dict[str, Any]]:
    """The scores of every model by its path, in today's form."""
    return {path: current(row) for path, row in scores["models"].items()}


def main_scorer(models: Mapping[str, Mapping[str, Any]]) -> str:
    """The scorer that was named first; "" where no answers were scored."""
    return next((name for m in models.values() for name in m.get("scores") or {}), "")


def _scored(models: Scores, name: str, key: str, inner: str | None = None) -> list[Any]:
    """One estimate of a scorer for every model, None where it has none."""
    return _nested({path: (m.get("scores") or {}).get(name) or {} for path, m in models.items()}, key, inner)


def _nested(models: Scores, key: str, inner: str | None = None) -> list[Any]:
    """One value of every model, None where it has none."""
    return [(m.get(key) or {}).get(inner) if inner else m.get(key) for m in models.values()]


def _keys(models: Scores, key: str) -> list[str]:
    return list(dict.fromkeys(inner for m in models.values() for inner in m.get(key) or {}))


def _row(name: str, values: Sequence[Any], note: str = "", percent: bool = False) -> list[Row]:
    """A row of intervals; none where no model has the value."""
    return [Row(name, tuple(measured(v, percent) for v in values), note)] if any(v is not None for v in values) else []


def _text_rows(models: Scores) -> list[Row]:
    sources = _keys(models, "bits_per_byte")
    if not sources:
        return []
    mean = tuple(plain(v) if v is not None else EMPTY for v in _nested(models, "bits_per_byte_mean"))
    rows = [
        Row("Held-out text: bits per byte (lower is better)"),
        Row("mean of the sources", mean, "a rise after pretraining is the alignment tax"),
    ]
    for source in sources:
        rows += _row(source, _nested(models, "bits_per_byte", source))
    return rows


def _answer_rows(models: Scores) -> list[Row]:
    names, main = _keys(models, "scores"), main_scorer(models)
    if not main:
        return []
    rows = [Row("Greedy answers")]
    for name in names:
        rows += _row(scorer_label(name), _scored(models, name, "greedy"), describe(name), is_share(name))
        if name != main:
            continue
        of_main = {path: (m.get("scores") or {}).get(name) or {} for path, m in models.items()}
        for ability in _keys(of_main, "abilities"):
            rows += _row(f"… {ability}", _nested(of_main, "abilities", ability), percent=is_share(name))
        for kind in _keys(of_main, "held_out"):
            rows += _row(
                f"… new {kind}",
                _nested(of_main, "held_out", kind),
                f"questions whose {kind} was never asked in training (facts and word pairs are told in the text)",
                is_share(name),
            )
    rows.append(Row("Sampled answers (temperature 1)"))
    for name in names:
        rows += _row(scorer_label(name), _scored(models, name, "sampled"), describe(name), is_share(name))
    rows += _row(
        "ends its answer itself",
        _nested(models, "finished"),
        "instead of running into the limit of length",
        percent=True,
    )
    return rows + _row("reward", _nested(models, "reward"), "what the reward model gives the answers")


def _against_rows(models: Scores, against: str) -> list[Row]:
    rows = _row("KL", _nested(models, "kl"), f"nats per answer: how far from {against}")
    for name in _keys(models, "against"):
        found = {path: (m.get("against") or {}).get(name) or {} for path, m in models.items()}
        rows += _row(
            f"win rate by {scorer_label(name)}",
            _nested(found, "win_rate"),
            "share of questions whose answer has the higher score; a tie counts half",
            percent=True,
        )
        rows += _row(
            f"difference of {scorer_label(name)}",
            _nested(found, "difference"),
            "question by question; above 0 is better",
        )
    return [Row(f"Compared with {against}, answer by answer"), *rows] if rows else []


def _score_charts(models: Scores, names: Mapping[str, str]) -> list[Block]:
    def found(m: Mapping[str, Any], key: str, inner: Sequence[str]) -> list[Estimate | None]:
        return [estimate(e) if (e := (m.get(key) or {}).get(i)) else None for i in inner]

    main = main_scorer(models)
    of_main = {path: (m.get("scores") or {}).get(main) or {} for path, m in models.items()}
    abilities, sources = _keys(of_main, "abilities"), _keys(models, "bits_per_byte")
    right = {names[path]: found(m, "abilities", abilities) for path, m in of_main.items()}
    text = {names[path]: found(m, "bits_per_byte", sources) for path, m in models.items()}
    return charts(
        figures.dots(
            "abilities",
            f"Greedy answers by ability, with 95 % intervals: {scorer_label(main)}.",
            scorer_label(main),
            abilities,
            right,
            percent=is_share(main),
        ),
        figures.dots(
            "scored-text",
            "Held-out text, with 95 % intervals. Lower (further left) is better.",
            "bits per byte",
            sources,
            text,
        ),
    )


# -- answers ----------------------------------------------------------------------------------------------------


def chosen(last: Sequence[Mapping[str, Any]], count: int = SHOWN) -> list[int]:
    """Which examples to show: half that the last model answers right and half wrong, each spread over the abilities."""
    seen: dict[tuple[bool, str], int] = {}
    sides: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for number, example in enumerate(last):
        key = bool(example["right"]), str(example["ability"])
        seen[key] = seen.get(key, 0) + 1
        sides[key[0]].append((seen[key], number))
    order = [[number for _, number in sorted(sides[side])] for side in (True, False)]
    half = max(count // 2, count - len(order[1])), max(count - count // 2, count - len(order[0]))
    return sorted([*order[0][: half[0]], *order[1][: half[1]]])


def answering(scores: Scores, members: Sequence[Member]) -> Section | None:
    """The models' answers to the same questions; None where the scores hold none."""
    names = labels(scores, members)
    models = {path: m["examples"] for path, m in scores["models"].items() if m.get("examples")}
    if not models:
        return None
    items = []
    for number in chosen(list(models.values())[-1][: min(map(len, models.values()))]):
        first = next(iter(models.values()))[number]
        said = tuple(
            Said(names[path], shorten(examples[number]["answer"]), bool(examples[number]["right"]))
            for path, examples in models.items()
        )
        turns = tuple((m["role"], shorten(m["content"])) for m in first["prompt"])
        heading = str(first["ability"]) + (f", new {first['held_out']}" if first["held_out"] else "")
        items.append(Exchange(heading, turns, said, str(first["gold"])))
    lead = (
        "The same questions, answered by every model in turn. Some are chosen because the last model gets them right and some because it gets them wrong, "
        "so do not read a score off them.",
    )
    note = Prose(
        "Greedy answers: the likeliest token each time. A base model is asked in the same chat form, which it has never seen."
    )
    return Section("answers", "Side by side", lead, [note, Exchanges("", tuple(items))])
