"""Mutual information as estimator objects, with the protocol of the benchmark-mi package."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length

from mmkernels.ops.information import mutual_information


class Parameters(SimpleNamespace):
    """An estimator's parameters, with the methods by which pydantic's models are read."""

    def dict(self) -> dict[str, Any]:
        """Return them by name."""
        return dict(vars(self))

    model_dump = dict


class _Information(BaseEstimator):  # type: ignore[misc]
    def _arguments(self) -> dict[str, Any]:
        """What `mutual_information` is called with."""
        raise NotImplementedError

    def estimate(self, x: Any, y: Any) -> float:
        """Return the mutual information of rows x (N, D_x) and y (N, D_y), or (N,), in nats."""
        arrays = [check_array(np.asarray(a), ensure_2d=False, input_name=name) for name, a in (("x", x), ("y", y))]
        check_consistent_length(*arrays)
        tensors = [torch.from_numpy(np.array(a.reshape(len(a), -1), dtype=np.float64)) for a in arrays]
        return float(mutual_information(tensors[0], tensors[1], **self._arguments()))

    def parameters(self) -> Parameters:
        """Return the parameters, for benchmark-mi."""
        return Parameters(**self.get_params())


class KSG(_Information):
    """`mmkernels.mutual_information` by nearest neighbours (Kraskov, Stogbauer and Grassberger 2004), in float64.

    An estimator of the benchmark-mi package: `estimate(x, y)` and `parameters()`.

    Args:
        k: which neighbour.
        variant: 1 or 2, the paper's algorithm.

    Example:
        >>> import numpy as np
        >>> from mmkernels.estimators import KSG
        >>> x = np.random.default_rng(0).normal(size=1000)
        >>> KSG(k=3).estimate(x, x + np.random.default_rng(1).normal(size=1000)) > 0.2
        True
    """

    def __init__(self, k: int = 3, *, variant: int = 1) -> None:
        self.k = k
        self.variant = variant

    def _arguments(self) -> dict[str, Any]:
        if self.variant not in (1, 2):
            raise ValueError(f"variant must be 1 or 2, got {self.variant!r}")
        return {"method": f"ksg{self.variant}", "k": self.k}


class KDE(_Information):
    """`mmkernels.mutual_information` by leave-one-out kernel densities, in float64; the protocol of `KSG`.

    Args:
        bandwidth: "scott", a positive number, or a pair.
    """

    def __init__(self, bandwidth: Any = "scott") -> None:
        self.bandwidth = bandwidth

    def _arguments(self) -> dict[str, Any]:
        return {"method": "kde", "bandwidth": self.bandwidth}


class GaussianMI(_Information):
    """`mmkernels.mutual_information` of normal data, from canonical correlations; the protocol of `KSG`.

    Args:
        reg: added to the variances.
    """

    def __init__(self, reg: float = 0.0) -> None:
        self.reg = reg

    def _arguments(self) -> dict[str, Any]:
        return {"method": "gaussian", "reg": self.reg}
