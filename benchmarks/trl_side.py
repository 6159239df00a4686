"""TRL's side of the comparison: its trainers as a user calls them, at their best settings for a CPU.

Left as they are: the loop, the collators, the losses, the sampler. Set against the defaults: float32 without gradient
checkpointing (the defaults are bfloat16 with it, both slower here), no checkpoints, no reports, and the same optimizer,
learning rate and schedule as tercet's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rule import rule
from workload import Shape, rows_of


def _conversations(folder: Path, name: str) -> Any:
    from datasets import Dataset

    return Dataset.from_list(rows_of(folder, f"{name}.jsonl"))


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _pairs(folder: Path) -> Any:
    from datasets import Dataset

    rows = []
    for row in rows_of(folder, "pairs.jsonl"):
        answers = {k: [{"role": "assistant", "content": row[k]}] for k in ("chosen", "rejected")}
        rows.append({"prompt": _user(row["prompt"]), **answers})
    return Dataset.from_list(rows)


def letters(completions: list[Any], **_: Any) -> list[float]:
    """The plain function as TRL calls it: with all answers of a batch."""
    return [rule(None, c[0]["content"], None) for c in completions]


def run(task: str, folder: Path, shape: Shape, out: Path, stamps: Any) -> None:
    """Do `task` with the data in `folder`, as `tercet_side.run`."""
    import torch

    torch.set_num_threads(shape.threads)
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback

    class Stamp(TrainerCallback):  # type: ignore[misc]
        """Notes when a step is done, and its loss where it is logged."""

        def on_step_end(self, *_: Any, **__: Any) -> None:
            stamps.stamp()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "loss" in logs:
                stamps.losses.append(float(logs["loss"]))

    def language() -> Any:
        return AutoModelForCausalLM.from_pretrained(folder / "hf" / "base", dtype=torch.float32)

    def scalar(name: str) -> Any:
        return AutoModelForSequenceClassification.from_pretrained(folder / "hf" / name, dtype=torch.float32)

    tokenizer = AutoTokenizer.from_pretrained(folder / "hf" / "base")
    common: dict[str, Any] = {
        "output_dir": str(out), "max_steps": shape.steps, "learning_rate": shape.lr, "lr_scheduler_type": "constant",
        "adam_beta2": 0.95, "max_grad_norm": 1.0, "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
        "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1,
    }  # fmt: skip
    made: dict[str, Any] = {"processing_class": tokenizer, "callbacks": [Stamp()]}
    trainer: Any
    if task.startswith("sft"):
        from trl import SFTConfig, SFTTrainer

        data, rows = ("chats", shape.rows) if task == "sft" else ("varied", shape.varied)
        config = SFTConfig(
            **common, per_device_train_batch_size=rows, max_length=shape.context, assistant_only_loss=True
        )
        trainer = SFTTrainer(language(), config, train_dataset=_conversations(folder, data), **made)
    elif task == "reward":
        from trl import RewardConfig, RewardTrainer

        config = RewardConfig(**common, per_device_train_batch_size=shape.pairs)
        trainer = RewardTrainer(scalar("head"), config, train_dataset=_pairs(folder), **made)
    elif task.startswith("dpo"):
        from trl import DPOConfig, DPOTrainer

        # "dpo" as it comes: the reference runs in every step; "dpo-precomputed": once before, as in tercet
        config = DPOConfig(
            **common, per_device_train_batch_size=shape.pairs, precompute_ref_log_probs=task == "dpo-precomputed"
        )
        trainer = DPOTrainer(language(), args=config, train_dataset=_pairs(folder), **made)
    elif task == "grpo":
        from datasets import Dataset
        from trl import GRPOConfig, GRPOTrainer

        config = GRPOConfig(
            **common, per_device_train_batch_size=shape.prompts * shape.group, num_generations=shape.group,
            max_completion_length=shape.new_tokens, loss_type="grpo",
        )  # fmt: skip
        asked = Dataset.from_list([{"prompt": _user(row["prompt"])} for row in rows_of(folder, "tasks.jsonl")])
        trainer = GRPOTrainer(language(), letters, config, train_dataset=asked, **made)
    else:
        from datasets import Dataset
        from trl.experimental.ppo import PPOConfig, PPOTrainer

        ids = [
            tokenizer.apply_chat_template(_user(row["prompt"]), add_generation_prompt=True, return_dict=False)
            for row in rows_of(folder, "tasks.jsonl")
        ]
        del common["max_steps"]
        config = PPOConfig(
            **common, per_device_train_batch_size=shape.rollouts, total_episodes=shape.rollouts * shape.steps,
            num_ppo_epochs=1, response_length=shape.new_tokens, temperature=1.0, stop_token="eos",
            num_sample_generations=0,
            local_rollout_forward_batch_size=shape.rollouts,
        )  # fmt: skip
        trainer = PPOTrainer(
            args=config, model=language(), ref_model=None, reward_model=scalar("judge"), value_model=scalar("judge"),
            train_dataset=Dataset.from_dict({"input_ids": ids}), **made,
        )  # fmt: skip
    trainer.train()
