"""The doctor, which checks runs, and attention patterns."""
