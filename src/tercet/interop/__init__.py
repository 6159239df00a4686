"""Formats of other programs: export to transformers, import from llama2.c, and a model for lm-eval."""
