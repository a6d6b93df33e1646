"""Leave-one-out kernel density estimates as log-sum-exps, in O(N) memory."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.autograd.logsumexp import logsumexp

Bandwidth = float | str | Tensor


def scaled(x: Tensor, bandwidth: Bandwidth, name: str = "bandwidth") -> tuple[Tensor, Tensor]:
    """x (N, D), centred, over its bandwidths; and the sum of the logarithms of the bandwidths of all features.

    "scott" is N^(-1 / (D + 4)) times the standard deviation of each feature, detached.
    """
    N, D = x.shape
    wide = x.to(compute_dtype(x.dtype))
    wide = wide - wide.detach().mean(0)
    if isinstance(bandwidth, str):
        _check.choice(name, bandwidth, ("scott",))
        h = wide.detach().std(0) * N ** (-1 / (D + 4))
        h = torch.where(h > 0, h, 1)  # a constant feature adds the same to all densities
    elif isinstance(bandwidth, Tensor):
        if bandwidth.ndim > 1 or (bandwidth.ndim == 1 and len(bandwidth) != D):
            raise ValueError(f"{name} must be 0-dimensional or of shape (D,) = ({D},), got {tuple(bandwidth.shape)}")
        _check.on_device(name, _check.floating(name, bandwidth, bandwidth.ndim), x)
        h = bandwidth.to(wide.dtype).expand(D)
    else:
        h = wide.new_full((D,), _check.number(name, bandwidth, 0))
    return wide / h, h.log().sum()


def log_sums(x: Tensor) -> Tensor:
    """log sum_{j != i} exp(-|x_i - x_j|^2 / 2), (N,)."""
    norms = x.square().sum(1) / 2
    return logsumexp(x, x, 1.0, -norms, None, None, 0, columns=False).rows - norms


def log_densities(x: Tensor, log_bandwidths: Tensor) -> Tensor:
    """log of the Gaussian kernel density at each row, itself left out, (N,)."""
    N, D = x.shape
    return log_sums(x) - math.log(N - 1) - D / 2 * math.log(2 * math.pi) - log_bandwidths
