"""Dependence of two or more views: HSIC, CKA, distance covariance, in O(N) memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmkernels._dispatch import compute_dtype
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._statistics import statistics
from mmkernels.ops._sums import Options, Sums, check_estimator, check_options, check_samples, several, sums


@without_autocast
def hsic(
    x: Tensor,
    y: Tensor,
    kernel: str | Sequence[str] = "rbf",
    *,
    gamma: Any = "median",
    estimator: str = "biased",
    parameters: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
) -> Tensor:
    r"""Hilbert-Schmidt independence criterion of two samples of the same rows, without the N x N matrices.

    .. math::
        \mathrm{HSIC}_b = \frac{1}{N^2} \mathrm{tr}(K H L H)
        = \frac{1}{N^2} \sum_{ij} K_{ij} L_{ij} - \frac{2}{N^3} \sum_i r_i s_i + \frac{\kappa \lambda}{N^4}

    with r, s the row sums of K and L, and :math:`\kappa, \lambda` their totals: one sweep over half of the pairs. The
    unbiased estimator is that of Song et al., equation 5; it may be negative. With "linear" kernels and fewer features
    than rows no pairs are formed: :math:`\lVert \Sigma_{xy} \rVert^2` from covariances.

    Args:
        x: (*batch, N, D_x) in float16, bfloat16, float32 or float64; under autocast as it is.
        y: (*batch, N, D_y), x's dtype and device.
        kernel: a name listed at `kernel_matrix`, or a pair of names.
        gamma: the kernels' multiplier: "median" (1 / (2 m^2), m the median distance of at most 1,000 rows that differ,
            detached; for kernels that have it), "scale", a positive number, a tensor, or None for the kernel's own
            default; one, or a list or tuple with one for x and one for y.
        estimator: "biased" (at least 0, 1 row or more) or "unbiased" (4 rows or more).
        parameters: further parameters of the kernel by name, or a pair of such.

    Returns:
        `(*batch,)` in float32, or float64 for float64. Derivatives in x, y and every parameter, twice too.

    Raises:
        TypeError, ValueError: arguments that do not fit; too few rows.

    Cost: N^2 (D_x + D_y) / 2 multiply-adds forward on a CPU (twice that in Triton), three times that backward, in one
    sweep; O(N) memory. Linear kernels: N (D_x + D_y)^2 / 2.

    Source: Gretton et al. 2005, 2007; Song et al. 2012 (JMLR 13).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(500, 8)
        >>> bool(mmkernels.hsic(x, x[:, :2]) > 10 * mmkernels.hsic(x, torch.randn(500, 2)))
        True
    """
    check_estimator(estimator)
    views = check_samples([x, y], 1 if estimator == "biased" else 4)
    kernels = check_options(views, kernel, gamma, parameters)
    return _hsic_of(views, kernels, estimator)


def _hsic_of(views: Sequence[Tensor], kernels: Options, estimator: str) -> Tensor:
    """HSIC of two views."""
    if by_features(views, kernels):
        return _linear(views, estimator)[..., 0, 1].to(compute_dtype(views[0].dtype))
    found = sums(views, kernels, product=True, diagonal=estimator == "unbiased")
    return of_sums(found, estimator, 0, 1, found.product).to(found.rows.dtype)


@without_autocast
def cka(
    x: Tensor,
    y: Tensor,
    kernel: str | Sequence[str] = "linear",
    *,
    gamma: Any = "median",
    debiased: bool = False,
    parameters: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
) -> Tensor:
    r"""Centred kernel alignment: how similar two representations of the same rows are.

    .. math::
        \mathrm{CKA} = \frac{\mathrm{HSIC}(K, L)}{\sqrt{\mathrm{HSIC}(K, K)\, \mathrm{HSIC}(L, L)}}

    in one sweep for all three. In [0, 1] unless debiased, which takes the unbiased HSIC, is about 0 for independent
    rows, and at most 1. For batches of a large data set see `CKAMeter`: averaging CKA over batches is not CKA.

    Args:
        x, y, kernel, gamma, parameters: as in `hsic`; the kernel's default is "linear", as in the paper.
        debiased: with unbiased HSIC, 4 rows or more.

    Returns:
        `(*batch,)` in float32, or float64 for float64; NaN where a view is constant. Derivatives as `hsic`.

    Raises:
        TypeError, ValueError: as `hsic`; fewer than 2 rows.

    Cost: as `hsic`.

    Source: Kornblith, Norouzi, Lee and Hinton 2019 (arXiv 1905.00414); Nguyen, Raghu and Kornblith 2021 (2010.15327).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(500, 8)
        >>> bool((mmkernels.cka(x, 3 * x @ torch.linalg.qr(torch.randn(8, 8)).Q + 1) - 1).abs() < 1e-4)
        True
    """
    views = check_samples([x, y], 4 if debiased else 2)
    return _ratio(views, check_options(views, kernel, gamma, parameters), "unbiased" if debiased else "biased")


@without_autocast
def distance_covariance(x: Tensor, y: Tensor, *, estimator: str = "biased") -> Tensor:
    r"""Squared distance covariance: 0 exactly where x and y are independent.

    .. math::
        \mathrm{dCov}^2 = \frac{1}{N^2} \sum_{ij} A_{ij} B_{ij}

    with A and B the doubly centred distance matrices: `hsic` with the "energy" kernel. "unbiased" is the U-centred
    estimator. The square, not its root, whose gradient at independence is infinite.

    Args:
        x, y: as in `hsic`.
        estimator: "biased" or "unbiased" (4 rows or more, may be negative).

    Returns, raises and cost: as `hsic`.

    Source: Szekely, Rizzo and Bakirov 2007; Szekely and Rizzo 2014.

    Example:
        >>> import torch, mmkernels
        >>> bool(mmkernels.distance_covariance(torch.randn(50, 2), torch.ones(50, 1)) < 1e-6)
        True
    """
    return hsic(x, y, "energy", gamma=None, estimator=estimator)


@without_autocast
def distance_correlation(x: Tensor, y: Tensor, *, estimator: str = "biased") -> Tensor:
    r"""Squared distance correlation.

    .. math::
        \mathrm{dCor}^2 = \frac{\mathrm{dCov}^2(x, y)}{\sqrt{\mathrm{dCov}^2(x, x)\,\mathrm{dCov}^2(y, y)}}

    In [0, 1] if biased, 1 for similar shapes: `cka` with the "energy" kernel. "unbiased" (U-centred, 4 rows or more) is
    about 0 for independent rows whatever their number, and at most 1.

    Args, returns, raises and cost: as `distance_covariance`; NaN where a view is constant.

    Source: Szekely, Rizzo and Bakirov 2007; Szekely and Rizzo 2014.

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(50, 2)
        >>> bool((mmkernels.distance_correlation(x, 2 * x + 1) - 1).abs() < 1e-5)
        True
    """
    check_estimator(estimator)
    views = check_samples([x, y], 2 if estimator == "biased" else 4)
    return _ratio(views, check_options(views, "energy", None, None), estimator)


@without_autocast
def dhsic(
    views: Sequence[Tensor],
    kernel: str | Sequence[str] = "rbf",
    *,
    gamma: Any = "median",
    parameters: dict[str, Any] | Sequence[dict[str, Any] | None] | None = None,
) -> Tensor:
    r"""Joint dependence of two or more views: 0 exactly where all of them together are independent.

    .. math::
        \mathrm{dHSIC} = \frac{1}{N^2} \sum_{ij} \prod_v K^v_{ij} + \prod_v \frac{1}{N^2} \sum_{ij} K^v_{ij}
        - \frac2N \sum_i \prod_v \frac1N \sum_j K^v_{ij}

    With two views it is the biased `hsic`. Terms cancel: float32 resolves about 1e-6 of the largest.

    Args:
        views: V >= 2 tensors (*batch, N, D_v) of one dtype and device.
        kernel, gamma, parameters: as in `hsic`, one or one for each view.

    Returns:
        `(*batch,)` in float32, or float64 for float64. Derivatives as `hsic`.

    Raises:
        TypeError, ValueError: as `hsic`.

    Cost: N^2 D / 2 multiply-adds, D = sum D_v.

    Source: Pfister, Buhlmann, Scholkopf and Peters 2018 (arXiv 1603.00285).

    Example:
        >>> import torch, mmkernels
        >>> a, b = torch.randn(2, 300, 1).sign()  # a, b and a b are independent by pairs, but not together
        >>> views = [a, b, a * b]
        >>> bool(mmkernels.dhsic(views) > 10 * mmkernels.dhsic([a, b, torch.randn(300, 1)]))
        True
    """
    checked = check_samples(several(views), 1)
    kernels = check_options(checked, kernel, gamma, parameters)
    if len(checked) == 2:  # which keeps more digits
        return _hsic_of(checked, kernels, "biased")
    s = sums(checked, kernels, product=True, centred=False)
    rows = s.rows.double() / s.n
    value = s.product / s.n**2 + rows.mean(-1).prod(-1) - 2 * rows.prod(-2).mean(-1)
    return value.to(s.rows.dtype)


def by_features(views: Sequence[Tensor], kernels: Options) -> bool:
    """Whether covariances are cheaper than pairs of rows."""
    return all(name == "linear" for name, _ in kernels) and sum(v.shape[-1] for v in views) <= views[0].shape[-2]


def of_sums(s: Sums, estimator: str, u: int, v: int, product: Tensor) -> Tensor:
    """HSIC of views u and v, float64, from the sum of K_u * K_v."""
    n = s.n
    if estimator == "biased":
        r, t = s.rows[..., u, :].double(), s.rows[..., v, :].double()
        return (product - 2 / n * (r * t).sum(-1) + r.sum(-1) * t.sum(-1) / n**2) / n**2
    off = s.off_diagonal()
    d = s.diagonal.double()
    r, t = off.rows[..., u, :].double(), off.rows[..., v, :].double()
    product = product - (d[..., u, :] * d[..., v, :]).sum(-1)
    return (product + r.sum(-1) * t.sum(-1) / ((n - 1) * (n - 2)) - 2 / (n - 2) * (r * t).sum(-1)) / (n * (n - 3))


def matrix(views: Sequence[Tensor], kernels: Options, estimator: str) -> Tensor:
    """HSIC of every pair of views, (*batch, V, V), float64."""
    if by_features(views, kernels):
        return _linear(views, estimator)
    s = sums(views, kernels, of_pairs=True, diagonal=estimator == "unbiased")
    V = len(views)
    lines = [[of_sums(s, estimator, u, v, s.pairs[..., u, v]) for v in range(V)] for u in range(V)]
    H = torch.stack([torch.stack(line, -1) for line in lines], -2)
    # what a constant view has left is the rounding of its kernel's values
    rounding = (2 * torch.finfo(s.centres.dtype).eps * s.centres.double()).square()
    nothing = torch.diag_embed(H.detach().diagonal(dim1=-2, dim2=-1).abs() <= rounding)
    return H.masked_fill(nothing, 0)


def _ratio(views: Sequence[Tensor], kernels: Options, estimator: str) -> Tensor:
    H = matrix(views, kernels, estimator)
    both = H[..., 0, 0] * H[..., 1, 1]
    return torch.where(both > 0, H[..., 0, 1] / both.sqrt(), torch.nan).to(compute_dtype(views[0].dtype))


def _linear(views: Sequence[Tensor], estimator: str) -> Tensor:
    """HSIC of linear kernels from the views' scatter, (*batch, V, V), float64: fourth powers of the data."""
    s = statistics(views)
    n, batch = views[0].shape[-2], views[0].shape[:-2]
    squares = s.scatter.double().square()
    parts = [slice(end - size, end) for end, size in zip(accumulate(s.sizes), s.sizes, strict=True)]
    H = torch.stack([torch.stack([squares[:, a, b].sum((-2, -1)) for b in parts], -1) for a in parts], -2)
    if estimator == "biased":
        return (H / n**2).reshape(*batch, *H.shape[1:])
    # the diagonal of K, centred, is what its row sums lack
    norms = torch.stack(
        [
            (v.reshape(-1, n, v.shape[-1]).to(s.mean.dtype) - s.mean[:, None, part]).double().square().sum(-1)
            for v, part in zip(views, parts, strict=True)
        ],
        1,
    )
    both, totals = norms @ norms.mT, norms.sum(2)
    H = H - both + totals[:, :, None] * totals[:, None] / ((n - 1) * (n - 2)) - 2 / (n - 2) * both
    return (H / (n * (n - 3))).reshape(*batch, *H.shape[1:])
