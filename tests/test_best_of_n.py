"""Best-of-n: the estimator against enumeration of every draw, and the run against its own table of scores."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tercet
from tercet import best_of_n
from tercet.data.formats.conversations import read_conversations, to_messages
from tercet.data.formats.prompts import read_questions
from tercet.data.readers import BadRows
from tercet.data.types import Message, Question
from tercet.errors import ConfigError, DataError
from tercet.microworld.rubric import rubric_score
from tercet.model.config import ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rewards import best_of_n as module
from tercet.posttraining.rewards.best_of_n import ScoredAnswers, best_of_k, chances, kl_bon, score_curve, select_best
from tercet.posttraining.rewards.rewards import SampledAnswer
from tercet.posttraining.rewards.stage import BestOfNConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text, render_prompt
from tercet.training.load import load_reward_model
from tercet.training.run import Run

# -- the estimator ----------------------------------------------------------------------------------------------------


def by_enumeration(proxy: Sequence[float], scores: Sequence[float], k: int) -> float:
    """Return the mean score of the proxy's best over all C(n, k) draws; ties count as their mean."""
    values = []
    for draw in itertools.combinations(range(len(proxy)), k):
        top = max(proxy[i] for i in draw)
        ties = [scores[i] for i in draw if proxy[i] == top]
        values.append(math.fsum(ties) / len(ties))
    return math.fsum(values) / len(values)


@given(st.lists(st.tuples(st.integers(-3, 3), st.floats(-5, 5)), min_size=1, max_size=8), st.data())
def test_the_estimator_is_the_mean_over_all_draws_with_ties(
    pairs: list[tuple[int, float]], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(pairs)))
    proxy, scores = [float(p) for p, _ in pairs], [score for _, score in pairs]
    assert best_of_k(proxy, scores, k) == pytest.approx(by_enumeration(proxy, scores, k), abs=1e-12)
    assert best_of_k(proxy, proxy, k) == pytest.approx(by_enumeration(proxy, proxy, k), abs=1e-12)
    assert math.fsum(chances(proxy, k)) == pytest.approx(1.0, abs=1e-12)


def test_without_ties_it_is_the_published_formula() -> None:
    """Σ_i C(i − 1, k − 1) / C(n, k) · g_(i), i the rank by the proxy (Nakano et al. 2021)."""
    rng = random.Random(0)
    proxy, scores = [rng.random() for _ in range(12)], [rng.random() for _ in range(12)]
    order = sorted(range(12), key=lambda i: proxy[i])
    for k in range(1, 13):
        wanted = sum(math.comb(i - 1, k - 1) * scores[order[i - 1]] for i in range(k, 13)) / math.comb(12, k)
        assert best_of_k(proxy, scores, k) == pytest.approx(wanted, abs=1e-12)


def test_the_ends_are_the_mean_and_the_best() -> None:
    proxy, scores = [0.1, 0.9, 0.5, 0.9], [4.0, 1.0, 3.0, 2.0]
    assert best_of_k(proxy, scores, 1) == pytest.approx(2.5)
    assert best_of_k(proxy, scores, 4) == pytest.approx(1.5)  # two share the highest score
    assert chances([1.0] * 5, 3) == pytest.approx([0.2] * 5)
    assert best_of_k([float(i) for i in range(2000)], [1.0] * 2000, 700) == pytest.approx(1.0)  # no overflow


def test_it_is_unbiased_where_the_plug_in_is_not() -> None:
    """Scores 0, 1, 2 with probabilities 0.5, 0.3, 0.2: the best of 2 is worth 2 · 0.36 + 1 · (0.64 − 0.25) + 0."""
    rng = random.Random(1)
    truth = 2 * (1 - 0.8**2) + (0.8**2 - 0.5**2)
    groups = [rng.choices([0.0, 1.0, 2.0], [0.5, 0.3, 0.2], k=4) for _ in range(20_000)]
    found = sum(best_of_k(g, g, 2) for g in groups) / len(groups)
    assert found == pytest.approx(truth, abs=0.015)  # 4 standard errors
    with_replacement = sum(sum(max(a, b) for a in g for b in g) / 16 for g in groups) / len(groups)
    assert abs(with_replacement - truth) > 0.05


