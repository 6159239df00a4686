"""`tercet eval`: bits per byte, scores of answers, reward, KL and win rate of models, with intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows, read_documents
from tercet.data.types import Document, Question
from tercet.errors import ConfigError, DataError
from tercet.evaluation.bits_per_byte import average, bits_per_byte, by_source, limit_bytes
from tercet.evaluation.config import EvalConfig
from tercet.evaluation.contamination import Contamination, contamination
from tercet.evaluation.scoring.answers import Answer
from tercet.evaluation.scoring.scorers import Scorer, scorer_of
from tercet.evaluation.suites import evaluate_tasks, open_suites, text_of
from tercet.evaluation.task import Task
from tercet.inference.language_model import ChatAnswer, LanguageModel, RequestProgress, local, open_model
from tercet.inference.reward_scores import check_contexts, score_texts
from tercet.model.heads import ValueHeadModel
from tercet.statistics.intervals import Estimate, mean, paired_difference, proportion, win_rate
from tercet.statistics.significance import score
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.load import load_reward_model
from tercet.training.records import write_text
from tercet.training.run import threads
from tercet.training.stage import language_model_run, reward_model_run


@dataclass
class _Samples:
    """One model's sampled answers (temperature 1), and by scorer the score of each."""

    answers: list[ChatAnswer]
    scores: dict[str, list[float]]


def _answers(
    config: EvalConfig,
    lm: LanguageModel,
    questions: Sequence[Question],
    scorers: Sequence[Scorer],
    reward_model: ValueHeadModel | None,
) -> tuple[dict[str, Any], _Samples]:
    """Score greedy answers, and sampled ones (temperature 1, the same seeds for every model), by every scorer.

    Scores by item and by ability are of greedy answers; reward, KL and win rate are of sampled ones.
    """
    prompts = [(t.where, t.prompt) for t in questions]
    greedy = lm.chat(prompts, config.max_new_tokens, 0.0, config.seed)
    sampled = lm.chat(prompts, config.max_new_tokens, 1.0, config.seed)
    answers, drawn = ([(a.text, a.finished) for a in some] for some in (greedy, sampled))
    each = {scorer.name: scorer.scores(questions, answers) for scorer in scorers}
    of_samples = {scorer.name: scorer.scores(questions, drawn) for scorer in scorers}
    row: dict[str, Any] = {
        "scores": {
            name: {
                "greedy": score(values).to_json(),
                "sampled": score(of_samples[name]).to_json(),
                "abilities": _grouped(values, [t.ability for t in questions]),
                "held_out": _grouped(values, [t.held_out for t in questions]),
            }
            for name, values in each.items()
        },
        "finished": proportion(sum(finished for _, finished in drawn), len(drawn)).to_json(),
        "ids": [t.id for t in questions],
        "each": each,
        "examples": [_example(n, t, answers[n], each) for n, t in enumerate(questions[:40])],
    }
    if reward_model is not None:
        texts = [(*a.prompt, *a.ids) for a in sampled]
        row["reward"] = mean(score_texts(reward_model, texts, local(lm, "--reward").tokenizer.pad)).to_json()
    return row, _Samples(sampled, of_samples)


def _grouped(values: Sequence[float], groups: Sequence[str]) -> dict[str, Any]:
    """Return the mean score of each group of questions, such as an ability; "" is no group."""
    return {
        name: score([v for v, group in zip(values, groups) if group == name]).to_json()
        for name in sorted(set(groups) - {""})
    }


