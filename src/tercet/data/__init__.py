"""Text, conversations and comparisons in: reading, checking, splitting, and the microworld generator."""
