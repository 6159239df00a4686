"""Suites: many tasks, each evaluated with its own settings, with all metrics and the score of every item."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tercet.data.readers import BadRows
from tercet.errors import ConfigError, DataError
from tercet.evaluation.contamination import Contamination
from tercet.evaluation.few_shot import FewShotSetting, answer, check_room
from tercet.evaluation.loaders import import_tasks, open_suite
from tercet.evaluation.task import Task
from tercet.inference.language_model import LanguageModel
from tercet.statistics.significance import score


def open_suites(
    names: Sequence[str], imports: Sequence[str], bad: BadRows, limit: int = 0, seed: int = 0
) -> list[Task]:
    """Return the tasks of all suites, each with at most `limit` items (0: all).

    Raises ConfigError if a task comes twice or has fewer examples than shots. Raises DataError if two items have one
    id, because models are compared item by item, by these ids.
    """
    import_tasks(imports)
    tasks = [task.limited(limit, seed) for name in names for task in open_suite(name, bad)]
    seen: set[str] = set()
    for task in tasks:
        if task.name in seen:
            raise ConfigError(f"the task {task.name!r} is in two of the suites {', '.join(names)}; name it once")
        seen.add(task.name)
        id, count = Counter(i.id for i in task.items).most_common(1)[0]
        if count > 1:
            source = f" ({task.source})" if task.source else ""
            raise DataError(f"task {task.name!r}{source}: {count} items have the id {id!r}; give each its own")
        for item in task.items:  # too few examples are an error before any model is loaded
            task.draw(task.shots, seed, item)
    return tasks


def text_of(task: Task) -> dict[str, str]:
    """Return by id the text by which an item is searched in training text: its input and its right answer."""
    return {i.id: f"{i.input}{'' if i.contexts else ' '}{i.answers[0]}" for i in task.items}


def evaluate_tasks(
    lm: LanguageModel, tasks: Sequence[Task], seed: int = 0, dirty: dict[str, Contamination] | None = None
) -> dict[str, Any]:
    """Return the scores of every task, their means by ability, and CORE, the mean centred accuracy over all tasks.

    Centred accuracy is (accuracy − guessing) / (1 − guessing) (Li et al. 2024): 0 is guessing and 1 is perfect. `dirty`
    is the contamination of tasks by name.
    """
    out: dict[str, Any] = {}
    for task in tasks:
        replies = answer(lm, task, [FewShotSetting(task.form, task.shots, seed)])[0]
        longest = task.max_new_tokens if task.kind in ("free", "code") else 1
        metrics = list(replies[0].scores)
        scores = {name: [r.scores[name] for r in replies] for name in metrics}
        groups = [i.group for i in task.items] if all(i.group for i in task.items) else None
        main, guessing = score(scores[task.metric], groups), task.guessing()
        row: dict[str, Any] = {
            "version": task.version,
            "kind": task.kind,
            "metric": task.metric,
            "ability": task.ability or task.name.rpartition("/")[0] or task.name,
            "shots": task.shots,
            "whole_contexts": any(i.contexts for i in task.items),
            "items": len(replies),
            "scores": {name: score(v, groups).to_json() for name, v in scores.items()},
            "score": main.to_json(),
            "chance": guessing,
            "cut_prompts": check_room(lm, task, replies, longest, refuse=False),
            "ids": [i.id for i in task.items],
            "each": scores,
            "groups": groups,
            "example": {"prompt": replies[0].prompt, "answer": replies[0].text},
        }
        if task.metric != "bits_per_byte":
            row["centred"] = (main.value - guessing) / (1 - guessing)
        if dirty and task.name in dirty:
            row["contamination"] = dirty[task.name].split(row["ids"], scores[task.metric], groups)
        out[task.name] = row
    centred = {name: row["centred"] for name, row in out.items() if "centred" in row}
    abilities = dict.fromkeys(out[name]["ability"] for name in centred)
    return {
        "tasks": out,
        "abilities": {a: _average([v for n, v in centred.items() if out[n]["ability"] == a]) for a in abilities},
        "core": _average(list(centred.values())) if centred else None,
    }


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
