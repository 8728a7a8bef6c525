"""Run directories: every file name, and how files are written."""
