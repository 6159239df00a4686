"""Estimates with intervals, significance tests, win rates and Bradley–Terry ratings."""
