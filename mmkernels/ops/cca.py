"""Canonical correlations of two or more views, and losses that make views agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import no_autocast
from mmkernels.autograd._cholesky import cholesky
from mmkernels.autograd.cca import coherence, correlations, generalized_eigenvalues
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._regularize import Shrinkage, check_reg, check_shrinkage, regularized
from mmkernels.ops._statistics import check_present, check_views, check_weights, statistics
from mmkernels.ops.covariance import Covariance, finished

OBJECTIVES = ("sum", "sum_squares", "gaussian_mi")


@without_autocast
def canonical_correlations(
    x: Tensor,
    y: Tensor,
    k: int | None = None,
    *,
    reg: float | tuple[float, float] = 0.0,
    shrinkage: Shrinkage | tuple[Shrinkage, Shrinkage] = None,
    weights: Tensor | None = None,
    present: Sequence[Tensor | None] | None = None,
    group: Any = None,
) -> Tensor:
    r"""The k largest canonical correlations of two views, largest first.

    .. math::
        \rho_i = \max_{a, b}\; a^\top \Sigma_{xy}\, b \quad\text{with}\quad
        a^\top \Sigma_{xx} a = b^\top \Sigma_{yy} b = 1, \quad \text{uncorrelated with the } i - 1 \text{ before}

    These are the singular values of :math:`L_x^{-1} \Sigma_{xy} L_y^{-\top}`, L the Cholesky factors. Their gradients
    are :math:`a b^\top` with respect to :math:`\Sigma_{xy}` and :math:`-\tfrac12 \rho\, a a^\top` with respect to
    :math:`\Sigma_{xx}`: nothing is divided by a difference of eigenvalues. Of first order; where correlations repeat,
    exact for functions that treat them alike (any sum over them), and 0 at a correlation of 0.

    Args:
        x: (*batch, N, D_x) in float16, bfloat16, float32 or float64.
        y: (*batch, N, D_y), x's dtype and device.
        k: how many, at most min(D_x, D_y); None gives all.
        reg: added to the variances of x and y, one number or one for each. Absolute: scale features to comparable
            variances, or use a shrinkage.
        shrinkage: s of :math:`(1 - s) \Sigma + s\,\mathrm{tr}(\Sigma)/D`, in [0, 1], or chosen from the data by
            "ledoit_wolf" or "oas"; one or a pair.
        weights, present, group: as in `covariance`.

    Returns:
        `(*batch, k)` in float32, or float64 for float64. They are in [0, 1] up to rounding. Two things can take them
        above 1: a shrinkage, which lowers the large variances, and `present`, whose covariances come from different
        rows.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks, sizes or devices that do not fit; on a CPU, singular covariances (N - 1 < D, constant or
            dependent features) without regularisation. Elsewhere the result is NaN.

    Cost: N (D_x + D_y)^2 / 2 multiply-adds, O((D_x + D_y)^3) for the rest.

    Source: Hotelling 1936; Bjorck and Golub 1973.

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(200, 4)
        >>> rho = mmkernels.canonical_correlations(x, x @ torch.randn(4, 3))
        >>> bool((rho - 1).abs().max() < 1e-4)
        True
    """
    S, Sxx, Syy = _two_views(x, y, reg, shrinkage, weights, present, group)
    return correlations(Sxx, Syy, S.xy)[..., : _components(k, S.sizes)]


@without_autocast
def cca_loss(
    x: Tensor,
    y: Tensor,
    k: int | None = None,
    reg: float | tuple[float, float] = 1e-4,
    objective: str = "sum",
    *,
    shrinkage: Shrinkage | tuple[Shrinkage, Shrinkage] = None,
    weights: Tensor | None = None,
    present: Sequence[Tensor | None] | None = None,
    group: Any = None,
) -> Tensor:
    r"""The loss of deep CCA: minus the total correlation of two views.

    | objective | loss | |
    |---|---|---|
    | `sum` | :math:`-\sum_{i \le k} \rho_i` | Andrew et al. 2013: the trace norm |
    | `sum_squares` | :math:`-\sum_{i \le k} \rho_i^2` | as cca_zoo's CCALoss; without k it takes no SVD |
    | `gaussian_mi` | :math:`\frac12 \sum_{i \le k} \log(1 - \rho_i^2)` | minus the information of Gaussians, nats |

    The correlations :math:`\rho_i` are those of `canonical_correlations`. Values and gradients are finite with constant
    features, repeated correlations and fewer rows than features, as long as reg or a shrinkage is positive. A shrinkage
    can take correlations above 1, where "gaussian_mi" is not defined: it takes reg only.
    "sum_squares" and "gaussian_mi" without k have derivatives of any order, the others of first order.

    Args:
        x: (*batch, N, D_x) in float16, bfloat16, float32 or float64.
        y: (*batch, N, D_y), x's dtype and device.
        k: how many correlations count, the largest; None takes all.
        reg: added to the variances of x and y: one number, or one for each. Identical views have
            :math:`\rho = \lambda / (\lambda + \mathrm{reg})` for each variance :math:`\lambda`.
        objective: as above.
        shrinkage, weights, present: as in `canonical_correlations`.
        group: a torch.distributed process group: the loss, on each process, is that of the rows of all; with DDP's mean
            over processes so are the gradients.

    Returns:
        (*batch,), float32, or float64 for float64.

    Raises:
        TypeError, ValueError: as `canonical_correlations`; identical views without regularisation in "gaussian_mi",
            whose mutual information is infinite.

    Cost: N (D_x + D_y)^2 / 2 multiply-adds forward, twice to four times that backward, O((D_x + D_y)^3) for the rest.

    Source: Andrew, Arora, Bilmes and Livescu 2013, Deep canonical correlation analysis.

    Example:
        >>> import torch, mmkernels
        >>> x, y = torch.randn(2, 200, 4).requires_grad_()
        >>> mmkernels.cca_loss(x, y).backward()
    """
    _check.choice("objective", objective, OBJECTIVES)
    if objective == "gaussian_mi" and shrinkage is not None:
        raise ValueError(f"objective 'gaussian_mi' takes reg, no shrinkage, got {shrinkage!r}")
    S, Sxx, Syy = _two_views(x, y, reg, shrinkage, weights, present, group)
    components = _components(k, S.sizes)
    if k is None and objective != "sum":
        T = coherence(Sxx, Syy, S.xy)[0]
        if objective == "sum_squares":
            return -T.square().sum((-2, -1))
        T = T if T.shape[-2] <= T.shape[-1] else T.mT
        eye = torch.eye(T.shape[-2], dtype=T.dtype, device=T.device)
        with no_autocast(x):
            rest = eye - T @ T.mT
        return cholesky(rest, "1 - rho^2").diagonal(dim1=-2, dim2=-1).log().sum(-1)
    rho = correlations(Sxx, Syy, S.xy)[..., :components]
    if objective == "gaussian_mi":
        return 0.5 * (torch.log1p(rho) + torch.log1p(-rho.clamp(max=1))).sum(-1)
    return -(rho if objective == "sum" else rho.square()).sum(-1)


@without_autocast
def gcca_loss(
    views: Sequence[Tensor],
    k: int | None = None,
    reg: float | Sequence[float] = 1e-4,
    *,
    shrinkage: Shrinkage | Sequence[Shrinkage] = None,
    weights: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    r"""The loss of deep generalized CCA (MAXVAR): how far views are from sharing k variates.

    .. math::
        L = -\sum_{i \le k} \lambda_i\Big(\sum_v P_v\Big), \qquad
        P_v = \tfrac{1}{N - 1} X_v B_v^{-1} X_v^\top

    with centred views, B_v their regularised covariances, and :math:`\lambda_i` the largest eigenvalues of an N x N
    matrix that is never formed: they are those of :math:`\Sigma w = \lambda B w` with D x D matrices, D = sum D_v, and
    B the regularised covariances of the views on the diagonal. The loss is at most 0, and -k V where V views agree and
    nothing is regularised. Gradients, of first order, are :math:`w w^\top` and :math:`-\lambda w w^\top`: nothing is
    divided by a difference of eigenvalues.

    Args:
        views: V >= 1 tensors (*batch, N, D_v) in float16, bfloat16, float32 or float64, of one dtype and device.
        k: how many variates; None takes the smallest D_v.
        reg: added to the variances, one number, or one for each view.
        shrinkage: as in `canonical_correlations`, one or one for each view.
        weights: (N,) or (*batch, N), as in `covariance`.
        group: a torch.distributed process group, as in `cca_loss`.

    Returns:
        (*batch,), float32, or float64 for float64.

    Raises:
        TypeError, ValueError: as `canonical_correlations`.

    Cost: N D^2 / 2 multiply-adds, O(D^3) for the rest.

    Source: Kettenring 1971; Benton et al. 2019, Deep generalized canonical correlation analysis (arXiv 1702.02519).

    Example:
        >>> import torch, mmkernels
        >>> views = torch.randn(3, 200, 4).requires_grad_()
        >>> mmkernels.gcca_loss(views.unbind()).backward()
    """
    S, blocks = _many_views(views, reg, shrinkage, weights, group)
    values, _ = generalized_eigenvalues(_components(k, S.sizes), S.cov, blocks)
    return -values.sum(-1)


@without_autocast
def mcca_loss(
    views: Sequence[Tensor],
    k: int | None = None,
    reg: float | Sequence[float] = 1e-4,
    *,
    shrinkage: Shrinkage | Sequence[Shrinkage] = None,
    weights: Tensor | None = None,
    group: Any = None,
) -> Tensor:
    r"""The loss of multi-set CCA (SUMCOR): minus the k largest sums of covariances between views.

    .. math::
        L = -\sum_{i \le k} \lambda_i, \qquad
        (\Sigma - \mathrm{blockdiag}(\Sigma_{vv}))\, w = \lambda\, B w

    with B the regularised covariances of the views on the diagonal. With two views :math:`\lambda_i = \rho_i`; where V
    views agree :math:`\lambda_i = V - 1`. Without regularisation it is `gcca_loss` + k.

    Args, returns, raises, cost and gradients: as in `gcca_loss`.

    Source: Kettenring 1971; Nielsen 2002.

    Example:
        >>> import torch, mmkernels
        >>> views = torch.randn(3, 200, 4).requires_grad_()
        >>> mmkernels.mcca_loss(views.unbind()).backward()
    """
    S, blocks = _many_views(views, reg, shrinkage, weights, group)
    within = torch.zeros_like(S.cov, dtype=torch.bool)
    start = 0
    for size in S.sizes:
        within[..., start : start + size, start : start + size] = True
        start += size
    values, _ = generalized_eigenvalues(_components(k, S.sizes), S.cov.masked_fill(within, 0), blocks)
    return -values.sum(-1)


def _components(k: object, sizes: Sequence[int]) -> int:
    return min(sizes) if k is None else _check.integer("k", k, 1, min(sizes))


def _covariances(
    views: list[Tensor],
    reg: list[float],
    shrinkage: list[Shrinkage],
    weights: object,
    present: object,
    group: Any,
) -> tuple[Covariance, list[Tensor]]:
    """Covariances of checked views over n - 1, and the regularised one of each."""
    first = views[0]
    w, p = check_weights(weights, first), check_present(present, views)
    if group is None and first.shape[-2] < 2:
        raise ValueError(f"views must have at least 2 rows, got shape {tuple(first.shape)}")
    s = statistics(views, w, p, group)
    S = finished(s, first.shape[:-2], 1)
    blocks = []
    for v, view in enumerate(views):
        pair = v % s.n.shape[-1]
        n = s.n[:, pair, pair].reshape(first.shape[:-2] if len(s.n) != 1 else ())

        def fourth(v: int = v, view: Tensor = view) -> Tensor:
            mean = S.mean[..., None, S.features(v)]
            return (view.to(mean.dtype) - mean).square().sum(-1).square().sum(-1)

        whole = weights is None and present is None and group is None
        blocks.append(regularized(S.block(v, v), n, reg[v], shrinkage[v], fourth if whole else None))
    return S, blocks


def _two_views(
    x: Tensor, y: Tensor, reg: object, shrinkage: object, weights: object, present: object, group: Any
) -> tuple[Covariance, Tensor, Tensor]:
    """Covariances of x and y, and the regularised ones of each."""
    views = check_views([x, y])
    S, (Sxx, Syy) = _covariances(views, check_reg(reg, 2), check_shrinkage(shrinkage, 2), weights, present, group)
    return S, Sxx, Syy


def _many_views(
    views: Sequence[Tensor], reg: object, shrinkage: object, weights: object, group: Any
) -> tuple[Covariance, list[Tensor]]:
    """Covariances of the views, and the regularised one of each."""
    if not isinstance(views, tuple | list):
        raise TypeError(f"views must be a list or tuple of tensors, got {type(views).__name__}")
    checked, V = check_views(views), len(views)
    return _covariances(checked, check_reg(reg, V), check_shrinkage(shrinkage, V), weights, None, group)
