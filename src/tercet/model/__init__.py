"""The transformer, its heads and LoRA: token ids in, logits out."""
