"""Prompting, with models whose answers are known: scoring, calibration, voting and combining."""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest

from tercet.data.text_matching import normalise
from tercet.errors import ConfigError, ContextError
from tercet.evaluation.config import PromptConfig
from tercet.evaluation.few_shot import FewShotSetting, answer, check_room, content_free, prompt_of, vote
from tercet.evaluation.prompt_study import combined, prompt_study
from tercet.evaluation.task import Item, PromptTemplate, Task, find, register, registered
from tercet.inference.language_model import TransformerLM
from tercet.statistics.significance import clustered

Found = namedtuple("Found", "logprob greedy tokens bytes")


class Fake:
    """A model made of two functions; it keeps its requests."""

    context_length = None

    def __init__(self, logprob=None, say=None):
        self.logprob, self.say, self.requests = logprob, say, []

    def loglikelihood(self, requests):
        self.requests += requests
        return [Found(v := self.logprob(c, t), v > -0.5, 1, len(t.encode())) for c, t in requests]

    def generate_until(self, requests, max_new_tokens=64, temperature=0.0, seed=0):
        self.requests += requests
        return [self.say(prompt, number) for number, (prompt, _) in enumerate(requests)]


def means(task, way, model):
    return np.mean([r.scores[task.metric] for r in answer(model, task, [way])[0]])


@pytest.mark.parametrize("name", [n for n in sorted(registered()) if n != "code"])
def test_a_model_that_knows_the_answers_scores_one_and_one_that_knows_nothing_guesses(name):
    task = find(name)
    gold = {task.form.prompt(i.input, []): i for i in task.items}
    if name == "fluency":
        good = {i.answers[0] for i in task.items}
        model = Fake(lambda c, t: 0.0 if t in good else -1.0)
    else:
        model = Fake(
            lambda c, t: 0.0 if t.strip() == gold[c].answers[0] else -1.0,
            lambda p, n: task.form.answer(gold[p].answers[0]),
        )
    assert means(task, FewShotSetting(task.form), model) == 1.0
    rng = random.Random(0)
    blind = Fake(lambda c, t: rng.random(), lambda p, n: " no idea")
    tries = [means(task, FewShotSetting(task.form), blind) for _ in range(30)]
    assert np.mean(tries) == pytest.approx(task.guessing(), abs=0.08)


def test_normalisations_by_hand():
    item = Item("1", "x", ("öö",), ("a", "öö", "ccc"))
    task = Task("t", "choice", lambda: [item], form=PromptTemplate("", "{input} {output}"))
    # log p −2.0, −3.0, −4.2: per character −2, −1.5, −1.4; per byte −2, −0.75, −1.4
    by = {" a": -2.0, " öö": -3.0, " ccc": -4.2}
    reply = answer(Fake(lambda c, t: by[t]), task, [FewShotSetting(task.form)])[0][0]
    assert reply.scores == {"acc": 0.0, "acc_norm": 0.0, "acc_bytes": 1.0}
    assert (reply.text, reply.prompt) == ("a", "x")
    whole = replace(item, contexts=("c1", "c2", "c3"), choices=(" a", " öö", " öö"), right=(2,))
    task = Task("t", "choice", lambda: [whole])
    reply = answer(Fake(lambda c, t: {"c1": -2.0, "c2": -3.0, "c3": -1.0}[c]), task, [FewShotSetting(task.form)])[0][0]
    assert reply.scores == {"acc": 1.0, "acc_norm": 1.0, "acc_bytes": 1.0}


def test_targets_have_bits_per_byte_and_say_whether_they_are_greedy():
    item = Item("1", "The end is", ("near",))
    task = Task("t", "target", lambda: [item], form=PromptTemplate("", "{input} {output}"))
    reply = answer(Fake(lambda c, t: -math.log(2) * 10), task, [FewShotSetting(task.form)])[0][0]
    assert reply.scores == {"greedy": 0.0, "bits_per_byte": pytest.approx(2.0)}  # " near" has 5 bytes
    assert answer(Fake(lambda c, t: -0.1), task, [FewShotSetting(task.form)])[0][0].scores["greedy"] == 1.0


