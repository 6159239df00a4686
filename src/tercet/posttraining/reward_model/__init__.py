"""The reward model, from rankings."""
