"""Instruction tuning (supervised fine-tuning)."""
