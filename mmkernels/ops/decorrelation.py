"""Self-supervised losses that pull two views together and decorrelate their features."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._statistics import all_reduce, check_views


@without_autocast
def barlow_twins_loss(x: Tensor, y: Tensor, lambd: float = 5e-3, *, eps: float = 1e-5, group: Any = None) -> Tensor:
    r"""The loss of Barlow Twins: the cross-correlation of two views should be the identity.

    .. math::
        L = \sum_i (1 - C_{ii})^2 + \lambda \sum_{i \ne j} C_{ij}^2, \qquad
        C_{ij} = \frac1N \sum_b \hat x_{bi}\, \hat y_{bj}

    with every feature standardised over the batch, as batch normalisation does (variance over N, plus eps). Where
    N < D the D x D matrix is never formed:
    :math:`\sum C_{ij}^2 = \langle \hat x \hat x^\top, \hat y \hat y^\top\rangle / N^2`.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64.
        y: (N, D), x's dtype and device.
        lambd: weight of the off-diagonal part, above 0.
        eps: added to the variances: finite with constant features.
        group: a torch.distributed process group: statistics of the rows of all its processes, as in `cca_loss`.

    Returns:
        0-dimensional, float32, or float64 for float64 (also under autocast). Derivatives of any order.

    Raises:
        TypeError, ValueError: arguments that do not fit; N = 0.

    Cost: N D min(N, D) multiply-adds and min(N, D)^2 memory, twice; D^2 with a group.

    Source: Zbontar et al. 2021 (arXiv 2103.03230).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(64, 8)
        >>> bool(mmkernels.barlow_twins_loss(x, x) < mmkernels.barlow_twins_loss(x, torch.randn(64, 8)))
        True
    """
    _check_pair(x, y, 1)
    lambd = _check.number("lambd", lambd, 0)
    eps = _check.number("eps", eps, 0, with_low=True)
    (x, y), n = _standardised(x, y, eps, group)
    if group is None and x.shape[0] < x.shape[1]:
        diagonal = (x * y).sum(0) / n
        off = ((x @ x.mT) * (y @ y.mT)).sum() / n**2 - diagonal.square().sum()
    else:
        C = _reduced(x.mT @ y, group) / n
        diagonal, off = C.diagonal(), _off_diagonal(C).square().sum()
    return (1 - diagonal).square().sum() + lambd * off


@without_autocast
def vicreg_loss(
    x: Tensor,
    y: Tensor,
    *,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
    group: Any = None,
) -> Tensor:
    r"""The loss of VICReg: views agree, features vary, features do not correlate.

    .. math::
        L = \frac{\alpha}{ND} \lVert x - y\rVert^2
          + \frac{\beta}{2D} \sum_{v, i} \max\big(0,\, 1 - \sqrt{\Sigma^v_{ii} + \epsilon}\big)
          + \frac{\gamma}{D} \sum_v \sum_{i \ne j} (\Sigma^v_{ij})^2

    with covariances over N - 1, as in the authors' code. Where N < D no D x D matrix is formed:
    :math:`\sum \Sigma_{ij}^2 = \lVert x_c x_c^\top\rVert^2 / (N-1)^2`.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64.
        y: (N, D), x's dtype and device.
        invariance, variance, covariance: the weights alpha, beta and gamma, at least 0.
        eps: under the root: finite gradients with constant features.
        group: a torch.distributed process group: statistics of the rows of all its processes, as in `cca_loss`.

    Returns:
        0-dimensional, float32, or float64 for float64 (also under autocast). Derivatives of any order.

    Raises:
        TypeError, ValueError: arguments that do not fit; N < 2.

    Cost: N D min(N, D) multiply-adds and min(N, D)^2 memory for each view; D^2 with a group.

    Source: Bardes, Ponce and LeCun 2022 (arXiv 2105.04906).

    Example:
        >>> import torch, mmkernels
        >>> x, y = torch.randn(2, 64, 8).requires_grad_()
        >>> mmkernels.vicreg_loss(x, y).backward()
    """
    _check_pair(x, y, 2 if group is None else 1)
    alpha, beta, gamma = (
        _check.number(name, value, 0, with_low=True)
        for name, value in (("invariance", invariance), ("variance", variance), ("covariance", covariance))
    )
    eps = _check.number("eps", eps, 0, with_low=True)
    D = x.shape[1]
    distance = (x.to(compute_dtype(x.dtype)) - y.to(compute_dtype(y.dtype))).square().sum()
    centred, n = _centred(x, y, group)
    loss = alpha * _reduced(distance, group) / (n * D)
    for t in centred:
        variances, off = _second_moments(t, n - 1, group)
        loss = loss + beta / (2 * D) * F.relu(1 - (variances + eps).sqrt()).sum()
        loss = loss + gamma / D * off
    return loss


@without_autocast
def sdl_loss(x: Tensor, y: Tensor, lambd: float = 0.01, *, eps: float = 1e-5, group: Any = None) -> Tensor:
    r"""Soft decorrelation (SDL): deep CCA without a matrix inverse.

    .. math::
        L = \frac{1}{2N} \lVert \hat x - \hat y\rVert^2 + \lambda \sum_v \sum_{i \ne j} |R^v_{ij}|

    with every feature standardised over the batch (variance over N, plus eps) and :math:`R^v` the correlation matrix of
    view v. The paper averages R over batches with a decaying weight; here it is that of the batch, and of the whole
    process group if one is given.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64.
        y: (N, D), x's dtype and device.
        lambd: weight of the decorrelation, above 0.
        eps: added to the variances: finite with constant features.
        group: a torch.distributed process group, as in `cca_loss`.

    Returns:
        0-dimensional, float32, or float64 for float64 (also under autocast).

    Raises:
        TypeError, ValueError: arguments that do not fit; N = 0.

    Cost: 2 N D^2 multiply-adds, D^2 memory.

    Source: Chang, Xiang and Hospedales 2018, Scalable and effective deep CCA via soft decorrelation (arXiv 1707.09669).

    Example:
        >>> import torch, mmkernels
        >>> x, y = torch.randn(2, 64, 8).requires_grad_()
        >>> mmkernels.sdl_loss(x, y).backward()
    """
    _check_pair(x, y, 1)
    lambd = _check.number("lambd", lambd, 0)
    eps = _check.number("eps", eps, 0, with_low=True)
    (x, y), n = _standardised(x, y, eps, group)
    loss = _reduced((x - y).square().sum(), group) / (2 * n)
    for t in (x, y):
        R = _reduced(t.mT @ t, group) / n
        loss = loss + lambd * _off_diagonal(R).abs().sum()
    return loss


def _check_pair(x: Tensor, y: Tensor, rows: int) -> None:
    """Raise unless x and y are (N, D) of one shape, dtype and device, with rows enough."""
    _check.embeddings("x", x)
    _check.embeddings("y", y, x)
    check_views([x, y])
    if x.shape[0] < rows:
        raise ValueError(f"x must have at least {rows} row(s), got shape {tuple(x.shape)}")


def _centred(x: Tensor, y: Tensor, group: Any) -> tuple[list[Tensor], Tensor | int]:
    """Both views without their means, in the dtype of computation, and the number of rows."""
    x, y = (t.to(compute_dtype(t.dtype)) for t in (x, y))
    if group is None:
        return [x - x.mean(0), y - y.mean(0)], x.shape[0]
    n, x_sum, y_sum = all_reduce([x.new_full((), x.shape[0]), x.sum(0), y.sum(0)], group)
    return [x - x_sum / n, y - y_sum / n], n


def _standardised(x: Tensor, y: Tensor, eps: float, group: Any) -> tuple[list[Tensor], Tensor | int]:
    """Both views with mean 0 and variance 1 over all rows, and the number of rows."""
    views, n = _centred(x, y, group)
    return [t * (_sums(t.square(), group) / n + eps).rsqrt() for t in views], n


def _reduced(t: Tensor, group: Any) -> Tensor:
    return t if group is None else all_reduce([t], group)[0]


def _sums(t: Tensor, group: Any) -> Tensor:
    """Sums over the rows of all processes."""
    return _reduced(t.sum(0), group)


def _second_moments(t: Tensor, n: Tensor | int, group: Any) -> tuple[Tensor, Tensor]:
    """Variances (D,) of centred rows, and the sum of the squared covariances of different features."""
    if group is None and t.shape[0] < t.shape[1]:
        variances = t.square().sum(0) / n
        return variances, (t @ t.mT).square().sum() / n**2 - variances.square().sum()
    S = _reduced(t.mT @ t, group) / n
    return S.diagonal(), _off_diagonal(S).square().sum()


def _off_diagonal(C: Tensor) -> Tensor:
    """C with a diagonal of zeros."""
    return C - C.diagonal().diag()
