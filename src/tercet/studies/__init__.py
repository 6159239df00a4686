"""Experiments that answer a question of the lecture, in one form."""
