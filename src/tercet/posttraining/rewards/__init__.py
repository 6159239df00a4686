"""Rewards of every kind, and best-of-n."""
