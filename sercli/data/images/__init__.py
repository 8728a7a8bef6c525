"""Class folders of image files."""
