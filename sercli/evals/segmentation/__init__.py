"""Linear classifiers of patch tokens, scored pixel by pixel."""
