"""Ids to logits: the transformer and its heads."""
