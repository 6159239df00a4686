"""Runs as models of EleutherAI's lm-evaluation-harness (the extra `eval`).

import tercet.interop.lm_eval            # registers the model "tercet"
lm_eval.simple_evaluate(model="tercet", model_args="run=runs/base", tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tercet.errors import ConfigError
from tercet.inference.language_model import LanguageModel, open_model

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
except ImportError as error:
    raise ConfigError(f"lm-eval is not installed ({error}); pip install 'tercet[eval]'") from error

MAX_NEW_TOKENS = 256  # if a task does not say, as in lm-eval's own models, but at most half of the context


@register_model("tercet")  # type: ignore[untyped-decorator,unused-ignore]
class TercetLM(LM):  # type: ignore[misc,unused-ignore]
    """The language model of a run, or another `LanguageModel`, for lm-eval's three kinds of request.

    `cache` names a file of finished requests, from which a stopped evaluation continues. lm-eval passes a batch size
    and a device to every model; both are ignored. Chat templates are not applied, and no text becomes a special token.
    """

    def __init__(
        self,
        run: str | LanguageModel,
        cache: str = "",
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ) -> None:
        super().__init__()
        self.lm = open_model(run, cache=cache or None) if isinstance(run, str) else run

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return the log-probability in nats of every (context, continuation), and whether it is the greedy one."""
        return [(one.logprob, one.greedy) for one in self.lm.loglikelihood([r.args for r in requests])]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability in nats of every whole text."""
        return self.lm.rolling([r.args[0] for r in requests])

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Return a continuation of every context, with the generation settings of its request.

        Raises ConfigError for a setting that tercet does not have.
        """
        groups: dict[tuple[int, float], list[int]] = {}
        stops = list[tuple[str, ...]]()
        for number, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1], self._longest())
            stops.append(tuple(s for s in settings.pop("until") if s))
            sampled, temperature = settings.pop("do_sample", False), float(settings.pop("temperature", 0.0))
            longest = int(settings.pop("max_gen_toks"))
            if settings:
                raise ConfigError(f"a task has generation settings that tercet does not have: {', '.join(settings)}")
            groups.setdefault((longest, temperature if sampled else 0.0), []).append(number)
        texts = [""] * len(requests)
        for (longest, temperature), numbers in groups.items():
            prompts = [(requests[i].args[0], stops[i]) for i in numbers]
            for i, text in zip(numbers, self.lm.generate_until(prompts, longest, temperature)):
                texts[i] = text
        return texts

    def _longest(self) -> int:
        size = self.lm.context_length
        return MAX_NEW_TOKENS if size is None else min(MAX_NEW_TOKENS, size // 2)
