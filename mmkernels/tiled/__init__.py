"""Streaming reductions in tiled PyTorch, for any device: the twins of the Triton kernels, name for name."""
