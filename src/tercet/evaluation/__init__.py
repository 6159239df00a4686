"""Measuring models: metrics with intervals, baselines, prompting, exact match."""
