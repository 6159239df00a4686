"""Other programs' formats: models written for transformers, models read from llama2.c, and an lm-eval model."""
