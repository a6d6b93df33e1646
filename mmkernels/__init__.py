"""Exact pairwise losses and kernels on paired data, in O(N) memory, with gradients, on a CPU or a GPU."""

from mmkernels import nn
from mmkernels.ops._solve import ConvergenceError
from mmkernels.ops.contrastive import info_nce, logsumexp_scores
from mmkernels.ops.kernel import (
    cosine_kernel,
    energy_kernel,
    exponential_kernel,
    kernel_matmul,
    kernel_matrix,
    laplacian_kernel,
    linear_kernel,
    matern_kernel,
    polynomial_kernel,
    rational_quadratic_kernel,
    rbf_kernel,
    sigmoid_kernel,
)
from mmkernels.ops.operator import KernelOperator
from mmkernels.ops.retrieval import ranks, recall_at_k, topk
from mmkernels.tiled._tiles import memory_budget, set_memory_budget

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "KernelOperator",
    "cosine_kernel",
    "energy_kernel",
    "exponential_kernel",
    "info_nce",
    "kernel_matmul",
    "kernel_matrix",
    "laplacian_kernel",
    "linear_kernel",
    "logsumexp_scores",
    "matern_kernel",
    "memory_budget",
    "nn",
    "polynomial_kernel",
    "ranks",
    "rational_quadratic_kernel",
    "rbf_kernel",
    "recall_at_k",
    "set_memory_budget",
    "sigmoid_kernel",
    "topk",
]
