"""Settings of best-of-n, and those that everything with a reward shares (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.evaluation.scorers import DEFAULT, check_scorers, help_text
from tercet.training.settings import Settings, setting

REWARD = setting(
    ...,
    "what scores the answers, each as [weight*]reward: a run of `tercet reward`, mean(run,run), min(run,run), a scorer "
    "such as exact_match or numeric:0.01 (see --scorer), python:module:function, process:command, or http(s)://…",
)
REWARD_TIMEOUT = setting(30.0, "seconds that a process or endpoint has for a batch", minimum=1e-3)
REWARD_RETRIES = setting(2, "further attempts when a process or endpoint fails", minimum=0)
PROMPTS = setting(..., "rows with prompt or messages; rows with answers are also scored by --scorer")
SCORER = setting(
    DEFAULT, f"{help_text()} The score is logged beside the reward, and nothing is trained on it.", check=check_scorers
)
MISSING_EOS_SCORE = setting(-1.0, "replaces the score of an answer that the model did not end itself")


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(Settings):
    """Sample n answers to each prompt and keep the best: its score for every n without bias, and data for `tercet sft`."""

    model: str = setting(..., "run that answers: an instruction-tuned model")
    reward: tuple[str, ...] = REWARD
    reward_timeout: float = REWARD_TIMEOUT
    reward_retries: int = REWARD_RETRIES
    prompts: tuple[str, ...] = PROMPTS
    scorer: tuple[str, ...] = SCORER
    answers: int = setting(16, "answers to each prompt (n)", minimum=2)
    minimum_score: float | None = setting(None, "only best answers that score above this are kept for tuning")
    missing_eos_score: float = MISSING_EOS_SCORE
    temperature: float = setting(1.0, "of sampling", minimum=1e-3)
    max_new_tokens: int = setting(32, "longest answer", minimum=1)
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads", minimum=1, maximum=1024)
    seed: int = setting(0, "seed of samples", minimum=0, maximum=2**31 - 1)
