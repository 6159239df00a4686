"""Tasks that come with tercet: every file here has one `TASK`, and a new file is a new task."""
