"""Settings of asking (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.training.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class AskConfig(Settings):
    """Asking a base model by completion: zero-, one- and few-shot, without any gradient step."""

    model: str = setting(..., "run to ask")
    tasks: tuple[str, ...] = setting((), "questions with gold answers")
    examples: tuple[str, ...] = setting(
        (), "questions with gold answers from which the shots are drawn (needed above 0 shots)"
    )
    shots: tuple[int, ...] = setting((0, 1, 4), "numbers of examples in the prompt")
    description: str = setting("", "text before the examples, such as 'Translate English to French:\\n'")
    template: str = setting("Q: {input}\nA: {output}", "one example; must end with {output}")
    separator: str = setting("\n\n", "between examples")
    limit: int = setting(0, "at most so many tasks (0: all)", minimum=0)
    max_new_tokens: int = setting(24, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed by which examples are drawn", minimum=0, maximum=2**31 - 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "{input}" not in self.template or not self.template.endswith("{output}"):
            raise ConfigError(
                f"AskConfig.template is {self.template!r}; it must hold {{input}} and end with {{output}}"
            )
        if not self.shots or min(self.shots) < 0:
            raise ConfigError(f"AskConfig.shots is {self.shots}; wanted numbers of examples, each 0 or more")
        if self.tasks and any(self.shots) and not self.examples:
            raise ConfigError(
                f"AskConfig.shots is {self.shots}, but no examples are named to draw them from; name them with --examples, or ask with --shots 0"
            )