@pytest.mark.parametrize("k", [0, 4, -1])
def test_more_than_there_are_cannot_be_drawn(k: int) -> None:
    with pytest.raises(ConfigError, match=f"best of {k} of 3 answers is not defined; wanted k from 1 to 3"):
        chances([1.0, 2.0, 3.0], k)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_kl_is_that_of_the_enumerated_distribution(k: int) -> None:
    """Of N answers that are equally likely and of distinct scores; N → ∞ gives ln k − (k − 1)/k."""
    n = 20_000
    mass = [(i / n) ** k - ((i - 1) / n) ** k for i in range(1, n + 1)]
    assert kl_bon(k) == pytest.approx(sum(p * math.log(p * n) for p in mass if p > 0), abs=2e-3)


# -- curve and selection ----------------------------------------------------------------------------------------------


def answers_with(
    proxy: Sequence[float], scores: Sequence[float] | None, prompt: str = "Hi", finished: Sequence[bool] = ()
) -> ScoredAnswers:
    ends = finished or [True] * len(proxy)
    message = Message("user", prompt)
    answers = [SampledAnswer("f:1", (message,), f"{prompt}/{i}", end, ()) for i, end in enumerate(ends)]
    return ScoredAnswers(answers, list(proxy), {} if scores is None else {"f1": list(scores)})


def test_the_curve_has_powers_of_two_and_n_and_counts_prompts_not_answers() -> None:
    rng = random.Random(2)
    every = [
        answers_with([rng.random() for _ in range(6)], [rng.random() for _ in range(6)] if i % 2 else None, f"{i}")
        for i in range(10)
    ]
    rows = score_curve(every)
    assert [row["k"] for row in rows] == [1, 2, 4, 6]
    assert [row["kl"] for row in rows] == [kl_bon(k) for k in (1, 2, 4, 6)]
    for row in rows:
        proxy = [by_enumeration(one.proxy, one.proxy, row["k"]) for one in every]
        scores = [by_enumeration(one.proxy, one.scores["f1"], row["k"]) for one in every if one.scores]
        assert row["proxy"]["value"] == pytest.approx(sum(proxy) / 10)
        assert row["scores"]["f1"]["value"] == pytest.approx(sum(scores) / 5)
        assert (row["proxy"]["n"], row["scores"]["f1"]["n"]) == (10, 5)
    spread = math.sqrt(sum((p - sum(proxy) / 10) ** 2 for p in proxy) / 9 / 10)
    assert rows[-1]["proxy"]["high"] - rows[-1]["proxy"]["value"] == pytest.approx(
        2.2621571628 * spread
    )  # t, 9 degrees
    assert [row["k"] for row in score_curve([answers_with([1.0] * 8, None)])] == [1, 2, 4, 8]
    assert "scores" not in score_curve([answers_with([1.0] * 8, None)])[0]


def test_rows_with_one_prompt_are_one_unit() -> None:
    (row, *_) = score_curve(
        [answers_with([1.0, 2.0], None, "a"), answers_with([3.0, 4.0], None, "a"), answers_with([5.0, 6.0], None, "b")]
    )
    assert row["proxy"]["n"] == 2


def test_the_best_is_kept_unless_it_has_no_end_or_is_too_low() -> None:
    every = [
        answers_with([0.1, 0.9, 0.9], None, "first of equals"),
        answers_with([0.8, 0.8, 0.8], None, "no end", finished=[False, False, False]),
        answers_with([0.5, 0.5, 0.4], None, "not above"),
    ]
    best, left = select_best(every, 0.5)
    assert ([one.text for one in best], left) == (["first of equals/1"], {"unfinished": 1, "too_low": 1})
    best, left = select_best(every, None)
    assert ([one.text for one in best], left) == (["first of equals/1", "not above/0"], {"unfinished": 1, "too_low": 0})


