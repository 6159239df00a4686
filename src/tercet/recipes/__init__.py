"""Python functions that chain the stages."""
