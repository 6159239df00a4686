"""The study of in-context learning: how a small model comes to learn from its prompt alone."""
