"""The actor of an RL run: it selects the prompts of a step, samples the policy's answers and scores them."""

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
from tercet.posttraining.rewards.rewards import Rewards, SampledAnswer, apply_scorer, as_question
from tercet.posttraining.rl.rollouts import Clock, Rollouts, generate_rollouts
from tercet.posttraining.rl.stage import PolicyConfig
from tercet.statistics.intervals import mean
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import answer_text
from tercet.training.load import load_language_model
from tercet.training.loader import permuted
from tercet.training.run import Run


class Actor:
    """Prompts, reference and rewards of a run; `collect` returns a step's rollouts, a function of weights and step."""

    def __init__(self, config: PolicyConfig, parent: Run, bad: BadRows) -> None:
        self.config = config
        self.tokenizer = Tokenizer.load(parent.path)
        self.reference = load_language_model(parent)
        shape = self.reference.config
        self.rewards = Rewards(config.reward, self.tokenizer, shape, config.reward_timeout, config.reward_retries)
        self.params = answer_params(self.tokenizer, config.max_new_tokens, config.temperature)
        self.rows = list(read_prompts(config.prompts, bad))
        self.rewards.check((where, question) for where, _, question in self.rows)
        self.scorers = scorers_for(config.scorer, [as_question(*row) for row in self.rows])
        texts = [(where, prompt) for where, prompt, _ in self.rows]
        self.prompts = fit_prompts(self.tokenizer, texts, shape.context_length, config.max_new_tokens)

    def sampled_answer(self, number: int, done: Completion) -> SampledAnswer:
        """Return a completion of prompt `number` in the form that rewards take."""
        where, prompt, question = self.rows[number]
        text, finished = answer_text(self.tokenizer, done.tokens)
        return SampledAnswer(where, prompt, text, finished, (*self.prompts[number], *done.tokens), question)

    def collect(
        self, policy: Transformer, step: int, version: int, clock: Clock, resample: int = 0
    ) -> tuple[Rollouts, dict[str, float]]:
        """Return the rollouts of this step, and their metrics.

        Groups whose answers all have the same score give no gradient. With `resample`, groups of other prompts replace
        them, sampled in at most that many extra rounds (dynamic sampling, Yu et al. 2025). The metrics describe the
        first round.
        """
        config, size = self.config, self.config.batch_size
        reference = self.reference if config.beta > 0 or config.log_kl else None
        count = size * config.group_size
        varied: list[Rollouts] = []
        first, metrics = None, dict[str, float]()
        for number in range(step * (1 + resample), (step + 1) * (1 + resample)):  # no prompt comes twice
            scoring = _Scoring(self, [self.prompt_number(number * size + i) for i in range(size)])
            prompts = [self.prompts[n] for n in scoring.numbers]
            seeds = [(config.seed * 1_000_003 + number) * 65_537 + i for i in range(count)]
            rollouts, _ = generate_rollouts(
                policy,
                reference,
                prompts,
                self.params,
                seeds,
                scoring,
                group_size=config.group_size,
                end_id=self.tokenizer.im_end,
                missing_eos_score=config.missing_eos_score,
                pad=self.tokenizer.pad,
                version=version,
                clock=clock,
            )
            if first is None:
                first, metrics = rollouts, self.metrics(rollouts, scoring)
            if not resample:
                return rollouts, metrics
            varied.append(rollouts.rows(rows_of_varied_groups(rollouts, config.group_size)))
            if sum(len(part.tokens) for part in varied) >= count:
                break
        assert first is not None  # there is at least one round
        joined = join(varied, self.tokenizer.pad)
        return (joined.rows(slice(0, count)) if len(joined.tokens) else first), metrics

    def prompt_number(self, index: int) -> int:
        """Return the number of the run's `index`-th prompt; every pass over the prompts has a new permutation."""
        return permuted(index, len(self.prompts), (self.config.seed, 2))

    def metrics(self, rollouts: Rollouts, scoring: _Scoring) -> dict[str, float]:
        """Return the metrics of a round's rollouts."""
        answers = scoring.answers
        metrics = {
            "reward": float(rollouts.rewards.mean()),
            "finished": sum(a.finished for a in answers) / len(answers),
            "length": float(rollouts.lengths().float().mean()),
            **(scoring.parts if len(scoring.parts) > 1 else {}),
        }
        if rollouts.ref_logp is not None:
            metrics["kl"] = float(rollouts.kl().sum(1).mean())
            metrics["kl_k3"] = float(rollouts.k3().sum(1).mean())
        if self.config.group_size > 1:
            metrics["equal_groups"] = 1.0 - len(rows_of_varied_groups(rollouts, self.config.group_size)) / len(answers)
        for scorer in self.scorers:
            if scores := apply_scorer(scorer, answers):
                metrics[LOGGED + scorer.name] = mean(scores).value
        return metrics


class _Scoring:
    """Scores the answers of one round, and stores them with the mean of every part of the reward."""

    def __init__(self, actor: Actor, numbers: list[int]) -> None:
        self.actor, self.numbers = actor, numbers
        self.answers: list[SampledAnswer] = []
        self.parts: dict[str, float] = {}

    def __call__(self, indices: Sequence[int], done: Sequence[Completion]) -> list[float]:
        """Return the reward of every completion; `indices` are the positions of their prompts in `numbers`."""
        self.answers = [self.actor.sampled_answer(self.numbers[i], c) for i, c in zip(indices, done)]
        totals, self.parts = self.actor.rewards(self.answers)
        return totals


def rows_of_varied_groups(rollouts: Rollouts, group_size: int) -> torch.Tensor:
    """Return the row indices of all groups whose answers do not all have the same score."""
    scores = rollouts.rewards.view(-1, group_size)
    groups = (scores.amax(1) > scores.amin(1)).nonzero()[:, 0]
    return (groups[:, None] * group_size + torch.arange(group_size)).flatten()


def join(parts: Sequence[Rollouts], pad: int) -> Rollouts:
    """Concatenate rollouts, padded to the longest; their groups get different numbers."""
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
