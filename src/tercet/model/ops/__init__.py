"""Kernels of the model: matrix products, and cross entropy without all logits in memory at once."""