def test_calibration_is_the_papers_affine_map():
    """A model that is right but for a bias towards one label: calibrated, the bias is gone (Zhao et al. 2021)."""
    task = find("classification")
    rng = np.random.default_rng(0)
    bias = rng.normal(0, 6, len(task.labels))
    right = {i.input: task.labels.index(i.answers[0]) for i in task.items}
    evidence = {i.input: rng.normal(0, 0.3, len(task.labels)) for i in task.items}

    def logits(text):
        return bias + (evidence[text] + np.eye(6)[right[text]] * 2 if text in right else 0)

    def logprob(context, continuation):
        text = context.rsplit("\n", 1)[-1].removesuffix(":")
        z = logits(text)
        return float(
            z[task.labels.index(continuation.strip())] - np.log(np.exp(z).sum()) - 4.0
        )  # labels are not all that is likely

    model = Fake(logprob)
    plain, calibrated = answer(model, task, [FewShotSetting(task.form), FewShotSetting(task.form, calibrate=True)])
    assert np.mean([r.scores["acc"] for r in plain]) < 0.5
    assert np.mean([r.scores["acc"] for r in calibrated]) > 0.95
    # the formula itself: q = softmax(W p) with W = diag(p_cf)^-1 has the same argmax
    for item, reply in zip(task.items, calibrated):
        p = np.exp(logits(item.input)) / np.exp(logits(item.input)).sum()
        cf = np.exp(bias) / np.exp(bias).sum()
        assert reply.text == task.labels[int(np.argmax(np.diag(1 / cf) @ p))]
    probabilities = np.exp([[0.1, -1.0], [-5.0, -4.0]])
    wanted = (probabilities / probabilities.sum(1, keepdims=True)).mean(0)
    assert np.exp(content_free([[0.1, -1.0], [-5.0, -4.0]])) == pytest.approx(wanted)
    with pytest.raises(ConfigError, match="no fixed labels"):
        answer(model, find("cloze"), [FewShotSetting(PromptTemplate(), calibrate=True)])
    with pytest.raises(ConfigError, match="no fixed labels"):
        answer(model, find("translation"), [FewShotSetting(PromptTemplate(), calibrate=True)])


def test_self_consistency_takes_the_most_common_answer():
    assert vote(["12", " 7.", "7", "12.", "7"]) == " 7."
    assert vote(["so 3 and 4 are 7", "it is 7", "it is 8"], "numeric") == "so 3 and 4 are 7"
    assert vote(["so 3 and 4 are 7", "it is 7", "it is 8"]) == "so 3 and 4 are 7"  # all differ: the first
    assert vote(["", "a", ""]) == "a"
    task = find("translation")
    gold = {task.form.prompt(i.input, []): i.answers[0] for i in task.items}
    model = Fake(say=lambda p, n: gold[p] if n % 5 < 3 else "?")  # right three times of five
    assert means(task, FewShotSetting(task.form, votes=5, temperature=1.0), model) == 1.0
    assert means(task, FewShotSetting(task.form, temperature=1.0), model) == pytest.approx(0.6, abs=0.03)
    with pytest.raises(ConfigError, match="--temperature"):
        answer(model, task, [FewShotSetting(task.form, votes=5)])


def copies_from_context(context, continuation):
    """A model that only looks into its prompt: the label of the examples that are of the question's kind."""
    *examples, question = context.split("\n")
    shown = dict(e.split(" => ") for e in examples)
    kind = {i.input: i.answers[0] for i in (*find("mapping").items, *find("mapping").examples)}
    mine = kind[question.removesuffix(" =>")]
    votes = [label for word, label in shown.items() if kind[word] == mine]
    return 0.0 if votes and continuation.strip() == max(set(votes), key=votes.count) else -1.0


