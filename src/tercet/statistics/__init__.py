"""Estimates with intervals, tests, and comparisons of pairs."""
