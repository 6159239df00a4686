"""Scaling laws: ladders of runs, fits, predictions, and the budget planner."""
