"""Instruction tuning, rankings, reward model, PPO."""