def _example(number: int, question: Question, answer: Answer, each: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Return a question with its greedy answer; "right" means that the first scorer gives it 1."""
    prompt = [{"role": m.role, "content": m.content} for m in question.prompt]
    scores = {name: values[number] for name, values in each.items()}
    return {
        "prompt": prompt,
        "answer": answer[0],
        "finished": answer[1],
        "right": next(iter(scores.values())) == 1,
        "scores": scores,
        "gold": question.answers[0],
        "ability": question.ability,
        "held_out": question.held_out,
    }


def _against(reference: _Samples, lm: LanguageModel, ours: _Samples, reference_lm: LanguageModel) -> dict[str, Any]:
    """Return the KL to the reference on our answers, and by every scorer the win rate and the paired difference."""
    answers = [(a.prompt, a.ids) for a in ours.answers]
    scored, by_reference = (local(model, "--reference").score(answers) for model in (lm, reference_lm))
    kl = [a.logprob - b.logprob for a, b in zip(scored, by_reference)]
    return {
        "kl": mean(kl).to_json(),
        "against": {
            name: {
                "win_rate": win_rate(values, reference.scores[name]).to_json(),
                "difference": paired_difference(values, reference.scores[name]).to_json(),
            }
            for name, values in ours.scores.items()
        },
    }


def _load_inputs(config: EvalConfig) -> tuple[list[Document], list[Question], int]:
    bad = BadRows(skip=config.skip_bad_rows)
    text = limit_bytes(list(read_documents(config.text, bad)), config.heldout_bytes) if config.text else []
    questions = [t for _, t in read_questions(config.questions, bad)] if config.questions else []
    if not text and not questions and not config.suite:
        raise ConfigError("nothing to evaluate; name held-out --text, --questions with answers, or a --suite")
    return text, questions[: config.limit or None], bad.count


def _numbers(rows: Sequence[object]) -> list[str]:
    """Return "0", "1", …: names for questions or documents, whose own ids may be equal."""
    return [str(n) for n in range(len(rows))]


def _overlaps(
    config: EvalConfig, suite: Sequence[Task], questions: Sequence[Question], text: Sequence[Document], bad: BadRows
) -> dict[str, Contamination]:
    """Return the contamination of each task by its name, of "--questions", and of each "--text SOURCE"."""
    sets: dict[str, Mapping[str, str]] = {task.name: text_of(task) for task in suite}
    if questions:
        texts = [f"{q.prompt[-1].content} {q.answers[0]}" for q in questions]
        sets["--questions"] = dict(zip(_numbers(questions), texts))
    if text:
        sets |= {
            f"--text {source}": dict(zip(_numbers(group), [d.text for d in group]))
            for source, group in by_source(text).items()
        }
    return contamination(sets, (d.text for d in read_documents(config.training_text, bad)))


def evaluate(
    config: EvalConfig, out: str | Path | None = None, progress: RequestProgress | None = None
) -> dict[str, Any]:
    """Evaluate every model of `config.models` and return the scores; with `out`, also write them there as JSON.

    Raises ConfigError if there is nothing to evaluate, a run is named twice, or tokenizers differ that must be equal.
    """
    text, questions, skipped = _load_inputs(config)
    scorers = [scorer_of(name) for name in config.scorer] if questions else []
    for scorer in scorers:
        for question in questions:
            scorer.check(question)
    runs = [language_model_run(path) for path in config.models]
    reward_run = reward_model_run(config.reward) if config.reward else None
    reference_run = language_model_run(config.reference) if config.reference else None
    prints = {Tokenizer.load(r.path).fingerprint() for r in [*runs, reward_run, reference_run] if r is not None}
    if len(prints) > 1 and (reward_run or reference_run):
        raise ConfigError(
            "the models have different tokenizers; with --reward or --reference, all models must share one tokenizer, "
            "so that answers can be compared token by token"
        )
    result: dict[str, Any] = {
        "config": config.to_json(),
        "skipped_rows": skipped,
        "tasks": len(questions),
        "models": {},
    }
    bad = BadRows(skip=config.skip_bad_rows)
    suite = open_suites(config.suite, config.imports, bad, config.limit, config.seed)
    dirty = _overlaps(config, suite, questions, text, bad) if config.training_text else {}
    with threads(config.threads):
        reward_model = load_reward_model(reward_run) if reward_run else None
        cache = config.cache or None
        reference_lm = open_model(reference_run.path, cache=cache, progress=progress) if reference_run else None
        reference: _Samples | None = None
        if reference_lm:
            of_reference, reference = _answers(config, reference_lm, questions, scorers, reward_model)
        for run in runs:
            if str(run.path) in result["models"]:
                raise ConfigError(f"{run.path} is named twice; name each run once")
            same = reference_lm if reference_run and run.path.samefile(reference_run.path) else None
            lm = same or open_model(run.path, cache=cache, progress=progress)
            if reward_model is not None and reward_run is not None:
                check_contexts(reward_model, local(lm, "--reward").context_length, reward_run, run)
            row: dict[str, Any] = {"verb": run.manifest["verb"], "parameters": lm.parameters}
            if text:
                bits = bits_per_byte(lm, text)
                row["bits_per_byte"] = {s: e.to_json() for s, e in bits.items()}
                row["bits_per_byte_mean"] = average(bits)
                if dirty:
                    row["text_contamination"] = {
                        s: dirty[f"--text {s}"].split(_numbers(group), [1.0] * len(group))
                        for s, group in by_source(text).items()
                    }
            if questions:
                if same and reference:
                    scores, samples = of_reference, reference  # answered already, with the same seeds
                else:
                    scores, samples = _answers(config, lm, questions, scorers, reward_model)
                row |= scores
                if dirty:
                    row["contamination"] = dirty["--questions"].split(_numbers(questions), row["each"][scorers[0].name])
                if reference_lm and reference:
                    row |= _against(reference, lm, samples, reference_lm)
            if suite:
                row["suite"] = evaluate_tasks(lm, suite, config.seed, dirty)
            result["models"][str(run.path)] = row
        result["skipped_rows"] += bad.count
    if out is not None:
        try:
            write_text(Path(out), json.dumps(result, indent=1, ensure_ascii=False) + "\n")
        except OSError as error:
            raise DataError(f"{out}: cannot be written: {error}") from error
    return result


def estimate(value: dict[str, Any]) -> Estimate:
    """Return an estimate with its interval, read back from JSON."""
    low, high = (float("nan") if value[k] is None else float(value[k]) for k in ("low", "high"))
    return Estimate(float(value["value"]), low, high, int(value["n"]))
