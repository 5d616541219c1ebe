"""Benchmarks of stdeform: one command line, `python -m benchmarks`, on named workloads."""
