"""Sets of images in tables: parquet files as Hugging Face stores them, and Arrow files."""
