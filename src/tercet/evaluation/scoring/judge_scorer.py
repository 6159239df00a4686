"""Language models that say something of an answer: which of some words is likelier, or what an endpoint replies.

`grader` is the scorer `judge:RUN`; judges of pairs (`tercet winrate`) ask in the same two ways.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from tercet.data.types import Message, Question
from tercet.errors import ConfigError, ContextError, DataError
from tercet.evaluation.scoring.scorers import Answer, Batch
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
VERDICT_TOKENS = 8  # at most, of a reply
SECONDS, RETRIES = 60.0, 3  # what an endpoint has for one answer
_WORD = re.compile(r"[^\W_]+")
_ENDPOINT = re.compile(r"(?:(.*)@)?(https?://.+)")


def logprobs_of(
    lm: LanguageModel, prompts: Sequence[tuple[str, str]], words: tuple[str, str]
) -> list[tuple[float, float]]:
    """Return log p of each of two words after every prompt (where it is from, its text).

    Raises ContextError where a prompt does not fit the model's context: cut, it would be judged without its question.
    """
    requests = [(text, word) for _, text in prompts for word in words]
    size = lm.context_length
    # the inputs of each request: the last token is only predicted
    counts = [n - 1 for n in lm.count_tokens([text + word for text, word in requests])] if size is not None else []
    if size is not None and max(counts, default=0) > size:
        longest = prompts[counts.index(max(counts)) // 2][0]
        raise ContextError(
            f"judge {lm.name}: {sum(max(two) > size for two in zip(counts[::2], counts[1::2]))} of {len(prompts)} prompts "
            f"do not fit, the longest ({longest}) needs {max(counts)} tokens; its context has {size}: ask for shorter answers "
            "with --max-new-tokens, or name a judge with a longer context"
        )
    found = lm.loglikelihood(requests)
    return [(a.logprob, b.logprob) for a, b in zip(found[::2], found[1::2])]


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
        lm = open_model(place)

        def by_run(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
            prompts = [(q.where or q.id, prompt_of(q, text)) for q, (text, _) in zip(questions, answers)]
            pairs = logprobs_of(lm, prompts, (" YES", " NO"))
            return [1.0 if yes > no else 0.0 if yes < no else 0.5 for yes, no in pairs]

        return by_run
    model, url = address[1], address[2]
    if not model:
        raise ConfigError("a judge at an address needs the name of its model: write judge:NAME@http(s)://…/v1")
    endpoint = ChatEndpoint(url, model, SECONDS, RETRIES, "judge")

    def by_endpoint(questions: Sequence[Question], answers: Sequence[Answer]) -> list[float]:
        out = []
        for question, (text, _) in zip(questions, answers):
            asked = (question.where or question.id, (Message("user", prompt_of(question, text)),))
            reply = endpoint.chat([asked], VERDICT_TOKENS)[0].text
            value = verdict(reply, GRADES, "RIGHT")
            if value is None:
                raise DataError(
                    f'judge {endpoint.name}: it said {reply[:200]!r}; wanted YES or NO and no more, or a line "Right: YES"'
                )
            out.append(value)
        return out

    return by_endpoint
