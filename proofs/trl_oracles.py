"""TRL's own loss functions, called on our model: the other side of `test_trl.py`.

A trainer is made without its `__init__` (which wants files, devices and hubs) and given just the attributes that the
method under test reads. The method itself, the collator that pads, and everything that they call are TRL's, untouched.
The model is tercet's Transformer behind the interface of transformers (`Readable`), so that both sides see the same
float64 logits, and any difference is one of masks, shifts, signs, normalisers or formulas.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RewardTrainer, RLOOTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference
from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer

Ids = Sequence[int]
Triples = Sequence[tuple[Ids, Ids, Ids]]  # prompt, chosen, rejected
Answers = Sequence[tuple[Ids, Ids]]  # prompt, answer


class Readable(nn.Module):
    """A model of ours with the calling convention of transformers; padding may be on either side."""

    is_gradient_checkpointing = False

    def __init__(self, model: Transformer | ValueHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: Any) -> SimpleNamespace:
        """Logits [B, T, V] of a language model; of a scalar model its number at the last real token, [B, 1]."""
        real = attention_mask.bool()
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        backbone = self.model if isinstance(self.model, Transformer) else self.model.backbone
        hidden = backbone.hidden(input_ids, real.long(), positions_BT=positions)
        if isinstance(self.model, Transformer):
            return SimpleNamespace(logits=hidden @ self.model.output_weight.T)
        last = torch.where(real, torch.arange(input_ids.shape[1]), -1).amax(1)
        return SimpleNamespace(logits=self.model.read(hidden[torch.arange(len(last)), last])[:, None])


def trainer(cls: type, model: Transformer | ValueHeadModel, **attributes: Any) -> Any:
    """A TRL trainer that never ran `__init__`: one process, training mode, and the attributes named."""
    made: Any = object.__new__(cls)
    made.accelerator = SimpleNamespace(
        device=torch.device("cpu"), num_processes=1, process_index=0, is_main_process=True, gather=lambda x: x,
        gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x, unwrap_model=lambda m: m,
    )  # fmt: skip
    made.model = Readable(model).train()
    made.ref_model, made.aux_loss_enabled, made._total_train_tokens = None, False, 0
    made._metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    made.args = SimpleNamespace(**{"gradient_checkpointing_kwargs": None, **attributes.pop("args", {})})
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


# -- pairs -------------------------------------------------------------------------------------------------------------


def dpo(model: Transformer, reference: Transformer, pairs: Triples, pad: int, *, loss: str, beta: float,
        label_smoothing: float = 0.0) -> Tensor:  # fmt: skip
    """DPOTrainer's loss of (prompt, chosen, rejected): `loss` is "sigmoid", "robust", "ipo" …"""
    made = trainer(
        DPOTrainer, model, ld_alpha=None, precompute_ref_logps=False, f_divergence_type="reverse_kl", beta=beta,
        label_smoothing=label_smoothing, loss_types=[loss], loss_weights=[1.0], use_weighting=False,
    )  # fmt: skip
    made.ref_model = Readable(reference)
    rows = [{"prompt_ids": [*p], "chosen_ids": [*w], "rejected_ids": [*r]} for p, w, r in pairs]
    result: Tensor = made._compute_loss(made.model, DataCollatorForPreference(pad).torch_call(rows), False)
    return result


def _right(rows: Sequence[Ids], fill: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (longest - len(row))] for row in rows])


def _labelled(pairs: Triples, pad: int) -> dict[str, Tensor]:
    """What the collator of CPO and ORPO makes: the prompt's labels are −100."""
    batch = {}
    for side, name in ((1, "chosen"), (2, "rejected")):
        texts = [[*pair[0], *pair[side]] for pair in pairs]
        batch[f"{name}_input_ids"] = _right(texts, pad)
        batch[f"{name}_attention_mask"] = _right([[1] * len(t) for t in texts], 0)
        batch[f"{name}_labels"] = _right([[-100] * len(pair[0]) + [*pair[side]] for pair in pairs], -100)
    return batch


