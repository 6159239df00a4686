"""The microworld's evaluation tasks, one file each; they register themselves."""
