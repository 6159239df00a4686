"""Language models as evaluation sees them: the protocol `LanguageModel`, and `TransformerLM`, which is one in this process.

A text begins with one `<|endoftext|>`, as in pretraining. A result does not depend on the other requests of a call:
batches are made by length and share prefixes, which changes the time only.
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
from tercet.training.load import language_model_run, load_language_model

SCORING_PASS_TOKENS = 4096  # tokens of a forward pass; a prefix that several sequences share counts once
READ = 8  # attention may read this many times as many tokens; there a shared prefix counts for each sequence
ROWS = 64  # texts that are generated at once

RequestProgress = Callable[[int, int], None]  # (requests done, of how many)
T = TypeVar("T")


@dataclass(frozen=True)
class Loglikelihood:
    """How probable a continuation is."""

    logprob: float  # nats, summed over the continuation's tokens
    greedy: bool  # whether always taking the likeliest token gives it
    tokens: int  # of the continuation
    bytes: int  # of the continuation as it was given, in UTF-8


@dataclass(frozen=True)
class ChatAnswer:
    """An answer to a conversation."""

    text: str
    finished: bool  # the model ended it itself
    prompt: tuple[int, ...] = ()  # ids of the prompt; empty where the model gives no ids
    ids: tuple[int, ...] = ()  # ids of the answer as sampled, with its end token; empty where the model gives no ids


class LanguageModel(Protocol):
    """A language model as evaluation, judges and adapters use it: texts in, log-probabilities and texts out.

    A method that a model cannot offer raises ConfigError and says so. Methods on token ids are `TransformerLM`'s own:
    code that needs ids gets one from `local`.
    """

    @property
    def name(self) -> str:
        """What errors call the model: its run, or its name and address."""

    @property
    def parameters(self) -> int | None:
        """The number of parameters, or None where it is not known."""

    @property
    def context_length(self) -> int | None:
        """The tokens that fit the context, or None where that is not known."""

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens that each text takes in the context, with `<|endoftext|>` or the like before it."""

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        """log p(continuation | context) of every (context, continuation)."""

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> list[float]:
        """log p of every whole text of any length, in nats, by the windows of `rolling_windows`."""

    def generate_until(self, requests: Sequence[tuple[str, tuple[str, ...]]], max_new_tokens: int = 64,
                       temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """A continuation of every (context, stop strings), up to the first stop string, which is cut off."""

    def chat(self, prompts: Sequence[tuple[str, Conversation]], max_new_tokens: int = 64,
             temperature: float = 0.0, seed: int = 0) -> list[ChatAnswer]:  # fmt: skip
        """An answer to every (where, conversation); `where` names the conversation in errors."""


@dataclass(frozen=True)
class Scored:
    """A continuation of ids: nats, whether it is the greedy one."""

    logprob: float
    greedy: bool


def split_tokens(tokenizer: Tokenizer, requests: Sequence[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(ids of the context without `<|endoftext|>`, ids of the continuation) of every request.

    White space at the context's end is moved to the continuation, since a tokenizer joins it with the word that
    follows (as in lm-eval). Both are encoded as one text; the continuation begins at the first token that the context by
    itself does not have, so that a token which spans the border counts as the continuation's. Raises DataError where
    a continuation has no token.
    """
    moved = [(c.rstrip(), c[len(c.rstrip()) :] + continuation) for c, continuation in requests]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + continuation for context, continuation in moved])
    out = []
    for number, (context, whole) in enumerate(zip(contexts, wholes)):
        border = next((i for i, (a, b) in enumerate(zip(context, whole)) if a != b), min(len(context), len(whole)))
        if border == len(whole):
            raise DataError(
                f"request {number}: the continuation {requests[number][1]!r} after {requests[number][0][-40:]!r} has no "
                "token of its own; give each continuation at least one character"
            )
        out.append((whole[:border], whole[border:]))
    return out


def rolling_windows(
    ids: Sequence[int], begin: int, size: int, context: int = 1, reach_back: bool = True
) -> Iterator[tuple[list[int], int]]:
    """Windows of a text: (inputs and targets together, how many of the last are predicted). Each id is predicted once.

    The first window predicts `size` ids after `begin`. Those that follow have `context` ids before the first that they
    predict; the last one has as many as fit where it may `reach_back`, as in lm-eval.
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
    """A transformer with its tokenizer as a `LanguageModel`. What it has besides takes and gives ids.

    `cache` names a file in which finished requests are kept: a killed evaluation continues from it. `progress(done,
    total)` is called after every forward pass. `name` is what errors call the model.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, cache: str | Path | None = None,
                 progress: RequestProgress | None = None, name: str = "the model") -> None:  # fmt: skip
        self.model, self.tokenizer = model, tokenizer
        self.cache = RequestCache(cache, fingerprint(model, tokenizer) if cache is not None else "")
        self.progress, self.name = progress, name

    @classmethod
    def of_run(
        cls, run: str | Path, *, cache: str | Path | None = None, progress: RequestProgress | None = None
    ) -> TransformerLM:
        """The language model of a run. Raises ConfigError where the run has none."""
        opened = language_model_run(str(run))
        model, tokenizer = load_language_model(opened), Tokenizer.load(opened.path)
        return cls(model, tokenizer, cache=cache, progress=progress, name=str(opened.path))

    @property
    def parameters(self) -> int:
        """The number of parameters, the embeddings included."""
        return self.model.config.parameters()

    @property
    def context_length(self) -> int:
        """The tokens that fit the context."""
        return self.model.config.context_length

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The tokens that each text takes in the context, with the `<|endoftext|>` before it."""
        return [1 + len(ids) for ids in self.tokenizer.encode_batch(list(texts))]

    # -- how probable a continuation is -------------------------------------------------------------------------

    def loglikelihood(self, requests: Sequence[tuple[str, str]]) -> list[Loglikelihood]:
        """log p(continuation | context) of every (context, continuation).

        A context that does not fit is cut from the left. Raises DataError for a continuation without tokens, ContextError
        for one that is longer than the model's context.
        """
        pairs = split_tokens(self.tokenizer, requests)
        begin = self.tokenizer.endoftext
        scored = self.score([([begin, *context], continuation) for context, continuation in pairs])
        return [
            Loglikelihood(s.logprob, s.greedy, len(ids), len(text.encode()))
            for s, (_, ids), (_, text) in zip(scored, pairs, requests)
        ]

    def score(self, requests: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Scored]:
        """log p(continuation | context) of ids; nothing is added to them. Contexts are cut from the left.

        Raises ContextError where a continuation alone is longer than the model's context, DataError where one is empty.
        """
        size = self.context_length
        for number, (context, continuation) in enumerate(requests):
            if not context or not continuation:
                raise DataError(f"request {number}: an empty context or continuation; each needs at least one token")
            if len(continuation) > size:
                raise ContextError(
                    f"request {number}: the continuation has {len(continuation)} tokens, but the model's context is {size}; "
                    "measure long texts with rolling()"
                )
        work = [([*context, *continuation][-(size + 1) :], len(continuation)) for context, continuation in requests]
        found = self._cached("score", work, [[*w] for w in work], self._score_windows)
        return [Scored(float(logprob), bool(greedy)) for logprob, greedy in found]

    def rolling(self, texts: Sequence[str], context: int = 1, reach_back: bool = True) -> list[float]:
        """log p of every whole text of any length, in nats, by the windows of `rolling_windows`.

        The end of the text is not predicted. An empty text has 0. Raises ConfigError for a `context` that does not fit.
        """
        size = self.context_length
        if not 1 <= context <= size:
            raise ConfigError(f"rolling context is {context}; wanted 1 to the model's context of {size}")
        windows, owners = list[tuple[list[int], int]](), list[int]()
        for number, ids in enumerate(self.tokenizer.encode_batch(list(texts))):
            mine = list(rolling_windows(ids, self.tokenizer.endoftext, size, context, reach_back))
            windows += mine
            owners += [number] * len(mine)
        found = self._cached("score", windows, [[*w] for w in windows], self._score_windows)
        sums = [0.0] * len(texts)
        for owner, (logprob, _) in zip(owners, found):
            sums[owner] += float(logprob)
        return sums

    @torch.no_grad()
    def _score_windows(self, work: Sequence[tuple[list[int], int]]) -> Iterator[dict[int, tuple[float, bool]]]:
        """Of every (ids, how many of the last are predicted): their log-probability, and whether they are greedy.

        Yields the results of each pass, by index.
        """
        part, new, read, previous = list[int](), 0, 0, np.zeros(0, dtype=np.int64)
        for i in sorted(range(len(work)), key=lambda i: work[i][0]):  # those with a common prefix side by side
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
        places = np.concatenate([layout.index[r, len(ids) - 1 - n : len(ids) - 1] for r, (ids, n) in zip(rows, work)])
        targets = torch.tensor([i for ids, n in work for i in ids[len(ids) - n :]])
        needed, where = np.unique(places, return_inverse=True)
        hidden = layout.hidden(self.model, torch.from_numpy(needed))
        logprob, best = target_logprobs(self.model, hidden, torch.from_numpy(where), targets)
        if not torch.isfinite(logprob).all():
            raise NonFiniteError("log-probabilities are not finite: the model's weights have diverged")
        ends = np.cumsum(counts)
        sums = np.add.reduceat(logprob.numpy(), ends - counts)
        greedy = np.logical_and.reduceat(best.numpy(), ends - counts)
        return list(zip(sums.tolist(), greedy.tolist()))

    # -- continuations ------------------------------------------------------------------------------------------

    def generate_until(self, requests: Sequence[tuple[str, tuple[str, ...]]], max_new_tokens: int = 64,
                       temperature: float = 0.0, seed: int = 0) -> list[str]:  # fmt: skip
        """A continuation of every (context, stop strings), up to the first stop string, which is cut off.

        A stop string may lie across tokens. The end of a text or of a turn stops too. A context that leaves no room for
        `max_new_tokens` is cut from the left. A sample depends on the request and `seed` only; a request that a call
        repeats is sampled anew. Raises ConfigError for an empty stop string or impossible settings.
        """
        if any(not stop for _, stops in requests for stop in stops):
            raise ConfigError("a stop string is empty; leave it out, or name the text that ends an answer")
        room = self.context_length - max_new_tokens
        if room < 1:
            raise ConfigError(
                f"max_new_tokens is {max_new_tokens}; the model's context of {self.context_length} leaves no room "
                "for a prompt"
            )
        params = answer_params(self.tokenizer, max_new_tokens, temperature)
        begin, repeats = self.tokenizer.endoftext, Counter[str]()
        seeds = []
        for context, stops in requests:
            said = json.dumps([context, stops])
            own = hashlib.sha256(f"{seed} {repeats[said]} {said}".encode()).digest()
            seeds.append(int.from_bytes(own[:8], "big"))
            repeats[said] += 1
        prompts = [[begin, *ids][-room:] for ids in self.tokenizer.encode_batch([context for context, _ in requests])]
        stops_of = [stops for _, stops in requests]
        texts = [self.tokenizer.decode(ids) for ids in self.generate(prompts, params, seeds, stops_of)]
        return [text if (cut := _cut(text, stops)) is None else cut for text, stops in zip(texts, stops_of)]

    def chat(self, prompts: Sequence[tuple[str, Conversation]], max_new_tokens: int = 64,
             temperature: float = 0.0, seed: int = 0) -> list[ChatAnswer]:  # fmt: skip
        """An answer to every (where, conversation), with its ids; old turns that do not fit are left out.

        A sample depends on the conversation's number and `seed`. Raises ContextError, naming where, for a conversation
        whose last message alone is too long.
        """
        params = answer_params(self.tokenizer, max_new_tokens, temperature)
        ids = fit_prompts(self.tokenizer, prompts, self.context_length, max_new_tokens)
        done = self.generate(ids, params, [seed * 1_000_003 + i for i in range(len(ids))])
        return [ChatAnswer(*answer_text(self.tokenizer, out), tuple(p), tuple(out)) for p, out in zip(ids, done)]

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams, seeds: Sequence[int],
                 stops: Sequence[tuple[str, ...]] = ()) -> list[list[int]]:  # fmt: skip
        """Ids of a continuation of every prompt of ids, with the token that stopped it; nothing is added to a prompt.

        `seeds` holds one seed a prompt, and `stops`, where given, the texts that end its continuation. Raises ContextError
        where a prompt leaves no room in the context.
        """
        work = [
            (list(ids), end, seed if params.temperature else 0)
            for ids, end, seed in zip(prompts, stops or [()] * len(prompts), seeds, strict=True)
        ]

        def run(part: Sequence[tuple[list[int], tuple[str, ...], int]]) -> Iterator[dict[int, list[int]]]:
            order = sorted(range(len(part)), key=lambda i: (len(part[i][0]), part[i][0]))
            for a in range(0, len(order), ROWS):
                mine = order[a : a + ROWS]
                yield dict(zip(mine, self._generate_pass([part[i] for i in mine], params)))

        return self._cached("generate", work, [[*w, asdict(params)] for w in work], run)

    def _generate_pass(
        self, work: Sequence[tuple[list[int], tuple[str, ...], int]], params: SamplingParams
    ) -> list[list[int]]:
        # a token is at least one byte of text, so a stop string of n bytes lies within the last n tokens
        reach = [max((len(s.encode()) for s in stops), default=0) for _, stops, _ in work]

        def stopped(row: int, ids: Sequence[int]) -> bool:
            return reach[row] > 0 and _cut(self.tokenizer.decode(ids[-reach[row] :]), work[row][1]) is not None

        done = generate(self.model, [ids for ids, _, _ in work], params, [seed for _, _, seed in work],
                        batch_size=len(work), until=stopped)  # fmt: skip
        return [c.tokens for c in done]

    # -- the request cache --------------------------------------------------------------------------------------

    def _cached(self, kind: str, work: Sequence[Any], names: Sequence[list[Any]],
                    run: Callable[[Sequence[Any]], Iterator[dict[int, T]]]) -> list[T]:  # fmt: skip
        """The results of `run` for `work`, in its order; requests that the cache has are not computed again."""
        keys = [self.cache.key(kind, *name) for name in names] if self.cache.path is not None else [""] * len(work)
        found: dict[int, Any] = {i: r for i, k in enumerate(keys) if k and (r := self.cache.get(k)) is not None}
        left = [i for i in range(len(work)) if i not in found]
        for part in run([work[i] for i in left]) if left else ():
            self.cache.put({keys[left[i]]: result for i, result in part.items()})
            found |= {left[i]: result for i, result in part.items()}
            if self.progress is not None:
                self.progress(len(found), len(work))
        return [found[i] for i in range(len(work))]


def open_model(
    run: str | Path, *, cache: str | Path | None = None, progress: RequestProgress | None = None
) -> LanguageModel:
    """The language model that a user names: a run. Raises ConfigError where the run has none."""
    return TransformerLM.of_run(run, cache=cache, progress=progress)


def local(lm: LanguageModel, use: str) -> TransformerLM:
    """The same model, for a `use` that needs token ids. Raises ConfigError, naming the use, where it has none to give."""
    if not isinstance(lm, TransformerLM):
        raise ConfigError(f"{use} needs token ids, which {lm.name} does not give; name a run with a language model")
    return lm


def target_logprobs(model: Transformer, hidden_MD: Tensor, where_A: Tensor, targets_A: Tensor) -> tuple[Tensor, Tensor]:
    """log p of each target at hidden state `where`, and whether it is the likeliest: float64 [A] and bool [A].

    The output layer is computed once for every hidden state, a part of them at a time.
    """
    logprob = torch.empty(len(targets_A), dtype=torch.float64)
    best = torch.empty(len(targets_A), dtype=torch.bool)
    step = max(64, (1 << 22) // model.config.vocab_size)  # at most about 4 million logits in memory
    for a in range(0, len(hidden_MD), step):
        logits = model.logits(hidden_MD[a : a + step])
        mine = ((where_A >= a) & (where_A < a + step)).nonzero()[:, 0]
        rows, wanted = where_A[mine] - a, targets_A[mine]
        top, likeliest = logits.max(-1)
        best[mine] = likeliest[rows] == wanted
        # from the top, so that what is nearly certain is not lost in the rounding of large logits
        below = logits.sub_(top[:, None])
        logprob[mine] = below[rows, wanted].double() - below.exp().sum(-1).log().double()[rows]
    return logprob, best


def _cut(text: str, stops: Sequence[str]) -> str | None:
    """The text before the first stop string, or None where there is none."""
    ends = [at for stop in stops if (at := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else None