def cpo(model: Transformer, pairs: Triples, pad: int, *, loss: str, beta: float, gamma: float = 0.0,
        label_smoothing: float = 0.0) -> Tensor:  # fmt: skip
    """CPOTrainer's loss without its likelihood term: "simpo" is SimPO's, "sigmoid" DPO's with a uniform reference."""
    made = trainer(
        CPOTrainer, model, beta=beta, simpo_gamma=gamma, loss_type=loss, alpha=0.0, cpo_alpha=0.0,
        label_smoothing=label_smoothing, is_encoder_decoder=False, pad_token_id=pad,
    )  # fmt: skip
    result: Tensor = made.get_batch_loss_metrics(made.model, _labelled(pairs, pad))[0]
    return result


@contextmanager
def _double() -> Iterator[None]:
    """ORPO's odds ratio is cast to float32 inside TRL; here the cast does nothing."""
    cast = Tensor.float
    with mock.patch.object(Tensor, "float", lambda self: self if self.is_floating_point() else cast(self)):
        yield


def orpo(model: Transformer, pairs: Triples, pad: int, *, beta: float) -> Tensor:
    """ORPOTrainer's loss: −log π of the chosen row, its prompt included, a mean over tokens, and the odds ratio."""
    made = trainer(ORPOTrainer, model, beta=beta, is_encoder_decoder=False, padding_value=pad)
    with _double():
        result: Tensor = made.get_batch_loss_metrics(made.model, _labelled(pairs, pad))[0]
    return result


# -- single answers ----------------------------------------------------------------------------------------------------


def kto(model: Transformer, reference: Transformer, rows: Sequence[tuple[Ids, Ids, bool]], pad: int, *, beta: float,
        desirable: float, undesirable: float, mismatched: Sequence[Ids] | None = None) -> Tensor:  # fmt: skip
    """KTOTrainer's loss of (prompt, answer, desirable?). The answer of the row before serves the KL estimate."""
    made = trainer(
        KTOTrainer, model, calculate_KL=True, precompute_ref_logps=False, use_liger_kernel=False, loss_type="kto",
        beta=beta, desirable_weight=desirable, undesirable_weight=undesirable,
    )  # fmt: skip
    made.ref_model = Readable(reference)
    answers = [answer for _, answer, _ in rows]
    others = mismatched if mismatched is not None else [answers[-1], *answers[:-1]]
    examples = [
        {"prompt_ids": [*p], "completion_ids": [*a], "KL_completion_ids": [*other], "label": good}
        for (p, a, good), other in zip(rows, others)
    ]
    batch = DataCollatorForUnpairedPreference(pad).torch_call(examples)
    result: Tensor = made._compute_loss(made.model, batch, False)
    return result


def reward(model: ValueHeadModel, pairs: Triples, pad: int, margins: Sequence[float] | None = None) -> Tensor:
    """RewardTrainer's loss of (prompt, chosen, rejected): chosen rows first, then the rejected ones."""
    made = trainer(RewardTrainer, model, args={"center_rewards_coefficient": None})
    texts = [[*pair[0], *pair[side]] for side in (1, 2) for pair in pairs]
    batch = {"input_ids": _right(texts, pad), "attention_mask": _right([[1] * len(t) for t in texts], 0)}
    if margins is not None:
        batch["margin"] = torch.tensor(margins, dtype=torch.float64)
    result: Tensor = made.compute_loss(made.model, batch)
    return result


# -- groups of rollouts ------------------------------------------------------------------------------------------------


class _Told:
    """Instead of sampling and judging: rollouts and rewards that are given."""

    rollouts: Answers
    given: Tensor

    def _calculate_rewards(self, *_: Any) -> Tensor:
        return self.given[:, None]


