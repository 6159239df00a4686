"""What is wrong with a run, and what a model attends to."""