def test_labels_of_the_examples_are_what_an_in_context_learner_follows():
    task, model = find("mapping"), Fake(copies_from_context)
    assert means(task, FewShotSetting(task.form), model) == pytest.approx(0.5)
    assert means(task, FewShotSetting(task.form, 8, 0), model) == 1.0
    assert means(task, FewShotSetting(task.form, 8, 0, labels="wrong"), model) == 0.0
    mixed = np.mean([means(task, FewShotSetting(task.form, 8, s, labels="random"), model) for s in range(30)])
    assert 0.3 < mixed < 0.7


def test_orders_keep_the_examples_and_formats_the_words():
    task = find("mapping")
    item = task.items[0]
    first, second = (prompt_of(task, item, FewShotSetting(task.form, 8, 0, order=o)) for o in (0, 1))
    assert first != second
    assert sorted(first.split("\n")) == sorted(second.split("\n"))
    assert first.split("\n")[-1] == second.split("\n")[-1]
    other = prompt_of(task, item, FewShotSetting(task.formats[0], 8, 0))
    assert other.replace(": ", " => ").replace(":", " =>") == first


def test_no_request_is_made_twice():
    task = find("mapping")
    model = Fake(lambda c, t: 0.0)
    answer(model, task, [FewShotSetting(task.form, 0, s) for s in range(5)])
    assert len(model.requests) == len(set(model.requests)) == 2 * len(task.items)


def config(**changes):
    return PromptConfig(**{"model": "m", "task": ("mapping",), "shots": (0, 4, 8), "seeds": 3, "threads": 1} | changes)


def test_the_curve_of_an_in_context_learner():
    model = Fake(copies_from_context)
    rows = prompt_study(config(vary=("labels", "order")), lm=model)
    base = {r["shots"]: r for r in rows if r["condition"] == "base"}
    assert base[0]["accuracy"]["value"] == pytest.approx(0.5)
    assert base[8]["accuracy"]["value"] >= base[4]["accuracy"]["value"] > 0.7
    assert base[0]["chance"] == 0.5
    assert len(base[4]["each"]) == 3
    assert base[4]["worst"] == min(base[4]["each"])
    wrong = next(r for r in rows if r["condition"] == "wrong labels" and r["shots"] == 8)
    assert wrong["accuracy"]["value"] < 0.2
    orders = next(r for r in rows if r["condition"] == "orders" and r["shots"] == 8)
    assert orders["worst"] == orders["best"] == 1.0  # this model does not care for the order
    assert {r["condition"] for r in rows if r["shots"] == 0} == {"base"}
    assert base[4]["prompt"].count("=>") == 5


def test_a_model_that_cares_for_the_order_shows_it():
    last = Fake(lambda c, t: 0.0 if t.strip() == c.split("\n")[-2].split(" => ")[1] else -1.0)  # copies the last label
    rows = prompt_study(config(shots=(8,), seeds=1, vary=("order",), orders=6), lm=last)
    orders = next(r for r in rows if r["condition"] == "orders")
    assert orders["best"] == orders["worst"] == 0.5  # balanced items: every constant answer is half right
    # knows animals only where the first example is one
    animal = {i.input for i in (*find("mapping").items, *find("mapping").examples) if i.answers[0] == "wug"}
    fickle = Fake(lambda c, t: 0.0 if (t.strip() == "wug") is (re.split(" =>|:", c)[0] in animal) else -1.0)
    task = find("mapping")
    unbalanced = register(replace(task, name="only-animals", ability="", make_items=lambda: task.items[:9]))
    rows = prompt_study(
        config(task=(unbalanced.name,), shots=(8,), seeds=1, vary=("order", "format"), orders=8), lm=fickle
    )
    orders = next(r for r in rows if r["condition"] == "orders")
    assert (orders["worst"], orders["best"]) == (0.0, 1.0)
    assert orders["accuracy"]["low"] < orders["accuracy"]["value"] < orders["accuracy"]["high"]
    assert {r["condition"] for r in rows} == {"base", "orders", "formats"}
    assert [r["over"][1] for r in rows if r["condition"] == "orders"] == ["order 1"]
    assert next(r for r in rows if r["condition"] == "formats")["over"][1] == "'{input}: {output}'"


