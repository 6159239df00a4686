"""The actor of a run of RL: which prompts a step has, the answers of the policy, and what the rewards make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F

from tercet.data.formats.prompts import read_prompts
from tercet.data.readers import BadRows
from tercet.evaluation.scoring.score_files import LOGGED
from tercet.evaluation.scoring.scorers import scorers_for
from tercet.inference.chat import answer_params, fit_prompts
from tercet.inference.generate import Completion
from tercet.model.transformer import Transformer
from tercet.posttraining.rewards.rewards import Answered, Rewards, question_of, scored
from tercet.posttraining.rl.rollouts import Clock, Rollouts, generate_rollouts
from tercet.posttraining.rl.stage import PolicyConfig
from tercet.statistics.intervals import mean
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text
from tercet.training.load import load_language_model
from tercet.training.loader import permuted
from tercet.training.run import Run


class Actor:
    """Prompts, reference and rewards of a run; `collect` gives the rollouts of a step, a function of (weights, step)."""

    def __init__(self, config: PolicyConfig, parent: Run, bad: BadRows) -> None:
        self.config = config
        self.tokenizer = Tokenizer.load(parent.path)
        self.reference = load_language_model(parent)
        shape = self.reference.config
        self.rewards = Rewards(config.reward, self.tokenizer, shape, config.reward_timeout, config.reward_retries)
        self.params = answer_params(self.tokenizer, config.max_new_tokens, config.temperature)
        self.asked = list(read_prompts(config.prompts, bad))
        self.rewards.check((where, task) for where, _, task in self.asked)
        self.scorers = scorers_for(
            config.scorer, [question_of(where, prompt, task) for where, prompt, task in self.asked]
        )
        found = [(where, prompt) for where, prompt, _ in self.asked]
        self.prompts = fit_prompts(self.tokenizer, found, self.reference.config.context_length, config.max_new_tokens)

    def answered(self, number: int, done: Completion) -> Answered:
        """One answer to prompt `number` as a reward sees it."""
        where, prompt, task = self.asked[number]
        text, finished = answer_text(self.tokenizer, done.tokens)
        return Answered(where, prompt, text, finished, (*self.prompts[number], *done.tokens), task)

    def collect(
        self, policy: Transformer, step: int, version: int, clock: Clock, resample: int = 0
    ) -> tuple[Rollouts, dict[str, float]]:
        """The rollouts of this step, and what to log of them.

        With `resample`, groups whose answers all score alike (they teach nothing) are replaced by those of other
        prompts, drawn in so many further rounds at most (Yu et al. 2025, dynamic sampling); the log is of the first.
        """
        config, size = self.config, self.config.batch_size
        reference = self.reference if config.beta > 0 or config.log_kl else None
        wanted = size * config.group_size
        kept: list[Rollouts] = []
        first, metrics = None, dict[str, float]()
        for number in range(step * (1 + resample), (step + 1) * (1 + resample)):  # no prompt comes twice
            scoring = _Scoring(self, [self.prompt_number(number * size + i) for i in range(size)])
            seeds = [(config.seed * 1_000_003 + number) * 65_537 + i for i in range(wanted)]
            rollouts, _ = generate_rollouts(
                policy, reference, [self.prompts[n] for n in scoring.numbers], self.params, seeds, scoring,
                group_size=config.group_size, end_id=self.tokenizer.im_end, missing_eos_score=config.missing_eos_score,
                pad=self.tokenizer.pad, version=version, clock=clock,
            )  # fmt: skip
            if first is None:
                first, metrics = rollouts, self.metrics(rollouts, scoring)
            if not resample:
                return rollouts, metrics
            kept.append(rollouts.rows(differing(rollouts, config.group_size)))
            if sum(len(k.tokens) for k in kept) >= wanted:
                break
        assert first is not None  # at least one round is made
        joined = join(kept, self.tokenizer.pad)
        return (joined.rows(slice(0, wanted)) if len(joined.tokens) else first), metrics

    def prompt_number(self, index: int) -> int:
        """Which prompt is the `index`-th of the run: a new permutation of all prompts for every pass over them."""
        return permuted(index, len(self.prompts), (self.config.seed, 2))

    def metrics(self, rollouts: Rollouts, round: _Scoring) -> dict[str, float]:
        """What is logged of a step's rollouts."""
        answers = round.answers
        metrics = {
            "reward": float(rollouts.rewards.mean()),
            "finished": sum(a.finished for a in answers) / len(answers),
            "length": float(rollouts.lengths().float().mean()),
            **(round.parts if len(round.parts) > 1 else {}),
        }
        if rollouts.ref_logp is not None:
            metrics["kl"] = float(rollouts.kl().sum(1).mean())
            metrics["kl_k3"] = float(rollouts.k3().sum(1).mean())
        if self.config.group_size > 1:
            metrics["equal_groups"] = 1.0 - len(differing(rollouts, self.config.group_size)) / len(answers)
        for scorer in self.scorers:
            if found := scored(scorer, answers):
                metrics[LOGGED + scorer.name] = mean(found).value
        return metrics


class _Scoring:
    """Scores the answers of one round, and keeps them with the mean of every part of the reward."""

    def __init__(self, actor: Actor, numbers: list[int]) -> None:
        self.actor, self.numbers = actor, numbers
        self.answers: list[Answered] = []
        self.parts: dict[str, float] = {}

    def __call__(self, which: Sequence[int], done: Sequence[Completion]) -> list[float]:
        """The reward of every completion of the prompts `which`."""
        self.answers = [self.actor.answered(self.numbers[i], c) for i, c in zip(which, done)]
        totals, self.parts = self.actor.rewards(self.answers)
        return totals


def differing(rollouts: Rollouts, group_size: int) -> torch.Tensor:
    """The rows of groups whose answers do not all score alike."""
    scores = rollouts.rewards.view(-1, group_size)
    groups = (scores.amax(1) > scores.amin(1)).nonzero()[:, 0]
    return (groups[:, None] * group_size + torch.arange(group_size)).flatten()


def join(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """Rollouts end to end, each filled up to the longest; their groups are numbered apart."""
    longest = max(p.tokens.shape[1] for p in parts)
    out: dict[str, torch.Tensor | None] = {}
    for field in fields(Rollouts):
        arrays = [getattr(p, field.name) for p in parts]
        if arrays[0] is None:
            out[field.name] = None
        elif field.name == "group":
            offsets = [sum(len(p.tokens) for p in parts[:i]) for i in range(len(parts))]
            out[field.name] = torch.cat([a + o for a, o in zip(arrays, offsets)])
        elif arrays[0].dim() == 1:
            out[field.name] = torch.cat(arrays)
        else:
            width = longest - (field.name != "tokens")
            fill = pad if field.name == "tokens" else 0
            out[field.name] = torch.cat([F.pad(a, (0, width - a.shape[1]), value=fill) for a in arrays])
    return Rollouts(**out)  # type: ignore[arg-type]
