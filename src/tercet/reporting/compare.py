"""Make the report's sections that compare models: prompting, scores on held-out text and questions, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tercet.errors import ConfigError
from tercet.evaluation.evaluate import estimate
from tercet.evaluation.scoring.score_files import current, scorer_label
from tercet.evaluation.scoring.scorers import describe, is_share
from tercet.reporting import figures
from tercet.reporting.blocks import (
    CUT,
    EMPTY,
    FINISHED,
    Block,
    Cell,
    Exchange,
    Exchanges,
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

EXAMPLES = 10  # questions whose answers are shown side by side
SHOTS, BARS = "examples in the prompt (shots)", "Bars are 95 % intervals."

Scores = Mapping[str, Any]


# -- prompting --------------------------------------------------------------------------------------------------


def _shots_curve(name: str, rows: Sequence[Mapping[str, Any]]) -> Curve:
    rows = sorted(rows, key=lambda row: int(row["shots"]))
    accuracies = [estimate(row["accuracy"]) for row in rows]
    return Curve(name, [row["shots"] for row in rows], [e.value for e in accuracies], accuracies)


def prompting(prompts: Sequence[Mapping[str, Any]]) -> Section:
    """Return the section of accuracy by the number of examples in the prompt, from the rows of `tercet prompt`."""
    lead = (
        "Nothing was trained here. The base model continued a text that ends with a question, after no, one or several "
        "worked examples. This is called zero-, one- and few-shot prompting.",
        "If accuracy grows with the number of examples, the model learns the task from its context, without any change "
        "of its weights. This is called in-context learning. Small models do little of it.",
    )
    forms: dict[str, list[Mapping[str, Any]]] = {}
    for row in prompts:
        forms.setdefault(str(row["form"]), []).append(row)
    shots = sorted({int(row["shots"]) for row in prompts})
    curves = [_shots_curve(form, [r for r in rows if r["ability"] == "all"]) for form, rows in forms.items()]
    caption = f"Share of right answers (greedy) by the number of examples in the prompt. {BARS}"
    blocks = charts(figures.lines("prompting-shots", caption, SHOTS, "right answers", curves, percent=True))
    table = []
    for form, rows in forms.items():
        table.append(Row(form))
        for ability in dict.fromkeys(r["ability"] for r in rows):
            by_shots = {int(r["shots"]): r["accuracy"] for r in rows if r["ability"] == ability}
            cells = tuple(measured(by_shots.get(s), percent=True) for s in shots)
            table.append(Row("all questions" if ability == "all" else str(ability), cells))
    caption = "Right answers by prompt template, ability and number of examples, with 95 % intervals"
    blocks.append(Table(caption, ("ability", *(f"{s}-shot" for s in shots)), tuple(table)))
    example = next((r for r in prompts if r["shots"] == (1 if 1 in shots else shots[-1])), prompts[0])
    heading, answer = f"{example['form']}, {example['shots']}-shot", Said("the model", shorten(example["answer"]))
    exchange = Exchange(heading, (("text to continue", shorten(example["prompt"])),), (answer,))
    return Section("prompting", "Prompting", lead, [*blocks, Exchanges("One prompt as the model sees it", (exchange,))])


def shots_figure(prompts: Sequence[Mapping[str, Any]]) -> str:
    """Return accuracy by the number of examples as an SVG file: one line for each task and condition.

    Raises ConfigError where there is nothing to draw.
    """
    kept = [r for r in prompts if r["ability"] == "all"]
    several = len({r["task"] for r in kept}) > 1
    curves = []
    for task, condition in dict.fromkeys((r["task"], r["condition"]) for r in kept):
        name = f"{task}, {condition}" if several else str(condition)
        curves.append(_shots_curve(name, [r for r in kept if (r["task"], r["condition"]) == (task, condition)]))
    levels = {"guessing": float(kept[0]["chance"])} if kept and not several and kept[0]["chance"] else None
    chart = figures.lines("shots", BARS, SHOTS, "right answers", curves, levels=levels, percent=True)
    if chart is None:
        raise ConfigError("--figure: there is nothing to draw")
    return figures.standalone(chart)


# -- scores -----------------------------------------------------------------------------------------------------


def labels(scores: Scores, members: Sequence[Member]) -> dict[str, str]:
    """Return the label of each model of the scores, by its path."""
    return {path: label_of(path, row["verb"], members) for path, row in scores["models"].items()}


def scoring(scores: Scores, members: Sequence[Member]) -> Section:
    """Return the section of the scores: a table with a row per measure and a column per model, and its charts."""
    names, models = labels(scores, members), rows_of(scores)
    reference = (scores.get("config") or {}).get("reference") or ""
    against = label_of(reference, "sft", members) if reference else "the reference"
    lead = (
        "All models were measured on the same held-out text and the same held-out questions, with the same random "
        "numbers. The intervals have 95 % confidence and cover the choice of texts and questions. Where two intervals "
        "overlap widely, the difference may be chance.",
        "A scorer gives every answer a score from 0 to 1; the table has the mean score by each scorer. Answers are "
        "either greedy (always the likeliest token) or sampled at temperature 1. Reward, KL and win rate are measured "
        "on sampled answers.",
    )
    sizes = [m["parameters"] for m in models.values()]
    rows = [Row("parameters", tuple(EMPTY if n is None else Cell(compact(n)) for n in sizes))]
    rows += [*_text_rows(models), *_answer_rows(models), *_against_rows(models, against)]
    table = Table(
        "Scores on held-out text and questions, with 95 % intervals", ("measure", *names.values()), tuple(rows)
    )
    return Section("scores", "Scores", lead, [*_score_charts(models, names), table])


def rows_of(scores: Scores) -> dict[str, dict[str, Any]]:
    """Return the scores of every model by its path; files of older versions are converted."""
    return {path: current(row) for path, row in scores["models"].items()}


def main_scorer(models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the scorer that was named first; "" where no answers were scored."""
    return next((name for m in models.values() for name in m.get("scores") or {}), "")


