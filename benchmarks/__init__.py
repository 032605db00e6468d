"""Measurements of the program: `python -m benchmarks` runs those without data sets, `python -m benchmarks.NAME` one."""
