"""Single entries of a kernel matrix, and parameters that serve any part of it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmkernels import _check
from mmkernels.ops._bandwidth import median_distance
from mmkernels.ops._kernels import multiplier
from mmkernels.ops.kernel import kernel_matrix


def entries(x: Tensor, y: Tensor, kernel: str, parameters: dict[str, Any]) -> Tensor:
    """k(x_i, y_i) of rows x (..., n, D) and y (..., n, D), each pair on its own: (..., n)."""
    # Pairs become a batch dimension, the last one, which parameters with batch dimensions do not have yet.
    wide = {name: p.unsqueeze(-3) if isinstance(p, Tensor) and p.ndim > 1 else p for name, p in parameters.items()}
    return kernel_matrix(x[..., None, :], y[..., None, :], kernel, **wide)[..., 0, 0]


def data_driven(x: Tensor, y: Tensor | None, kernel: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters with numbers for "median" and "scale", which rows of x alone would give other ones."""
    named = {name for name, value in parameters.items() if isinstance(value, str)}
    if "length_scale" in named:
        _check.choice("length_scale", parameters["length_scale"], ("median",))
        parameters = parameters | {"length_scale": median_distance(x, y, p=2)}
    if "gamma" in named:
        parameters = parameters | {"gamma": multiplier(parameters["gamma"], x, y, kernel)}
    return parameters
