"""Measurements of speed, memory and robustness.

Run them from the repository root: ``python -m benchmarks.speed.run --help``.
"""
