"""`tercet prompt --task`: accuracy against the number of examples, and what changes it besides (Brown et al. 2020).

The base condition has the description, right labels and the task's own form. Each of `vary` changes one thing:

    no description      is it the instruction or the examples that help
    wrong, random labels    does the model learn the labels from the examples, or only what they look like (Min et al. 2022)
    order               the same examples in other orders (Lu et al. 2022): worst and best
    format              the same examples written in other ways: worst and best

Where seeds draw different examples, the interval is over draws and items at once (`statistics.crossed`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows
from tercet.errors import ConfigError
from tercet.evaluation.config import LONGEST, PromptConfig
from tercet.evaluation.few_shot import FewShotSetting, Reply, answer, check_room
from tercet.evaluation.loaders import import_tasks, open_task
from tercet.evaluation.task import PromptTemplate, Task, from_questions
from tercet.inference.language_model import LanguageModel, RequestProgress, open_model
from tercet.statistics.intervals import Estimate, proportion
from tercet.statistics.significance import crossed, score
from tercet.training.run import threads

BASE = "base"


@dataclass(frozen=True)
class Condition:
    """A name, and the ways of asking over which its numbers are taken."""

    name: str
    shots: int
    ways: tuple[FewShotSetting, ...]


def prompt_study(
    config: PromptConfig,
    bad: BadRows | None = None,
    lm: LanguageModel | None = None,
    progress: RequestProgress | None = None,
) -> list[dict[str, Any]]:
    """One row for each task, condition, number of shots and ability (and "all"): accuracy with its interval, the worst and
    best of its draws, orders or formats, and a sample prompt with its answer.

    Raises ConfigError where there is nothing to ask, ContextError where a prompt does not fit.
    """
    bad = bad or BadRows(skip=config.skip_bad_rows)
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        asked = _tasks(config, bad)
        conditions = [_conditions(task, config) for task in asked]
        _must_vary(config, conditions)
        lm = lm or open_model(config.model, cache=config.cache or None, progress=progress)
        for task, mine in zip(asked, conditions):
            replies = answer(lm, task, [way for c in mine for way in c.ways])
            longest = (config.max_new_tokens or task.max_new_tokens) if task.kind != "choice" else 1
            check_room(lm, task, [r for part in replies for r in part], longest, refuse=True)
            at = 0
            for c in mine:
                rows += _rows(task, c, replies[at : at + len(c.ways)])
                at += len(c.ways)
    return rows


def _tasks(config: PromptConfig, bad: BadRows) -> list[Task]:
    import_tasks(config.imports)
    found = [open_task(name, bad) for name in config.task]
    if config.questions:
        questions = [q for _, q in read_questions(config.questions, bad)]
        examples = [q for _, q in read_questions(config.examples, bad)] if config.examples else []
        name = "+".join(Path(p).name.replace(" ", "_").replace(",", "_") for p in config.questions)
        found.append(from_questions(name, questions[: config.limit or None], examples, PromptTemplate(), LONGEST))
    if not found:
        raise ConfigError("nothing to ask: name --task or --questions")
    out = []
    for task in found:
        own = task.form
        form = PromptTemplate(
            config.description or own.description, config.template or own.template, config.separator or own.separator
        )
        task = replace(task, form=form, metric=config.metric or task.metric)
        out.append(task.limited(config.limit, config.seed))
    return out


def _conditions(task: Task, config: PromptConfig) -> list[Condition]:
    out = []
    seeds = [config.seed + s for s in range(config.seeds)]
    for shots in config.shots:
        base = FewShotSetting(
            task.form, shots, config.seed, calibrate=config.calibrate, votes=config.self_consistency, temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )  # fmt: skip

        def over_seeds(way: FewShotSetting) -> tuple[FewShotSetting, ...]:
            return tuple(replace(way, seed=s) for s in seeds)

        out.append(Condition(BASE, shots, over_seeds(base)))
        if "description" in config.vary and task.form.description:
            bare = replace(base, form=replace(task.form, description=""))
            out.append(Condition("no description", shots, over_seeds(bare)))
        if "labels" in config.vary and shots:
            out += [
                Condition(f"{labels} labels", shots, over_seeds(replace(base, labels=labels)))
                for labels in ("wrong", "random")
            ]
        if "order" in config.vary and shots > 1:
            # one draw of examples at a time, so that only the order changes; the first draw's orders
            out.append(Condition("orders", shots, tuple(replace(base, order=o) for o in range(config.orders))))
        if "format" in config.vary and task.formats:
            # the description belongs to the task, not to the form: each format keeps it where it has none of its own
            forms = [
                task.form,
                *(f if f.description else replace(f, description=task.form.description) for f in task.formats),
            ]
            out.append(Condition("formats", shots, tuple(replace(base, form=f) for f in forms)))
    return out


def _must_vary(config: PromptConfig, conditions: Sequence[Sequence[Condition]]) -> None:
    """Raises ConfigError where an option would change nothing in any task."""
    names = {c.name for part in conditions for c in part}
    needs = {
        "description": ("no description", "a task with a description"),
        "labels": ("wrong labels", "--shots above 0"),
        "order": ("orders", "--shots above 1"),
        "format": ("formats", "a task with other formats"),
    }
    for what in config.vary:
        if needs[what][0] not in names:
            raise ConfigError(f"--vary {what}: changes nothing here; it needs {needs[what][1]}")
    if config.orders != PromptConfig(model=config.model).orders and "order" not in config.vary:
        raise ConfigError(f"--orders {config.orders}: is for --vary order; give both or none")


def combined(table: Sequence[Sequence[float]], groups: Sequence[str] = ()) -> Estimate:
    """The mean of scores [draws][items]: over draws and items where there are several draws, else over items alone.

    `groups` are the items' documents, drawn as a whole. Where all are right, or all wrong, no spread can be seen, and the interval is
    Wilson's with one trial an item (a document).
    """
    flat = [v for row in table for v in row]
    names, of = np.unique(groups if all(groups) and groups else range(len(table[0])), return_inverse=True)
    if len(set(flat)) == 1 and flat[0] in (0.0, 1.0):
        return proportion(int(flat[0]) * len(names), len(names))
    if len(table) > 1 and len(names) > 1:
        # a document's sum, over what documents hold on average: the mean of these is that of the items
        found = crossed(np.stack([np.bincount(of, row) * (len(names) / len(of)) for row in table]))
        # Student's t knows no ends; an accuracy has them
        return (
            found
            if min(flat) < 0 or max(flat) > 1
            else replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
        )
    return score(flat, list(of) * len(table) if len(names) < len(of) else None)


def _rows(task: Task, c: Condition, replies: Sequence[Sequence[Reply]]) -> list[dict[str, Any]]:
    abilities = list(dict.fromkeys(i.ability for i in task.items)) if task.by_ability else []
    rows = []
    for ability in ["all", *abilities]:
        kept = [n for n, i in enumerate(task.items) if ability in ("all", i.ability)]
        table = [[part[n].scores[task.metric] for n in kept] for part in replies]
        means = [sum(row) / len(row) for row in table]
        worst, best = min(range(len(means)), key=means.__getitem__), max(range(len(means)), key=means.__getitem__)
        rows.append(
            {
                "task": task.name,
                "version": task.version,
                "metric": task.metric,
                "condition": c.name,
                "form": task.form.template if c.name == BASE else f"{task.form.template} ({c.name})",
                "shots": c.shots,
                "ability": ability,
                "accuracy": combined(table, [task.items[n].group for n in kept]).to_json(),
                "chance": task.guessing(),
                "worst": means[worst],
                "best": means[best],
                "over": [_called(way, c) for way in c.ways],
                "each": means,
                "prompt": replies[0][kept[0]].prompt,
                "answer": replies[0][kept[0]].text,
            }
        )
    return rows


def _called(way: FewShotSetting, c: Condition) -> str:
    """What tells the ways of a condition apart."""
    if c.name == "orders":
        return f"order {way.order}"
    return repr(way.form.template) if c.name == "formats" else f"examples of seed {way.seed}"
