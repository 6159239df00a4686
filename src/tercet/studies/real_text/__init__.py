"""Studies of text and choices that people wrote and made."""
