"""The interface `LanguageModel` for evaluation, and its implementation for a model in this process, `TransformerLM`.

A text begins with one `<|endoftext|>`, as in pretraining. A result does not depend on the other requests of a call:
batching by length and sharing prefixes only change the time.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from tercet.data.types import Conversation
from tercet.errors import ConfigError, ContextError, DataError, NonFiniteError
from tercet.inference.chat import answer_params, fit_prompts
from tercet.inference.generate import SamplingParams, generate
from tercet.inference.prefix_sharing import lay_out, shared_length
from tercet.inference.request_cache import RequestCache, fingerprint
from tercet.model.transformer import Transformer
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text
from tercet.training.load import load_language_model
from tercet.training.packing import to_device
from tercet.training.stage import language_model_run

SCORING_PASS_TOKENS = 4096  # tokens per forward pass; a prefix that several sequences share counts once
READ = 8  # attention may read this many times as many tokens, counting a shared prefix once per sequence
ROWS = 64  # texts to generate at once

RequestProgress = Callable[[int, int], None]  # (requests done, requests in total)
UntilRequests = Sequence[tuple[str, tuple[str, ...]]]  # (context, stop strings) of each
T = TypeVar("T")
Results = Iterator[dict[int, T]]  # results by the index of their request, a part at a time


@dataclass(frozen=True)
class Loglikelihood:
    """The log-probability of a continuation."""

    logprob: float  # nats, summed over the continuation's tokens
    greedy: bool  # whether greedy decoding gives this continuation
    tokens: int  # number of tokens of the continuation
    bytes: int  # number of UTF-8 bytes of the continuation as it was given


@dataclass(frozen=True)
class ChatAnswer:
    """An answer to a conversation."""

    text: str
    finished: bool  # whether the model ended it itself
    prompt: tuple[int, ...] = ()  # ids of the prompt; empty if the model gives no ids
    ids: tuple[int, ...] = ()  # ids of the answer as sampled, with its end token; empty if the model gives no ids


class LanguageModel(Protocol):
    """A language model as evaluation, judges and adapters use it: texts in, log-probabilities and texts out.

    A method that a model does not support raises ConfigError. Only `TransformerLM` has methods on token ids: code that
    needs ids gets one from `local`.
    """

    @property
    def name(self) -> str:
        """The name of the model in errors: its run, or its name and address."""

    @property
    def parameters(self) -> int | None:
        """The number of parameters, or None if it is unknown."""

    @property
    def context_length(self) -> int | None:
        """The context length in tokens, or None if it is unknown."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens that each text takes in the context, with `<|endoftext|>` or the like before it."""

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        """Return log p(continuation | context) of every (context, continuation)."""

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> list[float]:
        """Return log p of every whole text of any length, in nats, by the windows of `rolling_windows`."""

    def generate_until(
        self, requests: UntilRequests, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Continue every (context, stop strings) up to the first stop string, which is cut off."""

    def chat(
        self,
        prompts: Sequence[tuple[str, Conversation]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[ChatAnswer]:
        """Answer every (where, conversation); `where` names the conversation in errors."""


@dataclass(frozen=True)
class Scored:
    """The log-probability of a continuation of ids."""

    logprob: float  # nats, summed over the ids
    greedy: bool  # whether greedy decoding gives this continuation


def split_tokens(tokenizer: Tokenizer, requests: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """Return (ids of the context without `<|endoftext|>`, ids of the continuation) of every request.

    White space at the end of the context is moved to the continuation, because a tokenizer joins it with the next word
    (as in lm-eval). Both are encoded as one text. The continuation begins at the first token that differs from the
    tokens of the context alone, so a token that spans the border belongs to the continuation. Raises DataError if a
    continuation has no token.
    """
    moved = [(c.rstrip(), c[len(c.rstrip()) :] + continuation) for c, continuation in requests]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    out = []
    for number, (context, whole) in enumerate(zip(contexts, wholes)):
        border = next((i for i, (a, b) in enumerate(zip(context, whole)) if a != b), min(len(context), len(whole)))
        if border == len(whole):
            raise DataError(
                f"request {number}: the continuation {requests[number][1]!r} after {requests[number][0][-40:]!r} has "
                "no token of its own; give each continuation at least one character"
            )
        out.append((whole[:border], whole[border:]))
    return out


def rolling_windows(
    ids: Sequence[int], begin: int, size: int, context: int = 1, reach_back: bool = True
) -> Iterator[tuple[list[int], int]]:
    """Yield the windows of a text as (ids, number of ids at the end to predict). Each id is predicted once.

    The first window predicts up to `size` ids after `begin`. A later window has `context` ids before the first id that
    it predicts. With `reach_back`, the last window has as many as fit, as in lm-eval.
    """
    whole = [begin, *ids]
    done = min(size, len(ids))
    if done:
        yield whole[: done + 1], done
    while done < len(ids):
        new = min(len(ids) - done, size - context + 1)
        first = done + 1 - context
        done += new
        yield whole[done - size if reach_back else first : done + 1], new


class TransformerLM:
    """A transformer with its tokenizer as a `LanguageModel`; its further methods take and return ids.

    `cache` names a file for finished requests, from which a killed evaluation continues. `progress(done, total)` is
    called after every forward pass. `name` is the model's name in errors.
    """

    # not one per line: the options are few and short
    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, cache: str | Path | None = None,
                 progress: RequestProgress | None = None, name: str = "the model") -> None:  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.cache = RequestCache(cache, fingerprint(model, tokenizer) if cache is not None else "")
        self.progress, self.name = progress, name

    @classmethod
    def of_run(
        cls, run: str | Path, *, cache: str | Path | None = None, progress: RequestProgress | None = None
    ) -> TransformerLM:
        """Load the language model of a run. Raises ConfigError if the run has none."""
        opened = language_model_run(str(run))
        model, tokenizer = load_language_model(opened), Tokenizer.load(opened.path)
        return cls(model, tokenizer, cache=cache, progress=progress, name=str(opened.path))

    @property
    def parameters(self) -> int:
        """The number of parameters, with the embeddings."""
        return self.model.config.parameters()

    @property
    def context_length(self) -> int:
        """The context length in tokens."""
        return self.model.config.context_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Return the tokens that each text takes in the context, with the `<|endoftext|>` before it."""
        return [1 + len(ids) for ids in self.tokenizer.encode_batch(list(texts))]

    # -- log-probabilities ----------------------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        """Return log p(continuation | context) of every (context, continuation).

        A context that does not fit is cut from the left. Raises DataError for a continuation without tokens,
        ContextError for one that is longer than the model's context.
        """
        pairs = split_tokens(self.tokenizer, requests)
        begin = self.tokenizer.endoftext
        scored = self.score([([begin, *context], continuation) for context, continuation in pairs])
        return [
            Loglikelihood(s.logprob, s.greedy, len(ids), len(text.encode()))
            for s, (_, ids), (_, text) in zip(scored, pairs, requests)
        ]

    def score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """Return log p(continuation | context) of ids, to which nothing is added. Contexts are cut from the left.

        Raises ContextError if a continuation alone is longer than the model's context, DataError if one is empty.
        """
        size = self.context_length
        for number, (context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise DataError(
                    f"request {number}: the context or continuation is empty; give at least one token for each"
                )
            if len(continuation) > size:
                raise ContextError(
                    f"request {number}: the continuation has {len(continuation)} tokens, but the model's context is "
                    f"{size}; use rolling() for long texts"
                )
        work = [([*context, *continuation][-(size + 1) :], len(continuation)) for context, continuation in requests]
        scores = self._cached("score", work, [[*w] for w in work], self._score_windows)
        return [Scored(float(logprob), bool(greedy)) for logprob, greedy in scores]

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> list[float]:
        """Return log p of every whole text of any length, in nats, by the windows of `rolling_windows`.

        The end of the text is not predicted. An empty text gives 0. Raises ConfigError if `context` does not fit.
        """
        size = self.context_length
        if not 1 <= context <= size:
            raise ConfigError(f"rolling(): context is {context}; wanted 1 to {size}, the model's context length")
        windows, owners = list[tuple[list[int], int]](), list[int]()
        for number, ids in enumerate(self.tokenizer.encode_batch(list(texts))):
            own = list(rolling_windows(ids, self.tokenizer.endoftext, size, context, reach_back))
            windows += own
            owners += [number] * len(own)
        scores = self._cached("score", windows, [[*w] for w in windows], self._score_windows)
        sums = [0.0] * len(texts)
        for owner, (logprob, _) in zip(owners, scores):
            sums[owner] += float(logprob)
        return sums

    @torch.no_grad()
    def _score_windows(self, work: Sequence[tuple[list[int], int]]) -> Results[tuple[float, bool]]:
        """Score every (ids, number of ids at the end to predict): log-probability, and whether they are greedy.

        Yields the results of each forward pass, by index.
        """
        part, new, read, previous = list[int](), 0, 0, np.zeros(0, dtype=np.int64)
        for i in sorted(range(len(work)), key=lambda i: work[i][0]):  # sorted, so that shared prefixes are neighbours
            ids = np.array(work[i][0][:-1])
            own = len(ids) - shared_length(previous, ids)
            if part and (new + own > SCORING_PASS_TOKENS or read + len(ids) > READ * SCORING_PASS_TOKENS):
                yield dict(zip(part, self._score_pass([work[i] for i in part])))
                part, new, read, own = [], 0, 0, len(ids)
            part.append(i)
            new, read, previous = new + own, read + len(ids), ids
        yield dict(zip(part, self._score_pass([work[i] for i in part])))

    def _score_pass(self, work: Sequence[tuple[list[int], int]]) -> list[tuple[float, bool]]:
        row_of: dict[tuple[int, ...], int] = {}  # requests that differ only in the last id have the same inputs
        rows = [row_of.setdefault(tuple(ids[:-1]), len(row_of)) for ids, _ in work]
        layout = lay_out(list(row_of))
        counts = np.array([count for _, count in work])
        index = np.concatenate([layout.index[r, len(ids) - 1 - n : len(ids) - 1] for r, (ids, n) in zip(rows, work)])
        targets = torch.tensor([i for ids, n in work for i in ids[len(ids) - n :]])
        needed, where = np.unique(index, return_inverse=True)
        hidden = layout.hidden(self.model, torch.from_numpy(needed))
        logprob, best = target_logprobs(self.model, hidden, torch.from_numpy(where), targets)
        if not torch.isfinite(logprob).all():
            raise NonFiniteError("log-probabilities are not finite: the model's weights have diverged")
        ends = np.cumsum(counts)
        sums = np.add.reduceat(logprob.cpu().numpy(), ends - counts)
        greedy = np.logical_and.reduceat(best.cpu().numpy(), ends - counts)
        return list(zip(sums.tolist(), greedy.tolist()))

    # -- continuations ------------------------------------------------------------------------------------------

    def generate_until(
        self, requests: UntilRequests, max_new_tokens: int = 64, temperature: float = 0.0, seed: int = 0
    ) -> list[str]:
        """Continue every (context, stop strings) up to the first stop string, which is cut off.

        A stop string may span tokens. The end of a text or of a turn also stops. A context that leaves no room for
        `max_new_tokens` is cut from the left. A sample depends only on the request and `seed`; a request that occurs
        again in the same call gets another sample. Raises ConfigError for an empty stop string or impossible settings.
        """
        if any(not stop for _, stops in requests for stop in stops):
            raise ConfigError("a stop string is empty; leave it out, or give the text that ends an answer")
        room = self.context_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"--max-new-tokens is {max_new_tokens}, which leaves no room for a prompt in the model's context of "
                f"{self.context_length} tokens; wanted at most {self.context_length - 1}"
            )
        params = answer_params(self.tokenizer, max_new_tokens, temperature)
        begin, repeats = self.tokenizer.endoftext, Counter[str]()
        seeds = []
        for context, stops in requests:
            request = json.dumps([context, stops])
            digest = hashlib.sha256(f"{seed} {repeats[request]} {request}".encode()).digest()
            seeds.append(int.from_bytes(digest[:8], "big"))
            repeats[request] += 1
        prompts = [[begin, *ids][-room:] for ids in self.tokenizer.encode_batch([context for context, _ in requests])]
        stops_of = [stops for _, stops in requests]
        texts = [self.tokenizer.decode(ids) for ids in self.generate(prompts, params, seeds, stops_of)]
        return [text if (cut := _cut(text, stops)) is None else cut for text, stops in zip(texts, stops_of)]

    def chat(
        self,
        prompts: Sequence[tuple[str, Conversation]],
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
    ) -> list[ChatAnswer]:
        """Answer every (where, conversation), with ids; old turns that do not fit are left out.

        A sample depends on the conversation's number and `seed`. Raises ContextError, beginning with `where`, for a
        conversation whose last message alone is too long.
        """
        params = answer_params(self.tokenizer, max_new_tokens, temperature)
        ids = fit_prompts(self.tokenizer, prompts, self.context_length, max_new_tokens)
        done = self.generate(ids, params, [seed * 1_000_003 + i for i in range(len(ids))])
        return [ChatAnswer(*answer_text(self.tokenizer, out), tuple(p), tuple(out)) for p, out in zip(ids, done)]

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        seeds: Sequence[int],
        stops: Sequence[tuple[str, ...]] = (),
    ) -> list[list[int]]:
        """Return the ids of a continuation of every prompt, with its stop token; nothing is added to a prompt.

        `seeds` contains one seed per prompt, and `stops`, if given, the strings that end its continuation. Raises
        ContextError if a prompt leaves no room in the context.
        """
        work = [
            (list(ids), end, seed if params.temperature else 0)
            for ids, end, seed in zip(prompts, stops or [()] * len(prompts), seeds, strict=True)
        ]

        def run(part: Sequence[tuple[list[int], tuple[str, ...], int]]) -> Results[list[int]]:
            order = sorted(range(len(part)), key=lambda i: (len(part[i][0]), part[i][0]))
            for a in range(0, len(order), ROWS):
                batch = order[a : a + ROWS]
                yield dict(zip(batch, self._generate_pass([part[i] for i in batch], params)))

        return self._cached("generate", work, [[*w, asdict(params)] for w in work], run)

    def _generate_pass(
        self, work: Sequence[tuple[list[int], tuple[str, ...], int]], params: SamplingParams
    ) -> list[list[int]]:
        # a token is at least one byte of text, so a stop string of n bytes lies within the last n tokens
        reach = [max((len(s.encode()) for s in stops), default=0) for _, stops, _ in work]

        def stopped(row: int, ids: Sequence[int]) -> bool:
            return reach[row] > 0 and _cut(self.tokenizer.decode(ids[-reach[row] :]), work[row][1]) is not None

        prompts, seeds = [ids for ids, _, _ in work], [seed for _, _, seed in work]
        done = generate(self.model, prompts, params, seeds, batch_size=len(work), until=stopped)
        return [c.tokens for c in done]

    # -- the request cache --------------------------------------------------------------------------------------

    def _cached(
        self, kind: str, work: Sequence[Any], names: Sequence[list[Any]], run: Callable[[Sequence[Any]], Results[T]]
    ) -> list[T]:
        """Return the results of `run` for `work`, in the same order; cached requests are not computed again."""
        keys = [self.cache.key(kind, *name) for name in names] if self.cache.path is not None else [""] * len(work)
        results: dict[int, Any] = {i: r for i, k in enumerate(keys) if k and (r := self.cache.get(k)) is not None}
        missing = [i for i in range(len(work)) if i not in results]
        for part in run([work[i] for i in missing]) if missing else ():
            self.cache.put({keys[missing[i]]: result for i, result in part.items()})
            results |= {missing[i]: result for i, result in part.items()}
            if self.progress is not None:
                self.progress(len(results), len(work))
        return [results[i] for i in range(len(work))]


def open_model(
    run: str | Path, *, cache: str | Path | None = None, progress: RequestProgress | None = None
) -> LanguageModel:
    """Open the language model of a run. Raises ConfigError if the run has none."""
    return TransformerLM.of_run(run, cache=cache, progress=progress)


def local(lm: LanguageModel, use: str) -> TransformerLM:
    """Return `lm` itself if it gives token ids, which `use` needs. Raises ConfigError, beginning with `use`, if not."""
    if not isinstance(lm, TransformerLM):
        raise ConfigError(f"{use} needs token ids, which {lm.name} does not give; name a run with a language model")
    return lm


def target_logprobs(model: Transformer, hidden_MD: Tensor, where_A: Tensor, targets_A: Tensor) -> tuple[Tensor, Tensor]:
    """Return log p of each target at hidden state `where`, and whether it is the likeliest: float64 [A] and bool [A].

    The output layer is computed once for every hidden state, in chunks.
    """
    where_A, targets_A = to_device((where_A, targets_A), hidden_MD.device)
    logprob = torch.empty(len(targets_A), dtype=torch.float64, device=hidden_MD.device)
    best = torch.empty(len(targets_A), dtype=torch.bool, device=hidden_MD.device)
    step = max(64, (1 << 22) // model.config.vocab_size)  # at most about 4 million logits in memory
    for a in range(0, len(hidden_MD), step):
        logits = model.logits(hidden_MD[a : a + step])
        chunk = ((where_A >= a) & (where_A < a + step)).nonzero()[:, 0]
        rows, targets = where_A[chunk] - a, targets_A[chunk]
        top, likeliest = logits.max(-1)
        best[chunk] = likeliest[rows] == targets
        # relative to the largest logit, so that probabilities near 1 are not lost in the rounding of large logits
        below = logits.sub_(top[:, None])
        logprob[chunk] = below[rows, targets].double() - below.exp().sum(-1).log().double()[rows]
    return logprob, best


def _cut(text: str, stops: Sequence[str]) -> str | None:
    """Return the text before the first stop string, or None if there is none."""
    ends = [start for stop in stops if (start := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else None
