"""Training of the reward model, from rankings of K answers (Ouyang et al. 2022, section 3.4)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tercet.data.formats.conversations import read_conversations
from tercet.data.readers import BadRows
from tercet.errors import DataError
from tercet.inference.reward_scores import score_texts
from tercet.model.heads import ValueHeadModel
from tercet.posttraining.reward_model.calibration import calibration_report
from tercet.posttraining.reward_model.rankings import Ranked, accuracy, encode_answer, load_rankings, mean_size
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.training.learner import Learner
from tercet.training.load import adapt, load_language_model
from tercet.training.loader import permuted
from tercet.training.optim import OptimizerConfig
from tercet.training.packing import sequences_per_pass
from tercet.training.records import write_text
from tercet.training.run import Run
from tercet.training.shared_prompts import PackedGroups, pack_groups
from tercet.training.trainer import due, training_steps


@dataclass(frozen=True)
class RankedBatch:
    """Several prompts with all their answers."""

    rows: PackedGroups
    pairs: Tensor  # [P, 2] i64, answers (better, worse)
    pair_weights: Tensor  # [P] f64, 1 / C(K, 2) of the pair's prompt
    margins: Tensor  # [P] f64, margin between the two rewards
    count: float  # number of prompts

    @property
    def tokens(self) -> Tensor:
        """All ids, with each prompt once, [1, T]."""
        return self.rows.tokens


def collate(prompts: Sequence[Ranked], margin: float = 0.0) -> RankedBatch:
    """Make a batch of several prompts. Each answer is in it once, however many pairs it is part of."""
    pairs, weights, margins, base = [], [], [], 0
    for p in prompts:
        k = len(p.answers)
        pairs += [(base + i, base + j) for i, j in p.pairs]
        weights += [2.0 / (k * (k - 1))] * len(p.pairs)
        margins += [margin * (p.scores[i] - p.scores[j]) if margin else 0.0 for i, j in p.pairs]
        base += k
    return RankedBatch(
        pack_groups([p.prompt for p in prompts], [p.answers for p in prompts]),
        torch.tensor(pairs, dtype=torch.long).reshape(-1, 2),
        torch.tensor(weights, dtype=torch.float64),
        torch.tensor(margins, dtype=torch.float64),
        float(len(prompts)),
    )


def ranking_loss(model: ValueHeadModel, batch: RankedBatch) -> tuple[Tensor, dict[str, float]]:
    """Return Σ over prompts of −1/C(K,2) Σ over pairs log σ(r_better − r_worse − m) (Ouyang et al. 2022, equation 1).

    m is the pair's margin (Touvron et al. 2023, equation 2), 0 by default.
    """
    scores = batch.rows.scores(model)
    difference = scores[batch.pairs[:, 0]] - scores[batch.pairs[:, 1]] - batch.margins
    loss = -(batch.pair_weights * F.logsigmoid(difference)).sum()
    return loss, {"loss": float(loss.detach())}


@torch.no_grad()
def score_ranked(model: ValueHeadModel, prompts: Sequence[Ranked]) -> list[list[float]]:
    """Return the rewards of each prompt's answers. Prompts are computed once; similar lengths share a pass."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i].prompt) + max(map(len, prompts[i].answers)))
    out: list[list[float]] = [[] for _ in prompts]
    rows = sequences_per_pass(0, mean_size(prompts)) if prompts else 1
    for a in range(0, len(order), rows):
        part = order[a : a + rows]
        scores = iter(
            pack_groups([prompts[i].prompt for i in part], [prompts[i].answers for i in part]).scores(model).tolist()
        )
        for i in part:
            out[i] = list(islice(scores, len(prompts[i].answers)))
    return out


def calibrate(prompts: Sequence[Ranked], scores: Sequence[Sequence[float]], gain: float) -> dict[str, Any]:
    """Return accuracy by rating gap and by length, and calibration (see calibration.py).

    The rating gap is the difference of scores if all answers have them, else of ranks; "gap" says which.
    """
    rated = all(p.scores for p in prompts)
    difference, gap, longer, number = [], [], [], []
    for n, (p, s) in enumerate(zip(prompts, scores)):
        for b, w in p.pairs:
            difference.append((s[b] - s[w]) / gain)  # in the units of the loss
            gap.append(p.scores[b] - p.scores[w] if rated else p.ranks[w] - p.ranks[b])
            longer.append(p.characters[b] - p.characters[w])
            number.append(n)
    parts = calibration_report(
        np.array(difference), np.array(gap, dtype=np.float64), np.array(longer), np.array(number)
    )
    return {"gap": "score" if rated else "rank", **parts}


