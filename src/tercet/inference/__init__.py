"""Use of trained models: generation, chat, the language-model interface, reward scores, HTTP clients."""
