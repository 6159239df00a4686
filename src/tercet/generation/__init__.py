"""Weights to tokens: the batched, KV-cached sampler."""
