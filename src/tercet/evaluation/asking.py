"""`tercet prompt --tasks`: zero-, one- and few-shot accuracy of a model, by completion alone (Brown et al. 2020)."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from tercet.data.readers import BadRows
from tercet.data.tasks import tasks
from tercet.errors import ConfigError
from tercet.evaluation.answers import Form, few_shot
from tercet.evaluation.config import AskConfig
from tercet.evaluation.metrics import proportion
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import language_model_run, load_language_model
from tercet.training.run import threads


def ask(config: AskConfig, bad: BadRows | None = None) -> list[dict[str, Any]]:
    """One row for each number of shots and each ability (and "all"): accuracy with its interval, and a sample prompt."""
    if not config.tasks:
        raise ConfigError("nothing to ask: name --tasks")
    run = language_model_run(config.model)
    bad = bad or BadRows(skip=config.skip_bad_rows)
    questions = [t for _, t in tasks(config.tasks, bad)]
    examples = [t for _, t in tasks(config.examples, bad)] if config.examples else []
    if config.limit:
        questions = questions[: config.limit]
    form = Form(config.description, config.template, config.separator)
    rows = []
    with threads(config.threads):
        model, tokenizer = load_language_model(run), Tokenizer.load(run.path)
        for shots in config.shots:
            answers, right, prompt = few_shot(
                model, tokenizer, questions, examples, shots, form, config.max_new_tokens, config.seed
            )
            hits: dict[str, list[bool]] = defaultdict(list)
            for task, hit in zip(questions, right):
                hits["all"].append(hit)
                hits[task.ability].append(hit)
            for ability, values in hits.items():
                accuracy = proportion(sum(values), len(values)).to_json()
                rows.append(
                    {
                        "form": config.template,
                        "shots": shots,
                        "ability": ability,
                        "accuracy": accuracy,
                        "prompt": prompt,
                        "answer": answers[0],
                    }
                )
    return rows