class _ToldGRPO(_Told, GRPOTrainer):  # type: ignore[misc]
    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        ids, answers = [[*p] for p, _ in self.rollouts], [[*a] for _, a in self.rollouts]
        self._metrics["train"]["told"].append(1.0)
        return ids, answers, None, ["" for _ in ids], None, {}, None, []


class _ToldRLOO(_Told, RLOOTrainer):  # type: ignore[misc]
    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        ids, answers = [[*p] for p, _ in self.rollouts], [[*a] for _, a in self.rollouts]
        return ids, answers, ["" for _ in ids]


def _group_trainer(cls: type, model: Transformer, rollouts: Answers, rewards: Tensor, pad: int, group: int,
                   **attributes: Any) -> Any:  # fmt: skip
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=-1, batch_decode=lambda ids, **_: ["" for _ in ids])
    logs: dict[str, Any] = {n: [] for n in ("prompt", "completion", "advantages", "images")}
    return trainer(
        cls, model, rollouts=rollouts, given=rewards, num_generations=group, num_generations_eval=group,
        reward_weights=torch.ones(1, dtype=torch.float64), reward_funcs=[None], reward_func_names=["told"],
        num_iterations=1,
        processing_class=tokenizer, _tokenizer=tokenizer, pad_to_multiple_of=None, mask_truncated_completions=False,
        environment_factories=None, environments=None, tools=None, use_vllm=False, model_kwarg_keys=set(),
        log_multimodal=False,
        _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, _is_vlm=False,
        _logs={**logs, "rewards": {"told": []}, "extra": {}}, _pending_extra_logs={}, _pending_metrics={},
        **attributes,
    )  # fmt: skip


def grpo(model: Transformer, old: Transformer, rollouts: Answers, rewards: Tensor, pad: int, *, group: int,
         loss: str, level: str = "token", scale: str = "group", low: float = 0.2, high: float = 0.2,
         temperature: float = 1.0, longest: int = 0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, advantages) of GRPOTrainer for (prompt, answer) rollouts of `old`; its KL term is left out (beta 0).

    The rollouts are scored and their old log-probabilities taken with `old`, as at the start of a step, and the loss is
    taken with `model`, as in a later minibatch of that step.
    """
    made = _group_trainer(
        _ToldGRPO, old, rollouts, rewards, pad, group, args={
            "steps_per_generation": 1, "gradient_accumulation_steps": 3, "per_device_train_batch_size": len(rollouts),
            "delta": None, "use_bias_correction_kl": False,
        },
        beta=0.0, temperature=temperature, loss_type=loss, importance_sampling_level=level, scale_rewards=scale,
        multi_objective_aggregation="sum_then_normalize", epsilon_low=low, epsilon_high=high,
        max_completion_length=longest,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, vllm_importance_sampling_correction=False,
        use_liger_kernel=False,
    )  # fmt: skip
    made.num_iterations = 2  # not one that divides the accumulation steps: old log-probabilities are then kept
    batch = made._generate_and_score_completions([{"prompt": ""} for _ in rollouts])
    assert "old_per_token_logps" in batch
    made.model = Readable(model).train()
    return made._compute_loss(made.model, batch), batch["advantages"]


def rloo(model: Transformer, old: Transformer, reference: Transformer, rollouts: Answers, rewards: Tensor, pad: int,
         *, group: int, beta: float, clip: float = 0.2, temperature: float = 1.0) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(loss, advantages) of RLOOTrainer: k1 in the reward, a baseline of the other answers, one ratio per answer."""
    made = _group_trainer(
        _ToldRLOO, old, rollouts, rewards, pad, group, args={"per_device_train_batch_size": len(rollouts)}, beta=beta,
        temperature=temperature, epsilon_low=clip, epsilon_high=clip, reward_clip_range=None,
        normalize_advantages=False,
    )  # fmt: skip
    made.ref_model = Readable(reference)
    batch = made._generate_and_score_completions([{"prompt": ""} for _ in rollouts])
    made.model = Readable(model).train()
    return made._compute_loss(made.model, batch), batch["advantages"]