def test_combined_numbers():
    assert combined([[1.0, 0.0, 1.0, 1.0]]).value == 0.75
    assert combined([[1.0, 0.0, 1.0, 1.0]]).low == pytest.approx(0.3006, abs=1e-3)  # Wilson
    assert combined([[0.2, 0.4]]).n == 2
    assert combined([[0.0] * 10] * 3).high == pytest.approx(
        1.959964**2 / (10 + 1.959964**2)
    )  # never right is not "never"
    assert combined([[1.0, 0.0], [1.0, 1.0]]).value == 0.75
    few = combined([[1.0, 0.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]])
    assert (few.low, few.high) == (0.0, 1.0)  # and not beyond what an accuracy can be
    assert combined([[-4.0, -1.0, -2.0], [-3.0, -1.0, -2.5]]).low < -2.25  # which other measures can


def test_items_of_one_document_count_as_one():
    """Ten documents of ten items, each right as a whole or not at all: as ten items, not as a hundred."""
    right = [float(n % 2) for n in range(10)]
    items, documents = np.repeat(right, 10).tolist(), np.repeat([f"d{n}" for n in range(10)], 10).tolist()
    assert combined([items], documents) == clustered(items, documents)
    other = right[1:] + right[:1]
    found, alone = combined([items, np.repeat(other, 10).tolist()], documents), combined([right, other])
    assert dataclasses.astuple(found) == pytest.approx(dataclasses.astuple(alone))
    ragged = combined([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]], ["a", "a", "a", "b"])
    assert ragged.value == 5 / 8
    assert combined([[1.0] * 100] * 2, documents) == combined([[1.0] * 10] * 2)


def test_wrong_requests_are_errors():
    with pytest.raises(ConfigError, match="no task to evaluate"):
        prompt_study(config(task=()), lm=Fake())
    with pytest.raises(ConfigError, match="no task 'mappin'; did you mean 'mapping'"):
        prompt_study(config(task=("mappin",)), lm=Fake())
    with pytest.raises(ConfigError, match="99 shots"):
        prompt_study(config(shots=(99,)), lm=Fake())
    with pytest.raises(ConfigError, match=r"vary is 'orders'.*did you mean 'order'"):
        config(vary=("orders",))
    with pytest.raises(ConfigError, match="a task of choices has acc, acc_norm"):
        prompt_study(config(metric="exact"), lm=Fake(lambda c, t: 0.0))
    with pytest.raises(ConfigError, match="--self-consistency is for free answers"):
        prompt_study(config(self_consistency=3, temperature=1.0), lm=Fake(lambda c, t: 0.0))


def test_a_real_model_is_evaluated_and_prompts_must_fit(make_model, tokenizer):
    model = make_model(0, vocab_size=tokenizer.vocab_size, context_length=96)
    lm = TransformerLM(model, tokenizer)
    rows = prompt_study(config(shots=(0, 2), seeds=2), lm=lm)
    assert all(0 <= r["accuracy"]["value"] <= 1 for r in rows)
    with pytest.raises(ContextError, match=r"prompts do not fit.*use fewer --shots"):
        prompt_study(
            config(shots=(16,), seeds=1),
            lm=TransformerLM(make_model(0, vocab_size=tokenizer.vocab_size, context_length=32), tokenizer),
        )
    task = find("translation").limited(4)
    replies = answer(lm, task, [FewShotSetting(task.form, 1, 0, max_new_tokens=4)])[0]
    assert check_room(lm, task, replies, 4, refuse=False) == 0
    for reply in replies:  # greedy: the same as asking for it alone
        assert lm.generate_until([(reply.prompt, ("\n",))], 4) == [reply.text]
        assert normalise(reply.text) == normalise(reply.text.split("\n")[0])
