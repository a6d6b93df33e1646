"""Exact pairwise losses and kernels on paired data, in O(N) memory, with gradients, on a CPU or a GPU."""

from mmkernels import nn
from mmkernels.ops._solve import ConvergenceError
from mmkernels.ops.cca import canonical_correlations, cca_loss, gcca_loss, mcca_loss
from mmkernels.ops.contrastive import info_nce, logsumexp_scores
from mmkernels.ops.covariance import Covariance, covariance
from mmkernels.ops.decorrelation import barlow_twins_loss, sdl_loss, vicreg_loss
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
from mmkernels.ops.running import RunningCovariance
from mmkernels.ops.whitening import inverse_sqrt, whiten
from mmkernels.tiled._tiles import memory_budget, set_memory_budget

__version__ = "0.1.0"

__all__ = [
    "ConvergenceError",
    "Covariance",
    "KernelOperator",
    "RunningCovariance",
    "barlow_twins_loss",
    "canonical_correlations",
    "cca_loss",
    "cosine_kernel",
    "covariance",
    "energy_kernel",
    "exponential_kernel",
    "gcca_loss",
    "info_nce",
    "inverse_sqrt",
    "kernel_matmul",
    "kernel_matrix",
    "laplacian_kernel",
    "linear_kernel",
    "logsumexp_scores",
    "matern_kernel",
    "mcca_loss",
    "memory_budget",
    "nn",
    "polynomial_kernel",
    "ranks",
    "rational_quadratic_kernel",
    "rbf_kernel",
    "recall_at_k",
    "sdl_loss",
    "set_memory_budget",
    "sigmoid_kernel",
    "topk",
    "vicreg_loss",
    "whiten",
]
