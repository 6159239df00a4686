"""Log-likelihoods and generation against one token at a time, without cache, batch or shared prefixes."""

from __future__ import annotations

import io
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tercet.errors import ConfigError, ContextError, DataError
from tercet.inference import language_model
from tercet.inference.language_model import TransformerLM, rolling_windows, split_tokens
from tercet.inference.prefix_sharing import lay_out
from tercet.inference.request_cache import RequestCache
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.progress import Requests

REQUESTS = [
    ("The cat sat on the", " mat"),
    ("The cat sat on the", " log, and the dog"),
    ("The cat sat on the ", "mat"),
    ("What is the capital of France? The capital", " of France is Paris."),
    ("", "Twenty-one"),
    ("    ", "x = 1"),
    ("naïve Cafés öff", "nen früh"),  # may join at the border
    ("3", "4 make 55"),
    ("The cat sat on the", " mat"),
    ("the dog sat on the log. " * 9, "The dog"),  # longer than the context of 64
]


@pytest.fixture
def ask(make_model: Callable[..., Transformer], tokenizer: Tokenizer) -> TransformerLM:
    return TransformerLM(make_model(), tokenizer)


def naive(model: Transformer, ids: list[int], predicted: int) -> tuple[float, bool]:
    """log p of the last `predicted` ids, each from a forward pass of its own over at most the context."""
    total, greedy = 0.0, True
    size = model.config.context_length
    start = max(0, len(ids) - size - 1)
    with torch.no_grad():
        for at in range(len(ids) - predicted, len(ids)):
            row = model(torch.tensor([ids[start:at]]))[0, -1].tolist()
            top = max(row)
            total += row[ids[at]] - top - math.log(math.fsum(math.exp(v - top) for v in row))
            greedy = greedy and max(range(len(row)), key=row.__getitem__) == ids[at]
    return total, greedy


def naive_request(ask: TransformerLM, context: str, continuation: str) -> tuple[float, bool, int]:
    while context and context[-1].isspace():  # to the continuation
        context, continuation = context[:-1], context[-1] + continuation
    alone, whole = ask.tokenizer.encode(context), ask.tokenizer.encode(context + continuation)
    border = 0
    while border < min(len(alone), len(whole)) and alone[border] == whole[border]:
        border += 1
    ids = [ask.tokenizer.endoftext, *whole]
    return *naive(ask.model, ids, len(whole) - border), len(whole) - border


def test_loglikelihood_is_the_naive_one(ask: TransformerLM) -> None:
    found = ask.loglikelihood(REQUESTS)
    for one, (context, continuation) in zip(found, REQUESTS, strict=True):
        logprob, greedy, tokens = naive_request(ask, context, continuation)
        assert one.logprob == pytest.approx(logprob, abs=1e-4), (context, continuation)
        assert (one.greedy, one.tokens, one.bytes) == (greedy, tokens, len(continuation.encode()))


def test_the_greedy_continuation_is_known_as_such(ask: TransformerLM) -> None:
    ids = [ask.tokenizer.endoftext, *ask.tokenizer.encode("The cat")]
    with torch.no_grad():
        for _ in range(5):
            ids.append(int(ask.model(torch.tensor([ids]))[0, -1].argmax()))
    right, wrong = ask.score([(ids[:-5], ids[-5:]), (ids[:-5], [*ids[-5:-1], (ids[-1] + 1) % 300])])
    assert (right.greedy, wrong.greedy) == (True, False)


