"""Preference learning without RL: DPO, IPO, KTO, SimPO and ORPO, on the same comparisons as a reward model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tercet.model.transformer import Transformer
from tercet.posttraining.preference import losses
from tercet.posttraining.preference.data import (
    Labelled,
    LabelledBatch,
    PairBatch,
    PromptAnswers,
    answer_logprobs,
    labelled_batches,
    load_labelled,
    mismatched,
    pair_batch,
    reference_logprobs,
)
from tercet.posttraining.preference.stage import WITH_REFERENCE, DPOConfig
from tercet.posttraining.reward_model.rankings import Ranked, accuracy, load_rankings, mean_size
from tercet.statistics.intervals import Estimate
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner, Objective
from tercet.training.load import adapt, load_language_model
from tercet.training.loader import permuted
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import sequences_per_pass
from tercet.training.run import Run
from tercet.training.trainer import due, training_steps

WATCHED = 20  # steps over which the chosen answers' log-probability is averaged, at the start and now
FALL = 0.2  # relative fall of that average above which the run warns


# -- objectives -----------------------------------------------------------------------------------------------------


def pair_objective(config: DPOConfig) -> Objective[PairBatch]:
    """Return the objective that sums the loss over all pairs without ties; each pair has the weight 1 / C(K, 2)."""
    beta = config.resolved_beta

    def loss(logp: Tensor, lengths: Tensor, b: PairBatch) -> Tensor:
        if config.loss == "simpo":
            return losses.simpo(logp, lengths, b.pairs, b.weights, beta, config.margin)
        if config.loss == "orpo":
            return losses.orpo(logp, lengths, b.pairs, b.weights, config.odds_weight)
        if config.loss == "ipo":
            return losses.ipo(logp, b.reference, b.pairs, b.weights, beta)
        return losses.dpo(logp, b.reference, b.pairs, b.weights, beta, config.label_smoothing)

    def objective(model: Transformer, batch: PairBatch) -> tuple[Tensor, dict[str, float]]:
        logp, lengths = batch.rows.logprobs(model), batch.rows.lengths()
        value = loss(logp, lengths, batch)
        zeros = torch.zeros(batch.rows.answers, dtype=torch.float64)
        chosen, rejected = (zeros.index_add(0, batch.pairs[:, side], batch.shares) for side in (0, 1))
        rewards = losses.implied_rewards(config.loss, logp.detach(), batch.reference, lengths, beta)
        won = torch.heaviside(losses.difference(rewards, batch.pairs), torch.tensor(0.5, dtype=torch.float64))
        metrics = _metrics(logp.detach(), lengths, rewards, chosen, rejected)
        return value, {"loss": float(value.detach()), **metrics, "accuracy": float((batch.shares * won).sum())}

    return objective


def kto_objective(config: DPOConfig) -> Objective[LabelledBatch]:
    """Return the objective that sums KTO's loss over labelled answers; accuracy is the share on its side of z0."""
    beta = config.resolved_beta

    def objective(model: Transformer, batch: LabelledBatch) -> tuple[Tensor, dict[str, float]]:
        logp, lengths = batch.rows.logprobs(model), batch.rows.lengths()
        value = losses.kto(
            logp, batch.reference, batch.desirable, batch.z0, beta, config.desirable_weight, config.undesirable_weight
        )
        metrics = {"loss": float(value.detach()), "z0": batch.z0 * batch.count}
        if batch.shares.any():
            rewards = losses.implied_rewards(config.loss, logp.detach(), batch.reference, lengths, beta)
            chosen, rejected = batch.shares * batch.desirable, batch.shares * ~batch.desirable
            metrics |= _metrics(logp.detach(), lengths, rewards, chosen, rejected)
            sign = torch.where(batch.desirable, 1.0, -1.0).double()
            won = torch.heaviside(sign * (rewards - beta * batch.z0), torch.tensor(0.5, dtype=torch.float64))
            metrics["accuracy"] = float(won.sum())
        return value, metrics

    return objective


