"""Evaluation of models: prompting, tasks and suites, scorers, judges, baselines and comparisons."""
