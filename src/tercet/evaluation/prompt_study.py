"""`tercet prompt --task`: accuracy by the number of examples, and what else changes it (Brown et al. 2020).

The base condition has the task's description and template, and right labels. Each value of --vary changes one thing:

    description     no description: does the instruction help, or do the examples?
    labels          wrong and random labels: does the model learn labels, or only what examples look like (Min et al.
    2022)? order           the same examples in other orders (Lu et al. 2022): worst and best
    format          the same examples in other templates: worst and best

If examples are drawn several times, the interval is over draws and items at once (`statistics.significance.crossed`).
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
from tercet.evaluation.config import DEFAULT_MAX_NEW_TOKENS, PromptConfig
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
    """A condition of the study: its name, and the few-shot settings over which its numbers are taken."""

    name: str
    shots: int
    settings: tuple[FewShotSetting, ...]


def prompt_study(
    config: PromptConfig,
    bad: BadRows | None = None,
    lm: LanguageModel | None = None,
    progress: RequestProgress | None = None,
) -> list[dict[str, Any]]:
    """Return a row for each task, condition, number of shots and ability (and "all").

    A row has the accuracy with its interval, the worst and best of its draws, orders or formats, and a sample prompt
    with its answer. `lm` replaces the model of `config`. Raises ConfigError if there is no task, ContextError if a
    prompt does not fit the context.
    """
    bad = bad or BadRows(skip=config.skip_bad_rows)
    rows: list[dict[str, Any]] = []
    with threads(config.threads):
        tasks = _tasks(config, bad)
        conditions = [_conditions(task, config) for task in tasks]
        _must_vary(config, conditions)
        lm = lm or open_model(config.model, cache=config.cache or None, progress=progress)
        for task, of_task in zip(tasks, conditions):
            replies = answer(lm, task, [setting for c in of_task for setting in c.settings])
            longest = (config.max_new_tokens or task.max_new_tokens) if task.kind != "choice" else 1
            check_room(lm, task, [r for part in replies for r in part], longest, refuse=True)
            start = 0
            for c in of_task:
                rows += _rows(task, c, replies[start : start + len(c.settings)])
                start += len(c.settings)
    return rows


def _tasks(config: PromptConfig, bad: BadRows) -> list[Task]:
    import_tasks(config.imports)
    tasks = [open_task(name, bad) for name in config.task]
    if config.questions:
        questions = [q for _, q in read_questions(config.questions, bad)]
        examples = [q for _, q in read_questions(config.examples, bad)] if config.examples else []
        name = "+".join(Path(p).name.replace(" ", "_").replace(",", "_") for p in config.questions)
        questions = questions[: config.limit or None]
        tasks.append(from_questions(name, questions, examples, PromptTemplate(), DEFAULT_MAX_NEW_TOKENS))
    if not tasks:
        raise ConfigError("no task to evaluate; name one with --task or --questions")
    out = []
    for task in tasks:
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
            task.form,
            shots,
            config.seed,
            calibrate=config.calibrate,
            votes=config.self_consistency,
            temperature=config.temperature,
            max_new_tokens=config.max_new_tokens,
        )

        def over_seeds(setting: FewShotSetting) -> tuple[FewShotSetting, ...]:
            return tuple(replace(setting, seed=s) for s in seeds)

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
            # all orders are of the first draw, so that nothing but the order changes
            out.append(Condition("orders", shots, tuple(replace(base, order=o) for o in range(config.orders))))
        if "format" in config.vary and task.formats:
            # a format without a description gets the task's own
            own = task.form.description
            forms = (task.form, *(replace(f, description=f.description or own) for f in task.formats))
            out.append(Condition("formats", shots, tuple(replace(base, form=f) for f in forms)))
    return out


def _must_vary(config: PromptConfig, conditions: Sequence[Sequence[Condition]]) -> None:
    """Raise ConfigError if an option would change nothing in any task."""
    names = {c.name for part in conditions for c in part}
    needs = {
        "description": ("no description", "a task with a description"),
        "labels": ("wrong labels", "--shots above 0"),
        "order": ("orders", "--shots above 1"),
        "format": ("formats", "a task with other formats"),
    }
    for varied in config.vary:
        condition, needed = needs[varied]
        if condition not in names:
            raise ConfigError(f"--vary {varied}: it has no effect here; it needs {needed}")
    if config.orders != PromptConfig(model=config.model).orders and "order" not in config.vary:
        raise ConfigError(f"--orders {config.orders}: it has no effect without --vary order; give both or neither")


def combined(table: Sequence[Sequence[float]], groups: Sequence[str] = ()) -> Estimate:
    """Return the mean of scores [draws][items] with its interval, over draws and items, or items if there is one draw.

    `groups` names each item's document; a document counts as a whole. If all scores are 0, or all 1, there is no spread
    to measure, and the interval is Wilson's with one trial for each item or document.
    """
    flat = [v for row in table for v in row]
    names, of = np.unique(groups if all(groups) and groups else range(len(table[0])), return_inverse=True)
    if len(set(flat)) == 1 and flat[0] in (0.0, 1.0):
        return proportion(int(flat[0]) * len(names), len(names))
    if len(table) > 1 and len(names) > 1:
        # a document's sum of scores, divided by the mean number of items: the mean of these is the mean over items
        estimate = crossed(np.stack([np.bincount(of, row) * (len(names) / len(of)) for row in table]))
        if min(flat) < 0 or max(flat) > 1:
            return estimate
        # Student's t has no bounds, but an accuracy has
        return replace(estimate, low=max(0.0, estimate.low), high=min(1.0, estimate.high))
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
                "over": [_label(setting, c) for setting in c.settings],
                "each": means,
                "prompt": replies[0][kept[0]].prompt,
                "answer": replies[0][kept[0]].text,
            }
        )
    return rows


def _label(setting: FewShotSetting, c: Condition) -> str:
    """Return a label that tells the settings of a condition apart."""
    if c.name == "orders":
        return f"order {setting.order}"
    return repr(setting.form.template) if c.name == "formats" else f"examples of seed {setting.seed}"
