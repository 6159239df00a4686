"""Run directories to a page that a person reads."""
