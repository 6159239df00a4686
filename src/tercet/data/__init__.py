"""Read, check and split input data: text, conversations, comparisons, feedback and questions."""
