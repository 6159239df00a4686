"""Kernels of the model: products with weight matrices, and cross entropy without all logits at once."""
