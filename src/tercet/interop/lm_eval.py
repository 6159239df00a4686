"""A run as a model of EleutherAI's lm-evaluation-harness (the extra `eval`).

import tercet.interop.lm_eval            # from then on "tercet" is a model's name there
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

MAX_NEW_TOKENS = 256  # where a task does not say, as in lm-eval's own models; at most half of the context


@register_model("tercet")  # type: ignore[untyped-decorator,unused-ignore]
class TercetLM(LM):  # type: ignore[misc,unused-ignore]
    """The language model of a run, or any other `LanguageModel`, behind lm-eval's three kinds of request.

    `cache` names a file of finished requests, from which a killed evaluation of a run continues. The batch size and the
    device, which lm-eval passes to every model, are ignored. Chat templates are not applied: text is never a special token.
    """

    def __init__(self, run: str | LanguageModel, cache: str = "", batch_size: Any = None, max_batch_size: Any = None,
                 device: Any = None) -> None:  # fmt: skip
        super().__init__()
        self.lm = open_model(run, cache=cache or None) if isinstance(run, str) else run

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-probability in nats, greedy) of every (context, continuation)."""
        found = self.lm.loglikelihood([r.args for r in requests])
        return [(one.logprob, one.greedy) for one in found]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of every whole text, in nats."""
        return self.lm.rolling([r.args[0] for r in requests])

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of every context, by the settings of its request.

        Raises ConfigError for settings of generation that are not known here.
        """
        groups: dict[tuple[int, float], list[int]] = {}
        stops = list[tuple[str, ...]]()
        for number, request in enumerate(requests):
            settings = normalize_gen_kwargs(request.args[1], self._longest())
            stops.append(tuple(s for s in settings.pop("until") if s))
            sampled, temperature = settings.pop("do_sample", False), float(settings.pop("temperature", 0.0))
            longest = int(settings.pop("max_gen_toks"))
            if settings:
                raise ConfigError(f"generation settings {', '.join(settings)} of a task are not known to tercet")
            groups.setdefault((longest, temperature if sampled else 0.0), []).append(number)
        texts = [""] * len(requests)
        for (longest, temperature), mine in groups.items():
            asked = [(requests[i].args[0], stops[i]) for i in mine]
            for i, text in zip(mine, self.lm.generate_until(asked, longest, temperature)):
                texts[i] = text
        return texts

    def _longest(self) -> int:
        size = self.lm.context_length
        return MAX_NEW_TOKENS if size is None else min(MAX_NEW_TOKENS, size // 2)
