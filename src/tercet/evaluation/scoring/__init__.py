"""What an answer is worth: named scorers, and how foreign code is run."""
