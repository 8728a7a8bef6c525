"""Sets of images that a text file lists: a path a line, with a label or without."""
