"""Suites: many tasks, each asked as it says itself, with every metric, centred accuracy and every item's score kept."""

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
    """The tasks of all suites, each with at most `limit` items.

    Raises ConfigError where a task comes twice or has fewer examples than shots, DataError where an id comes twice: by ids models are compared item by item.
    """
    import_tasks(imports)
    found = [task.limited(limit, seed) for name in names for task in open_suite(name, bad)]
    seen: set[str] = set()
    for task in found:
        if task.name in seen:
            raise ConfigError(f"the task {task.name!r} is in two of the suites {', '.join(names)}; name it once")
        seen.add(task.name)
        id, count = Counter(i.id for i in task.items).most_common(1)[0]
        if count > 1:
            source = f" ({task.source})" if task.source else ""
            raise DataError(f"task {task.name!r}{source}: {count} items have the id {id!r}; give each its own")
        for item in task.items:  # before anything is asked
            task.draw(task.shots, seed, item)
    return found


def text_of(task: Task) -> dict[str, str]:
    """What an item is recognised by in a training text: its input and its right answer."""
    return {i.id: f"{i.input}{'' if i.contexts else ' '}{i.answers[0]}" for i in task.items}


def measure(
    lm: LanguageModel, tasks: Sequence[Task], seed: int = 0, dirty: dict[str, Contamination] | None = None
) -> dict[str, Any]:
    """Scores of every task, their means by ability, and CORE: the mean of centred accuracies over all tasks.

    Centred accuracy is (accuracy − guessing) / (1 − guessing) (Li et al. 2024): 0 is a guess and 1 is perfect.
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
            "version": task.version, "kind": task.kind, "metric": task.metric, "ability": task.ability or task.name.rpartition("/")[0] or task.name,
            "shots": task.shots, "whole_contexts": any(i.contexts for i in task.items), "items": len(replies),
            "scores": {name: score(v, groups).to_json() for name, v in scores.items()},
            "score": main.to_json(), "chance": guessing, "cut_prompts": check_room(lm, task, replies, longest, refuse=False),
            "ids": [i.id for i in task.items], "each": scores, "groups": groups,
            "example": {"prompt": replies[0].prompt, "answer": replies[0].text},
        }  # fmt: skip
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
