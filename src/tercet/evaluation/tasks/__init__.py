"""The tasks that come with tercet, one file each. Each file makes one `TASK`; adding a file adds a task."""
