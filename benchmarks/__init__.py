"""The program against the machine's limits: `python -m benchmarks` runs everything, `python -m benchmarks.NAME` one."""