def test_the_batch_changes_nothing(ask: TransformerLM, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(1)
    words = ["the", "cat", "dog", "sat", "on", "mat", "capital", "of", "France", "is", "Paris", "and", "3"]
    shared = "The capital of France is Paris. "
    requests = [
        (rng.choice(["", shared]) + " ".join(rng.choices(words, k=rng.randint(1, 20))), " " + rng.choice(words))
        for _ in range(60)
    ]
    monkeypatch.setattr(language_model, "SCORING_PASS_TOKENS", 500)
    together = ask.loglikelihood(requests)
    alone = [ask.loglikelihood([r])[0] for r in requests]
    shuffled = list(range(60))
    rng.shuffle(shuffled)
    other = ask.loglikelihood([requests[i] for i in shuffled])
    for i, one in enumerate(together):
        assert one.logprob == pytest.approx(alone[i].logprob, abs=1e-5)
        assert one.logprob == pytest.approx(other[shuffled.index(i)].logprob, abs=1e-5)
        assert (one.greedy, one.tokens) == (alone[i].greedy, alone[i].tokens)


def test_a_token_across_the_border_belongs_to_the_continuation(tokenizer: Tokenizer) -> None:
    joined = next(
        (text[:cut], text[cut:])
        for i in range(261, 300)
        if (text := tokenizer.token(i)).isalpha() and tokenizer.encode(text) == [i]
        for cut in range(1, len(text))
    )
    ((context, continuation),) = split_tokens(tokenizer, [joined])
    assert (context, continuation) == ([], tokenizer.encode("".join(joined)))
    ((context, continuation),) = split_tokens(tokenizer, [("on the ", "mat")])
    assert tokenizer.decode(context) == "on the"
    assert tokenizer.decode(continuation) == " mat"


def test_text_spelled_like_a_special_token_stays_text(ask: TransformerLM) -> None:
    ((context, continuation),) = split_tokens(ask.tokenizer, [("a<|endoftext|>", "<|im_end|>")])
    assert not {*context, *continuation} & ask.tokenizer.special_ids


WINDOWS = "0 4 1, 3 4 1, 4 4 1, 5 4 1, 13 4 1, 13 4 3, 9 4 4, 1 1 1, 5 1 1"


@pytest.mark.parametrize(("length", "size", "context"), [tuple(map(int, case.split())) for case in WINDOWS.split(",")])
def test_rolling_windows_predict_every_token_once(length: int, size: int, context: int) -> None:
    ids = list(range(100, 100 + length))
    windows = list(rolling_windows(ids, 7, size, context))
    assert [i for window, n in windows for i in window[len(window) - n :]] == ids
    whole = [7, *ids]
    for number, (window, n) in enumerate(windows):
        assert 0 < n < len(window) <= size + 1
        start = whole.index(window[0])
        assert whole[start : start + len(window)] == window
        assert number == 0 or len(window) - n >= context
    if length > size:
        assert len(windows[-1][0]) == size + 1  # the last one has as much context as fits


@pytest.mark.parametrize(("length", "context", "last"), [(13, 1, 2), (16, 1, 5), (13, 3, 4), (4, 1, 5), (3, 1, 4)])
def test_the_last_window_is_short_where_it_may_not_reach_back(length: int, context: int, last: int) -> None:
    ids = list(range(100, 100 + length))
    windows = list(rolling_windows(ids, 7, 4, context, reach_back=False))
    assert [i for window, n in windows for i in window[len(window) - n :]] == ids
    assert all(len(window) - n == context for window, n in windows[1:])
    assert len(windows[-1][0]) == last
    assert windows[:-1] == list(rolling_windows(ids, 7, 4, context))[:-1]


def test_rolling_is_the_naive_sum(ask: TransformerLM) -> None:
    text = "The cat sat on the mat, and the dog sat on the log. Übermäßig! " * 5
    ids = ask.tokenizer.encode(text)
    assert len(ids) > 2 * 64
    expected, done = 0.0, 0
    whole = [ask.tokenizer.endoftext, *ids]
    while done < len(ids):  # 64 tokens a window; the last one reaches back
        new = min(64, len(ids) - done)
        first = max(0, done + new - 64) if done else 0
        expected += naive(ask.model, whole[first : done + new + 1], new)[0]
        done += new
    short = naive(ask.model, [ask.tokenizer.endoftext, *ask.tokenizer.encode("34")], len(ask.tokenizer.encode("34")))[0]
    assert ask.rolling([text, "", "34"]) == pytest.approx([expected, 0.0, short], abs=1e-3)


def test_more_context_is_used_where_it_is_asked_for(ask: TransformerLM) -> None:
    text = "the dog sat on the log. " * 30
    ids = [ask.tokenizer.endoftext, *ask.tokenizer.encode(text)]
    expected, done = naive(ask.model, ids[:65], 64)[0], 64
    while done < len(ids) - 1:
        new = min(64 - 48 + 1, len(ids) - 1 - done)
        done += new
        expected += naive(ask.model, ids[done - 64 : done + 1], new)[0]
    assert ask.rolling([text], context=48) == pytest.approx([expected], abs=1e-3)


def naive_generation(ask: TransformerLM, context: str, stops: tuple[str, ...], limit: int) -> str:
    ids = [ask.tokenizer.endoftext, *ask.tokenizer.encode(context)][-(ask.model.config.context_length - limit) :]
    new: list[int] = []
    while len(new) < limit:
        with torch.no_grad():
            chosen = int(ask.model(torch.tensor([ids + new]))[0, -1].argmax())
        if chosen in (ask.tokenizer.endoftext, ask.tokenizer.im_end):
            break
        new.append(chosen)
        text = ask.tokenizer.decode(new)
        if any(stop in text for stop in stops):
            return min((text.split(stop)[0] for stop in stops), key=len)
    return ask.tokenizer.decode(new)


def test_generation_is_the_naive_one_with_stops_across_tokens(ask: TransformerLM) -> None:
    with torch.no_grad():  # a model that writes letters
        for i in range(ask.tokenizer.vocab_size):
            if not (ask.tokenizer.token(i).isascii() and ask.tokenizer.token(i).strip().isalpha()):
                ask.model.output_weight[i] = 0
    contexts = ["The cat", "What is", "", "def add(a, b):", "the dog sat on the log. " * 9]
    free = ask.generate_until([(c, ()) for c in contexts], max_new_tokens=24)
    assert free == [naive_generation(ask, c, (), 24) for c in contexts]
    requests: list[tuple[str, tuple[str, ...]]] = []
    long = [(c, t) for c, t in zip(contexts, free) if len(t) > 12]
    assert len(long) >= 3
    for context, text in long:
        requests.append((context, (text[9:12], "nothing of the kind")))
        requests.append((context, (text[-4:], text[6:8])))
    found = ask.generate_until(requests, max_new_tokens=24)
    assert found == [naive_generation(ask, c, stops, 24) for c, stops in requests]
    assert all(f != t for f, (_, t) in zip(found[::2], long))  # each was cut


def test_samples_depend_on_request_and_seed_only(ask: TransformerLM) -> None:
    requests: list[tuple[str, tuple[str, ...]]] = [("The cat", ()), ("What", ("the",)), ("def", ()), ("The cat", ())]
    first = ask.generate_until(requests, 12, temperature=1.0, seed=5)
    assert ask.generate_until(requests[::-1], 12, temperature=1.0, seed=5)[1:3] == first[2:0:-1]
    assert ask.generate_until(requests[:1], 12, temperature=1.0, seed=5) == first[:1]
    assert first[0] != first[3]  # asked twice, sampled twice
    assert ask.generate_until(requests, 12, temperature=1.0, seed=6) != first


def test_what_is_nearly_certain_is_not_lost_in_the_rounding_of_large_logits() -> None:
    logits = torch.tensor([[100.0, 88.0, 80.0]])  # float32 has steps of 8e-6 there
    model: Any = SimpleNamespace(logits=torch.clone, config=SimpleNamespace(vocab_size=3))
    found, best = language_model.target_logprobs(model, logits, torch.tensor([0, 0]), torch.tensor([0, 1]))
    rest = math.log1p(math.exp(-12) + math.exp(-20))
    assert found.tolist() == pytest.approx([-rest, -12 - rest], abs=1e-7)
    assert best.tolist() == [True, False]


def test_a_killed_evaluation_goes_on(
    make_model: Callable[..., Transformer], tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language_model, "SCORING_PASS_TOKENS", 20)  # several passes

    class Killed(Exception):
        pass

    def kill(done: int, total: int) -> None:
        raise Killed

    model, cache = make_model(), tmp_path / "cache.jsonl"
    requests = [("The cat sat " * n, " on the mat") for n in range(1, 12)]
    expected = TransformerLM(model, tokenizer).loglikelihood(requests)
    with pytest.raises(Killed):
        TransformerLM(model, tokenizer, cache=cache, progress=kill).loglikelihood(requests)
    lines = cache.read_bytes().splitlines(keepends=True)
    assert 0 < len(lines) < len(requests)
    cache.write_bytes(b"".join(lines)[:-9])  # cut off in the middle of a line
    asked: list[tuple[int, int]] = []
    again = TransformerLM(model, tokenizer, cache=cache, progress=lambda *done: asked.append(done))
    found = again.loglikelihood(requests)
    assert [f.logprob for f in found] == pytest.approx([e.logprob for e in expected], abs=1e-5)
    assert asked[-1] == (11, 11)

    def refuse(*_: Any) -> Iterator[Any]:
        raise AssertionError("asked again")
        yield

    known = TransformerLM(model, tokenizer, cache=cache)
    known._score_windows = refuse  # type: ignore[method-assign]
    assert known.loglikelihood(requests) == found
    texts = known.generate_until([("The", ("a",)), ("The", ("a",))], 8, temperature=1.0)
    known._generate_pass = refuse  # type: ignore[method-assign,assignment]
    assert known.generate_until([("The", ("a",)), ("The", ("a",))], 8, temperature=1.0) == texts
    other = TransformerLM(make_model(1), tokenizer, cache=cache)  # another model's answers are not taken for its own
    assert other.loglikelihood(requests[:1])[0].logprob != pytest.approx(found[0].logprob, abs=1e-3)


def test_files_of_earlier_versions_are_read(tmp_path: Path) -> None:
    key = "9bfcb2aeeb2410f4c733e9550ed34e17727097c6e90eddf2e7469e13b6a3cdaa"
    (tmp_path / "old.jsonl").write_text(f'{{"key": "{key}", "result": [-1.5, true]}}\n')
    cache = RequestCache(tmp_path / "old.jsonl", "a model")
    assert cache.key("score", [5, 6, 7], 2) == key
    assert cache.get(key) == [-1.5, True]


def test_what_cannot_be_asked_is_refused(ask: TransformerLM, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="request 1: the continuation '' after 'a'"):
        ask.loglikelihood([("a", "b"), ("a", "")])
    with pytest.raises(ContextError, match=r"request 0: the continuation has .* tokens, but the model's context is 64"):
        ask.loglikelihood([("a", "the dog sat " * 40)])
    with pytest.raises(ConfigError, match="--max-new-tokens is 64"):
        ask.generate_until([("a", ())], max_new_tokens=64)
    with pytest.raises(ConfigError, match="a stop string is empty"):
        ask.generate_until([("a", ("",))], max_new_tokens=8)
    with pytest.raises(ConfigError, match="context is 65; wanted 1 to 64"):
        ask.rolling(["a"], context=65)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--cache .*cannot be read or written"):
        TransformerLM(ask.model, ask.tokenizer, cache=tmp_path / "file" / "cache")
    assert ask.loglikelihood([]) == ask.rolling([]) == ask.generate_until([], 8) == []


def test_a_layout_computes_each_beginning_once(make_model: Callable[..., Transformer]) -> None:
    rng = random.Random(0)
    sequences = [[rng.randrange(3) for _ in range(rng.randint(1, 9))] for _ in range(40)]
    layout = lay_out(sequences)
    beginnings = {tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}
    assert layout.tokens.shape[1] == len(beginnings)
    model = make_model()
    with torch.no_grad():
        hidden = layout.hidden(model)
        for row, ids in enumerate(sequences):
            expected = model.hidden(torch.tensor([ids]))[0]
            torch.testing.assert_close(hidden[layout.index[row, : len(ids)]], expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="at least one"):
        lay_out([[1], []])


def test_requests_say_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line every ten seconds, none of a part that is sooner done, and nothing where standard error is closed."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    stream = io.StringIO()
    told = Requests(stream)
    for done in (10, 20, 30, 100):
        told(done, 100)
        now += 6.0
    told(5, 50)  # other requests
    now += 11.0
    told(15, 50)
    assert stream.getvalue() == "requests 30/100  0:42 left\nrequests 15/50  0:38 left\n"
    monkeypatch.setattr(sys, "stderr", None)
    Requests()(1, 2)
