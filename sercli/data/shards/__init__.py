"""Copies of sets of images for fast reading: shards of tar or Arrow, and a cache of them."""
