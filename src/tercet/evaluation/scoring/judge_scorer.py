"""Language models that grade answers: by the likelier of two words, or by the reply of an endpoint.

`grader` is the scorer `judge:RUN`; judges of pairs (`tercet winrate`) use the same two ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tercet.data.types import Message, Question
from tercet.errors import ConfigError, ContextError, DataError
from tercet.evaluation.scoring.answers import Answer, BatchFunction
from tercet.inference.http import ChatEndpoint
from tercet.inference.language_model import LanguageModel, open_model

PROMPT = """\
Is the answer to the question right? An accepted answer is given; the same in other words is right too.

Question: {question}
Accepted answer: {accepted}
Answer: {answer}

Say YES or NO.
Right:"""
GRADES = {"YES": 1.0, "NO": 0.0}
VERDICT_TOKENS = 8  # most tokens of a reply
SECONDS, RETRIES = 60.0, 3  # time and further tries for one reply of an endpoint
_WORD = re.compile(r"[^\W_]+")
_ENDPOINT = re.compile(r"(?:(.*)@)?(https?://.+)")


def logprobs_of(
    lm: LanguageModel, prompts: Sequence[tuple[str, str]], words: tuple[str, str]
) -> list[tuple[float, float]]:
    """Return log p of each of two words after every prompt; `prompts` are (place in a file, text).

    Raises ContextError if a prompt does not fit the model's context, because a cut prompt would lose its question.
    """
    requests = [(text, word) for _, text in prompts for word in words]
    size = lm.context_length
    # the number of inputs of each request: its last token is predicted, not read
    counts = [n - 1 for n in lm.count_tokens([text + word for text, word in requests])] if size is not None else []
    if size is not None and max(counts, default=0) > size:
        longest = prompts[counts.index(max(counts)) // 2][0]
        raise ContextError(
            f"judge {lm.name}: {sum(max(two) > size for two in zip(counts[::2], counts[1::2]))} of {len(prompts)} "
            f"prompts do not fit; the longest ({longest}) needs {max(counts)} tokens, and the context has {size}: use "
            "fewer --max-new-tokens, or a judge with a longer context"
        )
    results = lm.loglikelihood(requests)
    return [(a.logprob, b.logprob) for a, b in zip(results[::2], results[1::2])]


def read_verdict(reply: str, verdicts: dict[str, float], marker: str) -> float | None:
    """Return the value of the word in `verdicts` that a reply consists of, or None for any other reply.

    The word is the whole reply, or it follows `marker` at the start of a line ("BETTER: B"). If there are several such
    lines, all must agree. Case and punctuation do not matter. Nothing is guessed: "A better answer is B" has no
    verdict.
    """
    whole, *lines = (" ".join(_WORD.findall(text.upper())) for text in (reply, *reply.splitlines()))
    marked = {line.removeprefix(f"{marker} ") for line in lines if line.startswith(f"{marker} ")}
    return verdicts.get(marked.pop() if len(marked) == 1 else whole)


def grading_prompt(question: Question, answer: str) -> str:
    """Return the prompt for a model that grades one answer."""
    text = "\n".join(m.content for m in question.prompt)
    return PROMPT.format(question=text, accepted=question.answers[0], answer=answer)


def grader(place: str) -> BatchFunction:
    """Return a function that grades answers 1 (right), 0 (wrong) or 1/2 (both words equally likely).

    `place` is the run of a language model, or NAME@http(s)://…/v1 for a model at an OpenAI-compatible address. Raises
    ConfigError for a run or address that cannot be used; the function raises DataError for another reply than YES or
    NO.
    """
    address = _ENDPOINT.fullmatch(place)
    if address is None:
        lm = open_model(place)

        def by_run(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
            prompts = [(q.where or q.id, grading_prompt(q, text)) for q, (text, _) in zip(questions, answers)]
            pairs = logprobs_of(lm, prompts, (" YES", " NO"))
            return [1.0 if yes > no else 0.0 if yes < no else 0.5 for yes, no in pairs]

        return by_run
    model, url = address[1], address[2]
    if not model:
        raise ConfigError("an address needs the name of its model; write judge:NAME@http(s)://…/v1")
    endpoint = ChatEndpoint(url, model, SECONDS, RETRIES, "judge")

    def by_endpoint(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        out = []
        for question, (text, _) in zip(questions, answers):
            prompt = (question.where or question.id, (Message("user", grading_prompt(question, text)),))
            reply = endpoint.chat([prompt], VERDICT_TOKENS)[0].text
            value = read_verdict(reply, GRADES, "RIGHT")
            if value is None:
                raise DataError(
                    f"judge {endpoint.name}: it said {reply[:200]!r}; wanted YES or NO and nothing else, or a line "
                    '"Right: YES"'
                )
            out.append(value)
        return out

    return by_endpoint
