"""Next-token prediction on raw text."""
