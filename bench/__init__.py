"""Measurements of every op against its peers: time, CPU-seconds and peak memory, alternating in one run."""