def _metrics(logp: Tensor, lengths: Tensor, rewards: Tensor, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """Return log-probabilities (whole, per token) and rewards, summed with the weights `chosen` and `rejected` [N]."""
    out = {}
    for name, weights in (("chosen", chosen), ("rejected", rejected)):
        out[f"{name}_logp"] = float((weights * logp).sum())
        out[f"{name}_logp_per_token"] = float((weights * logp / lengths).sum())
        out[f"{name}_reward"] = float((weights * rewards).sum())
    return out | {"reward_margin": out["chosen_reward"] - out["rejected_reward"]}


# -- the record -----------------------------------------------------------------------------------------------------


def chosen_fall(logps: Sequence[float]) -> tuple[float, float] | None:
    """Return the chosen answers' mean log-probability (at the start, now) if it has fallen clearly, else None.

    The means are over the first and the last 20 steps, or over half the steps if there are fewer than 40. A clear fall
    is more than a fifth and more than 1 nat. DPO lowers the chosen answers if that lowers the rejected ones even more
    (Pal et al. 2024; Razin et al. 2024): the margin grows while the model unlearns what people prefer.
    """
    window = min(WATCHED, len(logps) // 2)
    if window < WATCHED // 2:
        return None
    start, now = sum(logps[:window]) / window, sum(logps[-window:]) / window
    return (start, now) if start - now > max(1.0, FALL * abs(start)) else None


def warn_of_fall(run: Run) -> None:
    """Log a warning, once per run, if the chosen answers become less likely.

    The function reads the run's metrics, so that a resumed run gives the same warning.
    """
    if "chosen_fell" in run.manifest:
        return
    if (fall := chosen_fall([row["chosen_logp"] for row in run.metrics("chosen_logp")])) is not None:
        run.update(chosen_fell=fall)
        run.log_line(
            f"warning: the chosen answers have become less likely: their mean log-probability was {fall[0]:.1f} at the "
            f"start and is {fall[1]:.1f} now. Hint: start a new run with a lower --lr, fewer --steps, a larger --beta "
            "(dpo, kto), or --loss orpo"
        )


def heldout_metrics(
    config: DPOConfig, prompts: Sequence[Ranked], logps: Sequence[Tensor], references: Sequence[Tensor]
) -> tuple[dict[str, float], Estimate | None]:
    """Return held-out metrics, and the implied reward's accuracy on pairs without ties (None if there are none)."""
    lengths = [torch.tensor([len(a) for a in p.answers]) for p in prompts]
    rewards = [
        losses.implied_rewards(config.loss, logp, ref, n, config.resolved_beta)
        for logp, ref, n in zip(logps, references, lengths)
    ]
    paired = [(p, r) for p, r in zip(prompts, rewards) if p.pairs]
    if not paired:  # only labelled answers: the margin is mean desirable − mean undesirable
        flat = [
            (label, float(x))
            for p, r in zip(prompts, rewards)
            if isinstance(p, Labelled)
            for label, x in zip(p.labels, r)
        ]
        good, bad = [x for label, x in flat if label is True], [x for label, x in flat if label is False]
        return ({"heldout_reward_margin": sum(good) / len(good) - sum(bad) / len(bad)} if good and bad else {}), None
    margins = [sum(float(r[a] - r[b]) for a, b in p.pairs) / len(p.pairs) for p, r in paired]
    right = accuracy([p for p, _ in paired], [r.tolist() for _, r in paired])
    return {"heldout_accuracy": right.value, "heldout_reward_margin": sum(margins) / len(margins)}, right


# -- the stage ------------------------------------------------------------------------------------------------------


def train_preferences(config: DPOConfig, run: Run) -> None:
    """Train a policy from comparisons."""
    model, tokenizer = adapt(load_language_model(run.parents["model"]), config), Tokenizer.load(run.path)
    learner = Learner(model, OptimizerConfig.of(config), config.precision)
    make = labelled_steps if config.loss == "kto" else paired_steps
    batches_of, heldout, references = make(config, learner, tokenizer, run)
    objective: Objective[Any] = kto_objective(config) if config.loss == "kto" else pair_objective(config)

    def evaluate(done: int) -> None:
        logps = answer_logprobs(learner, prompt_answers(heldout))
        metrics, right = heldout_metrics(config, heldout, logps, references)
        run.log(done, **metrics)
        if due(done, 0, config.steps):
            warn_of_fall(run)
            if right is not None:
                longer = accuracy(heldout, [p.characters for p in heldout])
                run.update(accuracy=right.to_json(), longer_wins=longer.to_json())

    for step in training_steps(run, config, learner, evaluate):
        if step.number and step.number % WATCHED == 0:
            warn_of_fall(run)
        batches = batches_of(step.number)
        metrics = learner.forward_backward(batches, objective)
        step.update(learner, metrics, batches)


# (step → its micro-batches, held-out prompts, their reference log-probabilities). The reference is the policy before
# its first step. Its log-probabilities are computed before training begins, so it is never in memory beside the policy.
Steps = tuple[Callable[[int], Sequence[Any]], Sequence[Ranked], Sequence[Tensor]]


def paired_steps(config: DPOConfig, learner: Learner[Transformer], tokenizer: Tokenizer, run: Run) -> Steps:
    """Return the steps of the losses on pairs."""
    train, heldout = load_rankings(config, tokenizer, learner.model.config.context_length, run)
    if config.loss in WITH_REFERENCE:
        splits = {"train": prompt_answers(train), "heldout": prompt_answers(heldout)}
        reference = reference_logprobs(run, learner, splits)
    else:
        reference = {
            name: [torch.zeros(len(p.answers), dtype=torch.float64) for p in prompts]
            for name, prompts in (("train", train), ("heldout", heldout))
        }
    micro = sequences_per_pass(config.micro_batch, mean_size(train))

    def batches(step: int) -> list[PairBatch]:
        indices = prompt_indices(config, step, len(train))
        parts = [indices[a : a + micro] for a in range(0, len(indices), micro)]
        return [pair_batch([train[i] for i in part], [reference["train"][i] for i in part]) for part in parts]

    return batches, heldout, reference["heldout"]


def labelled_steps(config: DPOConfig, learner: Learner[Transformer], tokenizer: Tokenizer, run: Run) -> Steps:
    """Return the steps of KTO; each begins with z0 of the whole step under the current policy."""
    length = learner.model.config.context_length
    train, heldout = load_labelled(config, tokenizer, length, run)
    others = mismatched(train, length, config.seed)
    splits = {"train": prompt_answers(train), "heldout": prompt_answers(heldout), "mismatched": others}
    reference = reference_logprobs(run, learner, splits)

    def batches(step: int) -> list[LabelledBatch]:
        indices = prompt_indices(config, step, len(train))
        now = answer_logprobs(learner, [others[i] for i in indices])
        z0 = losses.kto_reference_point(torch.cat(now), torch.cat([reference["mismatched"][i] for i in indices]))
        micro = sequences_per_pass(config.micro_batch, mean_size(train))
        return labelled_batches([train[i] for i in indices], [reference["train"][i] for i in indices], z0, micro)

    return batches, heldout, reference["heldout"]


def prompt_indices(config: DPOConfig, step: int, size: int) -> list[int]:
    """Return the indices of a step's prompts among all `size` training prompts."""
    first = step * config.batch_size
    return [permuted(first + i, size, (config.seed, 2)) for i in range(config.batch_size)]


def prompt_answers(prompts: Sequence[Ranked]) -> list[PromptAnswers]:
    """Return the ids of every prompt and of its answers."""
    return [(p.prompt, p.answers) for p in prompts]
