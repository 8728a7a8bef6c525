"""Runs as people keep an eye on them: how they stand, what they hold, what can go; no torch."""