def test_what_is_cut_off_does_not_beat_a_whole_answer() -> None:
    """However low the reward's scale lies: −1 is no score of the answer."""
    best, left = select_best([answers_with([-1.0, -3.4, -3.2], None, "low", finished=[False, True, True])], None)
    assert ([one.text for one in best], left) == (["low/2"], {"unfinished": 0, "too_low": 0})


# -- the run ----------------------------------------------------------------------------------------------------------

REWARD = "def score(prompt, answer, answers):\n    return len(answer) % 7 - (answers == []) * 0.5\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer, shape: ModelConfig) -> Path:
    """An untrained model ("sft"), whose answers end by chance, a reward model ("reward"), prompts and a function."""
    path = tmp_path_factory.mktemp("best")
    models: dict[str, tuple[Any, Any]] = {
        "sft": (SFTConfig(model="x", data=("x",)), Transformer(shape, seed=1)),
        "reward": (RewardConfig(model="x", data=("x",)), ValueHeadModel(Transformer(shape, seed=2), seed=2)),
    }
    for verb, (config, model) in models.items():
        with Run.start(verb, config, path / verb) as run:
            tokenizer.save(run.path / "tokenizer.json")
            run.save_model_config(shape)
            run.save_checkpoint(1, {"model": model.state_dict()}, {}, 1)
    lines: list[dict[str, Any]] = [{"prompt": f"Is {i} odd?", "answers": ["Yes" if i % 2 else "No"]} for i in range(9)]
    (path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*lines, {"prompt": "Hello"}]))
    (path / "mine.py").write_text(REWARD)
    return path


Config = Callable[..., BestOfNConfig]


@pytest.fixture(scope="module")
def config(folder: Path) -> Config:
    def make(**changes: Any) -> BestOfNConfig:
        values: dict[str, Any] = {
            "model": str(folder / "sft"),
            "prompts": (str(folder / "prompts.jsonl"),),
            "reward": (f"python:{folder}/mine.py:score", f"2*{folder}/reward"),
            "scorer": ("rubric", "exact_match"),
            "max_new_tokens": 40,
            "answers": 6,
            "threads": 1,
        }
        return BestOfNConfig(**{**values, **changes})

    return make


@pytest.fixture(scope="module")
def run(folder: Path, config: Config) -> Run:
    return best_of_n(config(), folder / "best")


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_run_keeps_what_its_scores_say(run: Run, folder: Path) -> None:
    scores = lines_of(run.path / "scores.jsonl")
    best = []
    for row in scores:
        top = max(range(6), key=lambda i: (row["proxy"][i], -i))
        if row["finished"][top]:
            best.append([*row["prompt"], {"role": "assistant", "content": row["answers"][top]}])
        assert all(proxy == -1.0 for proxy, end in zip(row["proxy"], row["finished"]) if not end), (
            "a missing end replaces the score"
        )
        assert len(set(row["answers"])) > 1, "each answer has its own random numbers"
    assert len(scores) == 10
    assert 0 < len(best) < 10, "the test must have kept and left-out prompts"
    assert [to_messages(c) for _, c in read_conversations([str(run.path / "best" / "train.jsonl")], BadRows())] == best
    assert run.manifest["best"] == {
        "prompts": 10,
        "answers": 6,
        "kept": len(best),
        "unfinished": 10 - len(best),
        "too_low": 0,
    }


