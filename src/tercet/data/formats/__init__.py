"""Rows of files to data types, one format a file, and back."""
