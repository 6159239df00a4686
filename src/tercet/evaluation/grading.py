"""Language models that say something of an answer: which of some words is likelier, or what an endpoint replies.

`grader` is the scorer `judge:RUN`; judges of pairs (`tercet winrate`) ask in the same two ways.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence

from tercet.data.types import Task as Question
from tercet.errors import ConfigError, ContextError, DataError
from tercet.evaluation.primitives import Primitives, split_tokens
from tercet.evaluation.scorers import Answer, Batch
from tercet.generation.http import HttpScorer

PROMPT = """\
Is the answer to the question right? An accepted answer is given; the same in other words is right too.

Question: {question}
Accepted answer: {accepted}
Answer: {answer}

Say YES or NO.
Right:"""
GRADES = {"YES": 1.0, "NO": 0.0}
SECONDS, RETRIES = 60.0, 3  # what an endpoint has for one answer
_WORD = re.compile(r"[^\W_]+")
_ENDPOINT = re.compile(r"(?:(.*)@)?(https?://.+)")


def logprobs_of(
    lm: Primitives, name: str, prompts: Sequence[tuple[str, str]], words: tuple[str, str]
) -> list[tuple[float, float]]:
    """Return log p of each of two words after every prompt (where it is from, its text); errors call the model `name`.

    Raises ContextError where a prompt does not fit the model's context: cut, it would be judged without its question.
    """
    requests = [(text, word) for _, text in prompts for word in words]
    size = lm.model.config.context_length
    counts = [len(c) + len(word) for c, word in split_tokens(lm.tokenizer, requests)]  # the inputs of each
    if max(counts, default=0) > size:
        longest = prompts[counts.index(max(counts)) // 2][0]
        raise ContextError(
            f"{name}: {sum(max(two) > size for two in zip(counts[::2], counts[1::2]))} of {len(prompts)} prompts "
            f"do not fit, the longest ({longest}) needs {max(counts)} tokens; its context has {size}: ask for shorter answers "
            "with --max-new-tokens, or name a judge with a longer context"
        )
    found = lm.loglikelihood(requests)
    return [(a.logprob, b.logprob) for a, b in zip(found[::2], found[1::2])]


def endpoint(url: str, model: str, timeout: float, retries: int, wanted: str) -> Callable[[str], str]:
    """A function that sends one prompt to an OpenAI-compatible endpoint and returns the reply's text.

    Its key, where it needs one, is the variable OPENAI_API_KEY; `wanted` says what replies there are. Raises DataError.
    """
    key = os.environ.get("OPENAI_API_KEY", "")
    form = f'wanted {{"choices": [{{"message": {{"content": "{wanted}"}}}}]}}'
    address = url.rstrip("/") + "/chat/completions"
    http = HttpScorer("judge", address, timeout, retries, {"Authorization": f"Bearer {key}"} if key else {}, form)

    def ask(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": model, "temperature": 0, "max_tokens": 8, "messages": messages}
        reply = http.post(json.dumps(body, ensure_ascii=False).encode())
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
            if not isinstance(content, str):
                raise TypeError("the content is no text")
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise DataError(f"judge {address}: found {reply[:200]!r}; {form}") from error
        return content

    return ask


def verdict(said: str, verdicts: dict[str, float], marker: str) -> float | None:
    """What a reply says: the value of the word in `verdicts` that it consists of, None for any other reply.

    The word is the whole reply, or that of the lines which begin with `marker` ("BETTER: B") where all say the same; in
    any case and with any punctuation. Nothing is guessed: in "A better answer is B" the first letter is no verdict.
    """
    whole, *lines = (" ".join(_WORD.findall(text.upper())) for text in (said, *said.splitlines()))
    marked = {line.removeprefix(f"{marker} ") for line in lines if line.startswith(f"{marker} ")}
    return verdicts.get(marked.pop() if len(marked) == 1 else whole)


def prompt_of(question: Question, answer: str) -> str:
    """What a judge of single answers is asked."""
    asked = "\n".join(m.content for m in question.prompt)
    return PROMPT.format(question=asked, accepted=question.answers[0], answer=answer)


def grader(place: str) -> Batch:
    """Return a function that grades answers 1 (right), 0 (wrong) or 1/2 (both words equally likely).

    The language model of a run is asked, or one at an OpenAI-compatible address, written NAME@http(s)://…/v1.

    Raises ConfigError for a run or address that cannot be used, DataError for a reply that is neither YES nor NO.
    """
    address = _ENDPOINT.fullmatch(place)
    if address is None:
        lm = Primitives.of_run(place)

        def by_run(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
            prompts = [(q.where or q.id, prompt_of(q, text)) for q, (text, _) in zip(questions, answers)]
            pairs = logprobs_of(lm, f"judge:{place}", prompts, (" YES", " NO"))
            return [1.0 if yes > no else 0.0 if yes < no else 0.5 for yes, no in pairs]

        return by_run
    model, url = address[1], address[2]
    if not model:
        raise ConfigError("a judge at an address needs the name of its model: write judge:NAME@http(s)://…/v1")
    ask = endpoint(url, model, SECONDS, RETRIES, "YES or NO")

    def by_endpoint(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        out = []
        for question, (text, _) in zip(questions, answers):
            reply = ask(prompt_of(question, text))
            value = verdict(reply, GRADES, "RIGHT")
            if value is None:
                raise DataError(
                    f'judge {url}: it said {reply[:200]!r}; wanted YES or NO and no more, or a line "Right: YES"'
                )
            out.append(value)
        return out

    return by_endpoint