def test_a_run_reports_the_best_of_every_k_by_proxy_and_scorers(run: Run, folder: Path) -> None:
    scores = lines_of(run.path / "scores.jsonl")
    asked: list[Question] = [task for _, task in read_questions([str(folder / "prompts.jsonl")], BadRows(skip=True))]
    assert len(asked) == 9
    assert "scores" not in scores[9]
    for task, row in zip(asked, scores):
        assert list(row["scores"]) == ["rubric", "exact_match"]
        assert row["scores"]["rubric"] == [
            rubric_score(task, a, f).total for a, f in zip(row["answers"], row["finished"])
        ]
    assert [row["k"] for row in run.manifest["best_of_n"]] == [1, 2, 4, 6]
    for row in run.manifest["best_of_n"]:
        proxy = [by_enumeration(s["proxy"], s["proxy"], row["k"]) for s in scores]
        rubric = [by_enumeration(s["proxy"], s["scores"]["rubric"], row["k"]) for s in scores[:9]]
        assert row["proxy"]["value"] == pytest.approx(sum(proxy) / 10)
        assert row["scores"]["rubric"]["value"] == pytest.approx(sum(rubric) / 9)
        assert (row["proxy"]["n"], row["scores"]["rubric"]["n"]) == (10, 9)


def test_the_rewards_see_the_sampled_ids_and_add_up(config: Config, folder: Path, tokenizer: Tokenizer) -> None:
    model = load_reward_model(Run(folder / "reward"))
    for one in module._sample(config(), Run(folder / "sft"), BadRows()):
        for answer, proxy in zip(one.answers, one.proxy, strict=True):
            asked = render_prompt(tokenizer, answer.prompt)
            assert list(answer.tokens[: len(asked)]) == asked
            assert answer_text(tokenizer, answer.tokens[len(asked) :]) == (answer.text, answer.finished)
            score = float(model(torch.tensor([answer.tokens]))[0, -1].detach())
            mine = len(answer.text) % 7 - (0.0 if answer.question else 0.5)
            assert proxy == pytest.approx(mine + 2 * score if answer.finished else -1.0, abs=1e-4)


def test_the_lineage_and_the_inputs_are_pinned(run: Run, folder: Path) -> None:
    assert {role: parent["sha256"] for role, parent in run.manifest["parents"].items()} == {
        "model": Run(folder / "sft").weights_hash(),
        "reward": Run(folder / "reward").weights_hash(),
    }
    assert sorted(Path(name).name for name in run.manifest["inputs"]) == ["mine.py", "prompts.jsonl"]


def test_batches_do_not_change_the_answers(
    run: Run, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 13)  # two prompts at a time
    again = lines_of(best_of_n(config(), tmp_path / "again").path / "scores.jsonl")
    for row, expected in zip(again, lines_of(run.path / "scores.jsonl"), strict=True):
        assert row.pop("proxy") == pytest.approx(expected.pop("proxy"), abs=1e-5)
        assert row == expected


def test_an_interrupted_run_goes_on_to_the_same_files(
    run: Run, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "score_curve", stop)
        with pytest.raises(KeyboardInterrupt):
            best_of_n(config(), tmp_path / "stopped")
    assert Run(tmp_path / "stopped").manifest["status"] == "interrupted"
    done = tercet.resume(tmp_path / "stopped")
    for name in ("scores.jsonl", "best/train.jsonl"):
        assert (done.path / name).read_bytes() == (run.path / name).read_bytes()
    assert done.manifest["best_of_n"] == run.manifest["best_of_n"]
    assert done.manifest["status"] == "finished"


def test_a_verifier_refuses_prompts_without_answers_before_anything_is_sampled(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "generate", lambda *_: pytest.fail("sampled"))
    with pytest.raises(DataError, match=r"prompts\.jsonl:10: the reward exact_match needs gold answers"):
        best_of_n(config(reward=("exact_match",)), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir()), "the corrected command may use the same folder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": 1}, "--answers is 1; it must be at least 2"),
        ({"temperature": 0.0}, "--temperature"),
        ({"minimum_score": "0"}, "--minimum-score is '0'"),
        ({"minimum_score": math.nan}, "wanted a finite number"),
    ],
)
def test_wrong_settings_are_refused(config: Config, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**change)
