"""Benchmarks: each prints a table with ratios from one run; none asserts on seconds."""
