"""The microworld: a small, consistent world that generates texts, questions with gold answers and demonstrations."""
