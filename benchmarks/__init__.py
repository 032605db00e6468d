"""Benchmarks: `python -m benchmarks` runs all that need no data set, `python -m benchmarks.NAME` runs one."""