def _scored(models: Scores, name: str, key: str, inner: str | None = None) -> list[Any]:
    """Return one estimate of a scorer for every model, None where the model has none."""
    return _nested({path: (m.get("scores") or {}).get(name) or {} for path, m in models.items()}, key, inner)


def _nested(models: Scores, key: str, inner: str | None = None) -> list[Any]:
    """Return one value of every model, None where the model has none."""
    return [(m.get(key) or {}).get(inner) if inner else m.get(key) for m in models.values()]


def _keys(models: Scores, key: str) -> list[str]:
    return list(dict.fromkeys(inner for m in models.values() for inner in m.get(key) or {}))


def _row(name: str, values: Sequence[Any], note: str = "", percent: bool = False) -> list[Row]:
    """Return a row of values with intervals, as a list; an empty list where no model has the value."""
    return [Row(name, tuple(measured(v, percent) for v in values), note)] if any(v is not None for v in values) else []


def _text_rows(models: Scores) -> list[Row]:
    sources = _keys(models, "bits_per_byte")
    if not sources:
        return []
    mean = tuple(plain(v) if v is not None else EMPTY for v in _nested(models, "bits_per_byte_mean"))
    rows = [
        Row("Held-out text: bits per byte (lower is better)"),
        Row("mean of the sources", mean, "a rise above the base model is the alignment tax"),
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
        for held in _keys(of_main, "held_out"):
            rows += _row(
                f"… new {held}",
                _nested(of_main, "held_out", held),
                f"questions whose {held} does not occur in training (the text states the facts and word pairs)",
                is_share(name),
            )
    rows.append(Row("Sampled answers (temperature 1)"))
    for name in names:
        rows += _row(scorer_label(name), _scored(models, name, "sampled"), describe(name), is_share(name))
    rows += _row(FINISHED, _nested(models, "finished"), CUT, percent=True)
    return rows + _row("reward", _nested(models, "reward"), "by the reward model")


def _against_rows(models: Scores, against: str) -> list[Row]:
    rows = _row("KL", _nested(models, "kl"), f"distance from {against} in nats per answer")
    won = "share of questions on which its answer has the higher score; a tie counts half"
    for name in _keys(models, "against"):
        compared = {path: (m.get("against") or {}).get(name) or {} for path, m in models.items()}
        label, note = scorer_label(name), "mean difference per question; above 0 is better"
        rows += _row(f"win rate by {label}", _nested(compared, "win_rate"), won, percent=True)
        rows += _row(f"difference of {label}", _nested(compared, "difference"), note)
    return [Row(f"Compared with {against}, answer by answer"), *rows] if rows else []


def _score_charts(models: Scores, names: Mapping[str, str]) -> list[Block]:
    def values(m: Mapping[str, Any], key: str, inner: Sequence[str]) -> list[Estimate | None]:
        return [estimate(e) if (e := (m.get(key) or {}).get(i)) else None for i in inner]

    main = main_scorer(models)
    of_main = {path: (m.get("scores") or {}).get(main) or {} for path, m in models.items()}
    abilities, sources = _keys(of_main, "abilities"), _keys(models, "bits_per_byte")
    right = {names[path]: values(m, "abilities", abilities) for path, m in of_main.items()}
    text = {names[path]: values(m, "bits_per_byte", sources) for path, m in models.items()}
    label = scorer_label(main)
    caption = f"Greedy answers by ability, scored by {label}. {BARS}"
    lower = f"Held-out text. Lower (further left) is better. {BARS}"
    return charts(
        figures.dots("abilities", caption, label, abilities, right, percent=is_share(main)),
        figures.dots("scored-text", lower, "bits per byte", sources, text),
    )


# -- answers ----------------------------------------------------------------------------------------------------


def select_examples(last: Sequence[Mapping[str, Any]], count: int = EXAMPLES) -> list[int]:
    """Return the indices of the examples to show: half answered right by the last model and half wrong.

    Each half is spread over the abilities; where one is short, the other fills up to `count`.
    """
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
    """Return the section of the models' answers to the same questions; None where the scores have no answers."""
    names = labels(scores, members)
    models = {path: m["examples"] for path, m in scores["models"].items() if m.get("examples")}
    if not models:
        return None
    items = []
    for number in select_examples(list(models.values())[-1][: min(map(len, models.values()))]):
        first = next(iter(models.values()))[number]
        said = tuple(
            Said(names[path], shorten(examples[number]["answer"]), bool(examples[number]["right"]))
            for path, examples in models.items()
        )
        turns = tuple((m["role"], shorten(m["content"])) for m in first["prompt"])
        heading = str(first["ability"]) + (f", new {first['held_out']}" if first["held_out"] else "")
        items.append(Exchange(heading, turns, said, str(first["gold"])))
    lead = [
        "Greedy answers of all models to the same questions. Some questions were selected because the last model "
        "answers them right, others because it answers them wrong, so they say nothing about its score.",
    ]
    if any(scores["models"][path]["verb"] == "pretrain" for path in models):
        lead.append("The base model gets the same chat format as the others, although it was not trained on it.")
    return Section("answers", "Side by side", tuple(lead), [Exchanges("", tuple(items))])
