"""The microworld's own tasks, one file each; they register themselves."""
