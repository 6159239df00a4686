"""The best-of-n stage, and the settings shared by all stages with a reward. It does not import torch."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.evaluation.scoring.scorers import DEFAULT, check_scorers, help_text, scorer_files
from tercet.training.settings import FILES, LANGUAGE_MODEL, REWARD_MODEL, Settings, setting
from tercet.training.stage import Stage

REWARD = setting(
    ...,
    "Rewards that score the answers, each as [weight*]reward: a run of `tercet reward`, mean(run,run), min(run,run), a "
    "scorer such as exact_match or numeric:0.01 (see --scorer), python:FILE.py:FUNCTION, process:COMMAND, or "
    "http(s)://ADDRESS.",
)
REWARD_TIMEOUT = setting(30.0, "Seconds that a process or endpoint has to score a batch.", minimum=1e-3)
REWARD_RETRIES = setting(2, "Number of retries after a process or endpoint fails.", minimum=0)
PROMPTS = setting(
    ..., "Prompts: rows with prompt or messages. Rows with answers are also scored by --scorer.", reads=FILES
)
SCORER = setting(
    DEFAULT, f"{help_text()} The score is logged beside the reward, and nothing is trained on it.", check=check_scorers
)
MISSING_EOS_SCORE = setting(-1.0, "Score of an answer that was cut off before its end token; it replaces the reward.")


class RewardedSettings(Settings):
    """Settings with a `reward` and a `scorer`: reward-model runs among them are parents, code files are inputs."""

    reward: tuple[str, ...]
    scorer: tuple[str, ...]

    def parents(self) -> dict[str, tuple[str, str]]:
        """Return the runs that the settings name, the reward models included as "reward", "reward2", …."""
        from tercet.posttraining.rewards.rewards import reward_runs

        reward_models = {role: (str(run.path), REWARD_MODEL) for role, run in reward_runs(self.reward).items()}
        return {**super().parents(), **reward_models}

    def files(self) -> tuple[str, ...]:
        """Return the input files, the code files of rewards and scorers included."""
        from tercet.posttraining.rewards.rewards import reward_files

        return (*super().files(), *reward_files(self.reward), *scorer_files(self.scorer))


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(RewardedSettings):
    """Sample n answers to each prompt and keep the best.

    The run holds the expected score of the best of k answers for every k up to n. It also holds the best answers, as
    data for `tercet sft`.
    """

    model: str = setting(..., "Run that answers: an instruction-tuned model.", reads=LANGUAGE_MODEL)
    reward: tuple[str, ...] = REWARD
    reward_timeout: float = REWARD_TIMEOUT
    reward_retries: int = REWARD_RETRIES
    prompts: tuple[str, ...] = PROMPTS
    scorer: tuple[str, ...] = SCORER
    answers: int = setting(16, "Answers to each prompt (n).", minimum=2)
    minimum_score: float | None = setting(
        None, "Keep a best answer for SFT only if it scores above this.  [default: keep all]"
    )
    missing_eos_score: float = MISSING_EOS_SCORE
    temperature: float = setting(1.0, "Sampling temperature; it must be above 0.", minimum=1e-3)
    max_new_tokens: int = setting(32, "Longest answer, in tokens.", minimum=1)
    skip_bad_rows: bool = setting(False, "Skip and count invalid rows instead of stopping.")
    threads: int = setting(2, "CPU threads.", minimum=1, maximum=1024)
    seed: int = setting(0, "Seed of the samples.", minimum=0, maximum=2**31 - 1)


BEST_OF_N = Stage(
    "best-of-n",
    BestOfNConfig,
    "tercet.posttraining.rewards.best_of_n:best_of_n",
    order=70,
    label="best of n",
    example="tercet best-of-n --model runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/best",
    section="tercet.reporting.preference_story:choosing",
)
