"""Exact pairwise losses and kernels on paired data, in O(N) memory, with gradients, on a CPU or a GPU."""

import importlib
import typing

from mmkernels import nn
from mmkernels.ops._solve import ConvergenceError
from mmkernels.ops.contrastive import info_nce, logsumexp_scores
from mmkernels.ops.covariance import Covariance, covariance
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
from mmkernels.ops.whitening import inverse_sqrt, whiten
from mmkernels.tiled._tiles import memory_budget, set_memory_budget

if typing.TYPE_CHECKING:
    from mmkernels.ops import bounds
    from mmkernels.ops.approximation import approximate_test, wild_bootstrap_test
    from mmkernels.ops.cca import canonical_correlations, cca_loss, gcca_loss, mcca_loss
    from mmkernels.ops.conditional import (
        conditional_entropy,
        conditional_mutual_information,
        interaction_information,
    )
    from mmkernels.ops.decorrelation import barlow_twins_loss, sdl_loss, vicreg_loss
    from mmkernels.ops.dependence import cka, dhsic, distance_correlation, distance_covariance, hsic
    from mmkernels.ops.information import entropy, mutual_information, total_correlation
    from mmkernels.ops.mmd import energy_distance, mmd
    from mmkernels.ops.permutation import SignificanceResult, permutation_test
    from mmkernels.ops.renyi import RenyiEstimate, renyi_entropy
    from mmkernels.ops.running import RunningCovariance

__version__ = "0.1.0"

_LATER = (
    *("cca", "decorrelation", "running", "dependence", "mmd", "permutation", "approximation"),
    *("information", "conditional", "renyi"),
)


def __getattr__(name: str) -> object:
    """Import what few programs use on first use: importing mmkernels stays fast."""
    if name == "bounds":
        return importlib.import_module("mmkernels.ops.bounds")
    if name in __all__:
        for home in _LATER:
            module = importlib.import_module(f"mmkernels.ops.{home}")
            if hasattr(module, name):
                globals()[name] = getattr(module, name)
                return globals()[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "ConvergenceError",
    "Covariance",
    "KernelOperator",
    "RenyiEstimate",
    "RunningCovariance",
    "SignificanceResult",
    "approximate_test",
    "barlow_twins_loss",
    "bounds",
    "canonical_correlations",
    "cca_loss",
    "cka",
    "conditional_entropy",
    "conditional_mutual_information",
    "cosine_kernel",
    "covariance",
    "dhsic",
    "distance_correlation",
    "distance_covariance",
    "energy_distance",
    "energy_kernel",
    "entropy",
    "exponential_kernel",
    "gcca_loss",
    "hsic",
    "info_nce",
    "interaction_information",
    "inverse_sqrt",
    "kernel_matmul",
    "kernel_matrix",
    "laplacian_kernel",
    "linear_kernel",
    "logsumexp_scores",
    "matern_kernel",
    "mcca_loss",
    "memory_budget",
    "mmd",
    "mutual_information",
    "nn",
    "permutation_test",
    "polynomial_kernel",
    "ranks",
    "rational_quadratic_kernel",
    "rbf_kernel",
    "recall_at_k",
    "renyi_entropy",
    "sdl_loss",
    "set_memory_budget",
    "sigmoid_kernel",
    "topk",
    "total_correlation",
    "vicreg_loss",
    "whiten",
    "wild_bootstrap_test",
]
