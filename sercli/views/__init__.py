"""What the encoder sees of an image, and a record of it."""
