"""Convert text to ids and back: byte-level BPE and the chat renderer."""
