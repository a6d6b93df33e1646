"""Streaming reductions in Triton, for GPUs: the twins, name for name, of the tiles in `tiled/`."""
