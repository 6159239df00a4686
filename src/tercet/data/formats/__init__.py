"""Convert rows of JSONL files to data types and back; one module for each kind of data."""
