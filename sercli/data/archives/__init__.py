"""Images in files that hold many: tar, WebDataset, zip."""
