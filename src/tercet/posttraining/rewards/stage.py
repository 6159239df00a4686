"""Best-of-n as a stage, and the settings that everything with a reward shares (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.evaluation.scoring.scorers import DEFAULT, check_scorers, help_text, scorer_files
from tercet.training.settings import FILES, LANGUAGE_MODEL, REWARD_MODEL, Settings, setting
from tercet.training.stage import Stage

REWARD = setting(
    ...,
    "what scores the answers, each as [weight*]reward: a run of `tercet reward`, mean(run,run), min(run,run), a scorer "
    "such as exact_match or numeric:0.01 (see --scorer), python:module:function, process:command, or http(s)://…",
)
REWARD_TIMEOUT = setting(30.0, "seconds that a process or endpoint has for a batch", minimum=1e-3)
REWARD_RETRIES = setting(2, "further attempts when a process or endpoint fails", minimum=0)
PROMPTS = setting(..., "rows with prompt or messages; rows with answers are also scored by --scorer", reads=FILES)
SCORER = setting(
    DEFAULT, f"{help_text()} The score is logged beside the reward, and nothing is trained on it.", check=check_scorers
)
MISSING_EOS_SCORE = setting(-1.0, "replaces the score of an answer that the model did not end itself")


class RewardedSettings(Settings):
    """Settings with a `reward` and a `scorer`: the runs among them are parents, their code is an input."""

    reward: tuple[str, ...]
    scorer: tuple[str, ...]

    def parents(self) -> dict[str, tuple[str, str]]:
        """The runs that the settings name, those of the rewards included ("reward", "reward2", …)."""
        from tercet.posttraining.rewards.rewards import reward_runs

        judges = {role: (str(run.path), REWARD_MODEL) for role, run in reward_runs(self.reward).items()}
        return {**super().parents(), **judges}

    def files(self) -> tuple[str, ...]:
        """The input files, those of code that scores answers included."""
        from tercet.posttraining.rewards.rewards import reward_files

        return (*super().files(), *reward_files(self.reward), *scorer_files(self.scorer))


@dataclass(frozen=True, kw_only=True)
class BestOfNConfig(RewardedSettings):
    """Sample n answers to each prompt and keep the best.

    The run has the expected score of the best of k answers for every k up to n, and data for `tercet sft`.
    """

    model: str = setting(..., "run that answers: an instruction-tuned model", reads=LANGUAGE_MODEL)
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


BEST_OF_N = Stage(
    "best-of-n", BestOfNConfig, "tercet.posttraining.rewards.best_of_n:best_of_n", order=70, label="best of n",
    example="tercet best-of-n --model runs/sft --reward runs/reward --prompts prompts.jsonl --out runs/best",
    section="tercet.reporting.preference_story:choosing",
)  # fmt: skip
