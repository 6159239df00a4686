"""Reinforcement learning: PPO and the group methods."""
