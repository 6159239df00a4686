"""Named scorers of answers, the sandbox for code, and files of scores."""
