"""Measurements against the dense formula: time, CPU-seconds and peak memory, alternating in one run."""
