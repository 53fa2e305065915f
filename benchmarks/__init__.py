"""Paired timings. Run one with ``python -m benchmarks.NAME``."""
