"""RLHF: PPO on E[r(x,y)] − β log(π(y|x)/π_SFT(y|x)) + γ E_pretrain[log π(x)] (Ouyang et al. 2022, equation 2)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tercet.data.readers import BadRows, documents, fingerprints
from tercet.data.tasks import questions
from tercet.errors import ConfigError
from tercet.evaluation.answers import score_answers
from tercet.evaluation.likelihood import average, bits_per_byte, by_source
from tercet.generation.chat import answer_params, fit_prompts
from tercet.model.transformer import ScalarModel, Transformer
from tercet.posttraining.config import PPOConfig
from tercet.posttraining.reward import check_contexts, score_texts
from tercet.posttraining.rollouts import (
    Rollouts,
    action_logprobs,
    advantages_and_returns,
    assemble,
    judge,
    place_rewards,
    sample,
    whiten,
)
from tercet.pretraining.clm import build_feed, limit_bytes
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat import answer_text
from tercet.training.feed import Feed, permuted
from tercet.training.fit import due
from tercet.training.learner import Learner
from tercet.training.load import language_model_run, load_language_model, load_reward_model, reward_model_run
from tercet.training.objectives import next_token
from tercet.training.optim import OptimizerConfig, schedule, total_norm
from tercet.training.progress import Progress
from tercet.training.run import Run, threads
from tercet.training.settings import shares


def policy_objective(clip: float, temperature: float) -> Any:
    """The clipped surrogate (Schulman et al. 2017, equation 7), summed over actions, as a loss."""

    def objective(model: Transformer, batch: Rollouts) -> tuple[Tensor, dict[str, float]]:
        logp, entropy = action_logprobs(model, batch.tokens, batch.action_mask, temperature)
        ratio = (logp - batch.logp[batch.action_mask]).exp()
        advantage = batch.advantages[batch.action_mask]
        clipped = ratio.clamp(1 - clip, 1 + clip)
        loss = -torch.minimum(ratio * advantage, clipped * advantage).double().sum()
        with torch.no_grad():
            outside = ((ratio - 1).abs() > clip).double().sum()
        return loss, {
            "policy_loss": float(loss.detach()),
            "entropy": float(entropy.detach().double().sum()),
            "clip_fraction": float(outside),
        }

    return objective


def value_objective(critic: ScalarModel, batch: Rollouts) -> tuple[Tensor, dict[str, float]]:
    """½ (V − return)², summed over actions."""
    values = critic(batch.tokens[:, :-1])[batch.action_mask]
    loss = 0.5 * (values - batch.returns[batch.action_mask]).double().square().sum()
    return loss, {"value_loss": float(loss.detach())}


class _PPO:
    """One run of PPO: its models, its data, and one step of it."""

    def __init__(self, config: PPOConfig, run: Run, sft: Run, reward: Run) -> None:
        self.config, self.run = config, run
        self.tokenizer = Tokenizer.load(sft.path)
        if Tokenizer.load(reward.path).fingerprint() != self.tokenizer.fingerprint():
            raise ConfigError(
                f"{reward.path} and {sft.path} have different tokenizers; train the reward model from the same model"
            )
        self.tokenizer.save(run.path / "tokenizer.json")
        self.reference, self.reward_model = load_language_model(sft), load_reward_model(reward)
        check_contexts(self.reward_model, self.reference, reward, sft)
        run.save_model_config(self.reference.config)
        optimizer = OptimizerConfig.of(config, eps=1e-5)  # Huang et al. 2024, detail 7
        self.policy = Learner(copy.deepcopy(self.reference), optimizer)
        self.critic = Learner(
            copy.deepcopy(self.reward_model),
            OptimizerConfig(config.critic_lr, 0.0, eps=1e-5, clip_norm=config.clip_norm),
        )
        self.params = answer_params(self.tokenizer, config.max_new_tokens, config.temperature)
        self._load_data()

    def _load_data(self) -> None:
        config, bad = self.config, BadRows(skip=self.config.skip_bad_rows)
        found = list(questions(config.prompts, bad))
        self.tasks = [task for _, _, task in found]
        asked = [(where, prompt) for where, prompt, _ in found]
        self.prompts = fit_prompts(self.tokenizer, asked, self.reference.config.context_length, config.max_new_tokens)
        self.text: Feed | None = None
        if config.gamma > 0:
            self.text = build_feed(
                self.tokenizer, by_source(list(documents(config.pretrain_data, bad))), shares(config.pretrain_mixture, "pretrain_mixture"),
                self.reference.config.context_length, config.pretrain_rows, config.seed,
            )  # fmt: skip
        self.heldout = (
            limit_bytes(list(documents(config.heldout_text, bad)), config.heldout_bytes) if config.heldout_text else []
        )
        self.run.log_skipped(bad.count, bad.messages)

    def collect(self, step: int) -> tuple[Rollouts, dict[str, float]]:
        """Answers to the prompts of this step, with their rewards, values and advantages; and what to log of them."""
        config = self.config
        numbers = [
            permuted(step * config.batch_size + i, len(self.prompts), (config.seed, 2))
            for i in range(config.batch_size)
        ]
        prompts = [self.prompts[n] for n in numbers]
        seeds = [(config.seed * 1_000_003 + step) * 65_537 + i for i in range(len(prompts))]
        done = sample(self.policy.model, prompts, self.params, seeds)
        tokens, mask = assemble(prompts, done, self.tokenizer.pad)
        answers = [answer_text(self.tokenizer, c.tokens) for c in done]
        scores = score_texts(self.reward_model, [[*p, *c.tokens] for p, c in zip(prompts, done)], self.tokenizer.pad)
        finished = torch.tensor([f for _, f in answers])
        rewards = torch.where(finished, torch.tensor(scores), config.missing_eos_score)
        logp, ref_logp, values = judge(
            tokens, mask, self.policy.model, self.reference, self.critic.model, config.temperature
        )
        kl = (logp - ref_logp) * mask
        advantages, returns = advantages_and_returns(
            place_rewards(rewards, kl, mask, config.beta), values, mask, config.discount, config.gae_lambda
        )
        residual, spread = (returns - values)[mask], returns[mask]
        metrics = {
            "reward": float(rewards.mean()), "kl": float(kl.sum(1).mean()), "finished": float(finished.float().mean()),
            "length": float(mask.sum(1).float().mean()),
            "explained_variance": 1.0 - float(residual.var(correction=0) / spread.var(correction=0).clamp(min=1e-8)),
        }  # fmt: skip
        if known := [(task, a) for n, a in zip(numbers, answers) if (task := self.tasks[n]) is not None]:
            metrics["gold"] = score_answers([t for t, _ in known], [a for _, a in known]).mean_rubric.value
        if config.whiten_advantages:
            advantages = whiten(advantages, mask)
        return Rollouts(tokens, mask, logp, ref_logp, values, advantages, returns, rewards), metrics

    def update(self, step: int, rollouts: Rollouts) -> dict[str, float]:
        """Policy, critic and pretraining gradients, then one optimizer step, for every minibatch of every epoch."""
        config, size = self.config, self.config.batch_size // self.config.minibatches
        scale = schedule(step, config.steps, config.warmup, config.decay)
        objective = policy_objective(config.clip, config.temperature)
        metrics: dict[str, float] = {}
        for number in range(config.epochs * config.minibatches):
            rows = torch.tensor(
                [permuted(number * size + i, config.batch_size, (config.seed, 4, step)) for i in range(size)]
            )
            batches = list(rollouts.rows(rows).split(config.micro_batch or size))
            metrics |= self.policy.forward_backward(batches, objective)
            if self.text is not None:
                before = [g.clone() for g in self.policy.optimizer.gradients()]
                text = [self.text.batch(step * config.epochs * config.minibatches + number)]
                metrics["pretrain_loss"] = self.policy.forward_backward(text, next_token, coef=config.gamma)["loss"]
                added = total_norm(a - b for a, b in zip(self.policy.optimizer.gradients(), before))
                metrics["ptx_gradient_ratio"] = added / max(total_norm(before), 1e-12)
            metrics["grad_norm"] = self.policy.optim_step(scale)
            metrics |= self.critic.forward_backward(batches, value_objective)
            metrics["critic_grad_norm"] = self.critic.optim_step(scale)
        return metrics

    def measure(self, done: int) -> None:
        """Held-out bits per byte of the policy: what alignment costs (the alignment tax)."""
        if self.heldout:
            bits = bits_per_byte(self.policy.model, self.tokenizer, self.heldout)
            self.run.log(done, **{f"heldout/{s}": e.value for s, e in bits.items()}, heldout=average(bits))

    def save(self, done: int) -> None:
        """Checkpoint of policy, critic and both optimizers."""
        policy, critic = self.policy.state(), self.critic.state()
        tensors = {**policy, "critic": critic["model"], "critic_optimizer": critic["optimizer"]}
        self.run.save_checkpoint(done, tensors, {"updates": self.policy.step}, self.config.keep)

    def restore(self) -> int:
        """Take over the newest checkpoint, if there is one; returns the steps done."""
        if (saved := self.run.load_checkpoint()) is None:
            return 0
        tensors, state = saved
        self.policy.load(tensors["model"], tensors["optimizer"], state["updates"])
        self.critic.load(tensors["critic"], tensors["critic_optimizer"], state["updates"])
        return int(state["step"])


def ppo(config: PPOConfig, out: str | Path, *, resume: bool = False, progress: Progress | None = None) -> Run:
    """Train a policy against a reward model; returns its run.

    Raises ConfigError, DataError, ContextError on bad input, NonFiniteError where training diverges.
    """
    sft, reward = language_model_run(config.model), reward_model_run(config.reward)
    parents = {"model": sft, "reward": reward}
    with (
        Run.start("ppo", config, out, parents=parents, resume=resume, progress=progress) as run,
        threads(config.threads),
    ):
        run.pin_inputs(fingerprints(config.prompts, config.pretrain_data, config.heldout_text))
        trainer = _PPO(config, run, sft, reward)
        done = trainer.restore()
        with run.training(config.steps):
            if done == 0:
                with run.at_step(0):
                    trainer.measure(0)
            while done < config.steps:
                with run.at_step(done):
                    rollouts, metrics = trainer.collect(done)
                    metrics |= trainer.update(done, rollouts)
                done += 1
                run.log(done, **metrics)
                run.progress.step(done, {k: metrics[k] for k in ("reward", "kl", "gold") if k in metrics})
                if due(done, config.eval_every, config.steps):
                    with run.at_step(done):
                        trainer.measure(done)
                if due(done, config.checkpoint_every, config.steps):
                    trainer.save(done)
                run.stop_if_interrupted(done, lambda: trainer.save(done))  # noqa: B023
    return run
