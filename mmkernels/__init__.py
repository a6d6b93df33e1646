"""Exact pairwise losses and kernels on paired data, in O(N) memory, with gradients, on a CPU or a GPU.

What is public is imported on first use, and no more of the package than that needs.
"""

import importlib
import typing

from mmkernels import _dispatch as _dispatch  # defines the operators, which exported programs call by name

if typing.TYPE_CHECKING:
    from mmkernels import nn as nn
    from mmkernels.ops import bounds as bounds
    from mmkernels.ops._solve import ConvergenceError as ConvergenceError
    from mmkernels.ops.approximation import approximate_test as approximate_test
    from mmkernels.ops.approximation import wild_bootstrap_test as wild_bootstrap_test
    from mmkernels.ops.cca import canonical_correlations as canonical_correlations
    from mmkernels.ops.cca import cca_loss as cca_loss
    from mmkernels.ops.cca import gcca_loss as gcca_loss
    from mmkernels.ops.cca import mcca_loss as mcca_loss
    from mmkernels.ops.conditional import conditional_entropy as conditional_entropy
    from mmkernels.ops.conditional import conditional_mutual_information as conditional_mutual_information
    from mmkernels.ops.conditional import interaction_information as interaction_information
    from mmkernels.ops.contrastive import info_nce as info_nce
    from mmkernels.ops.contrastive import logsumexp_scores as logsumexp_scores
    from mmkernels.ops.covariance import Covariance as Covariance
    from mmkernels.ops.covariance import covariance as covariance
    from mmkernels.ops.decorrelation import barlow_twins_loss as barlow_twins_loss
    from mmkernels.ops.decorrelation import sdl_loss as sdl_loss
    from mmkernels.ops.decorrelation import vicreg_loss as vicreg_loss
    from mmkernels.ops.dependence import cka as cka
    from mmkernels.ops.dependence import dhsic as dhsic
    from mmkernels.ops.dependence import distance_correlation as distance_correlation
    from mmkernels.ops.dependence import distance_covariance as distance_covariance
    from mmkernels.ops.dependence import hsic as hsic
    from mmkernels.ops.information import entropy as entropy
    from mmkernels.ops.information import mutual_information as mutual_information
    from mmkernels.ops.information import total_correlation as total_correlation
    from mmkernels.ops.kernel import cosine_kernel as cosine_kernel
    from mmkernels.ops.kernel import energy_kernel as energy_kernel
    from mmkernels.ops.kernel import exponential_kernel as exponential_kernel
    from mmkernels.ops.kernel import kernel_matmul as kernel_matmul
    from mmkernels.ops.kernel import kernel_matrix as kernel_matrix
    from mmkernels.ops.kernel import laplacian_kernel as laplacian_kernel
    from mmkernels.ops.kernel import linear_kernel as linear_kernel
    from mmkernels.ops.kernel import matern_kernel as matern_kernel
    from mmkernels.ops.kernel import polynomial_kernel as polynomial_kernel
    from mmkernels.ops.kernel import rational_quadratic_kernel as rational_quadratic_kernel
    from mmkernels.ops.kernel import rbf_kernel as rbf_kernel
    from mmkernels.ops.kernel import sigmoid_kernel as sigmoid_kernel
    from mmkernels.ops.mmd import energy_distance as energy_distance
    from mmkernels.ops.mmd import mmd as mmd
    from mmkernels.ops.operator import KernelOperator as KernelOperator
    from mmkernels.ops.permutation import SignificanceResult as SignificanceResult
    from mmkernels.ops.permutation import permutation_test as permutation_test
    from mmkernels.ops.renyi import RenyiEstimate as RenyiEstimate
    from mmkernels.ops.renyi import renyi_entropy as renyi_entropy
    from mmkernels.ops.retrieval import ranks as ranks
    from mmkernels.ops.retrieval import recall_at_k as recall_at_k
    from mmkernels.ops.retrieval import topk as topk
    from mmkernels.ops.running import RunningCovariance as RunningCovariance
    from mmkernels.ops.whitening import inverse_sqrt as inverse_sqrt
    from mmkernels.ops.whitening import whiten as whiten
    from mmkernels.tiled._tiles import memory_budget as memory_budget
    from mmkernels.tiled._tiles import set_memory_budget as set_memory_budget

__version__ = "0.1.0"

_HOMES = {
    "ops._solve": ("ConvergenceError",),
    "ops.approximation": ("approximate_test", "wild_bootstrap_test"),
    "ops.cca": ("canonical_correlations", "cca_loss", "gcca_loss", "mcca_loss"),
    "ops.conditional": ("conditional_entropy", "conditional_mutual_information", "interaction_information"),
    "ops.contrastive": ("info_nce", "logsumexp_scores"),
    "ops.covariance": ("Covariance", "covariance"),
    "ops.decorrelation": ("barlow_twins_loss", "sdl_loss", "vicreg_loss"),
    "ops.dependence": ("cka", "dhsic", "distance_correlation", "distance_covariance", "hsic"),
    "ops.information": ("entropy", "mutual_information", "total_correlation"),
    "ops.kernel": (
        "cosine_kernel",
        "energy_kernel",
        "exponential_kernel",
        "kernel_matmul",
        "kernel_matrix",
        "laplacian_kernel",
        "linear_kernel",
        "matern_kernel",
        "polynomial_kernel",
        "rational_quadratic_kernel",
        "rbf_kernel",
        "sigmoid_kernel",
    ),
    "ops.mmd": ("energy_distance", "mmd"),
    "ops.operator": ("KernelOperator",),
    "ops.permutation": ("SignificanceResult", "permutation_test"),
    "ops.renyi": ("RenyiEstimate", "renyi_entropy"),
    "ops.retrieval": ("ranks", "recall_at_k", "topk"),
    "ops.running": ("RunningCovariance",),
    "ops.whitening": ("inverse_sqrt", "whiten"),
    "tiled._tiles": ("memory_budget", "set_memory_budget"),
}
_MODULES = {"bounds": "ops.bounds", "nn": "nn"}
__all__ = [*_MODULES, *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> object:
    """Import what is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = _MODULES.get(name) or next(home for home, names in _HOMES.items() if name in names)
    module = importlib.import_module(f"mmkernels.{home}")
    globals()[name] = module if name in _MODULES else getattr(module, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