def load_demonstrations(config: RewardConfig, tokenizer: Tokenizer, length: int, run: Run) -> list[tuple[int, ...]]:
    """Return the ids of every assistant answer with the messages before it, for `demonstrations_limit` conversations.

    Raises DataError if none fits into `length` tokens.
    """
    if not config.demonstrations:
        return []
    bad = BadRows(skip=config.skip_bad_rows)
    every = [c for _, c in read_conversations(config.demonstrations, bad)]
    run.log_skipped(bad.count, bad.messages)
    count = min(len(every), config.demonstrations_limit)
    selected = [every[permuted(i, len(every), (config.seed, 3))] for i in range(count)]
    texts = [
        encode_answer(tokenizer, c[:i], m.content) for c in selected for i, m in enumerate(c) if m.role == "assistant"
    ]
    if not (fitting := [t for t in texts if len(t) <= length]):
        raise DataError(
            f"none of {len(texts)} answers of --demonstrations fits into the context of {length} tokens; give "
            "shorter ones"
        )
    return fitting


def normalise_rewards(model: ValueHeadModel, demonstrations: Sequence[float], answers: Sequence[float]) -> None:
    """Set gain and bias so that ranked answers have standard deviation 1, and demonstrations the mean 0.

    `answers` and `demonstrations` are their scores before. Without demonstrations, the ranked answers have the mean 0.
    """
    spread = max(float(np.std(answers)), 1e-6)
    model.bias.sub_(float(np.mean(demonstrations or answers))).div_(spread)
    model.gain.div_(spread)


def check_margin(config: RewardConfig, prompts: Sequence[Ranked]) -> None:
    """Raise DataError if --margin is set, but answers have no scores to compute it from."""
    if config.margin and (without := sum(not p.scores for p in prompts)):
        raise DataError(
            f'--margin is {config.margin:g}, but {without} of {len(prompts)} training prompts have no "scores" or '
            '"margin"; add them to the comparisons, or leave out --margin'
        )


def reward(config: RewardConfig, run: Run) -> None:
    """Train a reward model from comparisons."""
    backbone, tokenizer = load_language_model(run.parents["model"]), Tokenizer.load(run.path)
    train, heldout = load_rankings(config, tokenizer, backbone.config.context_length, run)
    check_margin(config, train)
    demonstrations = load_demonstrations(config, tokenizer, backbone.config.context_length, run)
    model = adapt(ValueHeadModel(backbone, seed=config.seed).to(run.device), config)
    # the bias cancels in every pair, so its gradient is only rounding noise, which Adam would amplify
    model.score.bias.requires_grad_(False)
    learner = Learner(model, OptimizerConfig.of(config), config.precision)
    longer = accuracy(heldout, [p.characters for p in heldout])

    def evaluate(done: int) -> None:
        end = due(done, 0, config.steps)
        if end:
            ranked = [score for scores in score_ranked(model, train) for score in scores]
            normalise_rewards(model, score_texts(model, demonstrations, tokenizer.pad), ranked)
        scores = score_ranked(model, heldout)
        right = accuracy(heldout, scores)
        run.log(done, heldout_accuracy=right.value, longer_wins=longer.value)
        if end:
            zero = score_texts(model, demonstrations, tokenizer.pad)
            mean = sum(zero) / len(zero) if zero else None
            run.update(accuracy=right.to_json(), longer_wins=longer.to_json(), demonstrations_mean=mean)
            calibration = calibrate(heldout, scores, float(model.gain))
            write_text(run.path / "calibration.json", json.dumps(calibration, indent=1) + "\n")

    micro = sequences_per_pass(config.micro_batch, mean_size(train))
    for step in training_steps(run, config, learner, evaluate):
        first = step.number * config.batch_size
        picks = [train[permuted(first + i, len(train), (config.seed, 2))] for i in range(config.batch_size)]
        batches = [collate(picks[a : a + micro], config.margin) for a in range(0, len(picks), micro)]
        metrics = learner.forward_backward(batches, ranking_loss)
        step.update(learner, metrics, batches)
