"""Weights to tokens and probabilities: generation, chat, the language-model protocol, reward scores, HTTP."""
