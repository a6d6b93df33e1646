"""Whitening: data with the identity for a covariance."""

from __future__ import annotations

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import no_autocast
from mmkernels.autograd import inverse_sqrt as _inverse_sqrt
from mmkernels.autograd._cholesky import cholesky
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._regularize import Shrinkage, check_reg, check_shrinkage, regularized
from mmkernels.ops._statistics import check_views
from mmkernels.ops.covariance import covariance, into_groups

METHODS = ("zca", "pca", "cholesky", "zca_cor")
SOLVERS = ("eigh", "newton_schulz")


@without_autocast
def inverse_sqrt(cov: Tensor, method: str = "eigh", *, iterations: int | None = None) -> Tensor:
    r"""A matrix W with :math:`W \Sigma W^\top = 1`, for symmetric positive definite :math:`\Sigma`.

    "eigh" and "newton_schulz" give the symmetric :math:`P = \Sigma^{-1/2}`, whose gradient is

    .. math::
        \frac{\partial L}{\partial \Sigma} = -P X P, \qquad P^{-1} X + X P^{-1} = \frac{\partial L}{\partial P}

    This divides by sums of square roots of eigenvalues, never by differences of eigenvalues: it is exact where they
    repeat. "cholesky" gives the lower triangular :math:`L^{-1}`, :math:`\Sigma = L L^\top`. All have derivatives of any
    order.

    Args:
        cov: (*batch, D, D) in float32 or float64, symmetric; only the lower triangle may be read.
        method: "eigh" (eigenvectors), "newton_schulz" (the coupled iteration, matrix products alone, for large D on a
            GPU), "cholesky". The iteration runs until it has converged, which waits for the device; where it does not,
            because the matrix is singular or its condition number beyond what the dtype resolves, a warning says so and
            eigenvectors are used.
        iterations: run "newton_schulz" for exactly this many steps without a test: W is then not yet the inverse square
            root where they are few (IterNorm takes 5 from a slower start), and its gradient is that of the steps.

    Returns:
        (*batch, D, D), cov's dtype.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a shape that is not square; an unknown method; on a CPU, a matrix that is not positive definite
            (elsewhere the result is NaN: reading it would wait for the device).

    Cost: O(D^3).

    Source: Higham 2008, Functions of Matrices, chapters 5 and 6; Huang et al. 2019 (IterNorm, arXiv 1904.03441).

    Example:
        >>> import torch, mmkernels
        >>> S = torch.eye(3) * 4
        >>> bool((mmkernels.inverse_sqrt(S) - torch.eye(3) / 2).abs().max() < 1e-6)
        True
    """
    t = _check.floating("cov", cov, cov.ndim if isinstance(cov, Tensor) and cov.ndim > 2 else 2)
    if t.shape[-1] != t.shape[-2] or t.shape[-1] < 1:
        raise ValueError(f"cov must be square with at least one feature, got shape {tuple(t.shape)}")
    if t.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"cov must be float32 or float64, got {t.dtype}")
    _check.choice("method", method, ("eigh", "newton_schulz", "cholesky"))
    check_iterations(iterations, method)
    if t.numel() == 0:
        return t.clone()
    if method == "cholesky":
        L = cholesky(t, "cov")
        eye = torch.eye(t.shape[-1], dtype=t.dtype, device=t.device).expand_as(t)
        inverse: Tensor = torch.linalg.solve_triangular(L, eye, upper=False)
        return inverse
    return _symmetric(t, method, iterations, regularized=False)


def check_iterations(iterations: object, solver: str) -> None:
    """Raise unless iterations is None, or a positive int and the solver iterates."""
    if iterations is not None:
        _check.integer("iterations", iterations, 1)
        if solver != "newton_schulz":
            raise ValueError(f"iterations belong to 'newton_schulz', got {iterations} and {solver!r}")


def whitening_matrix(S: Tensor, method: str, solver: str, iterations: int | None, regularized: bool) -> Tensor:
    """W (..., D, D) of data whose covariance is S: W S W' = 1."""
    if method == "cholesky":
        return inverse_sqrt(S, "cholesky")
    if method == "pca":
        return _inverse_sqrt.principal(S, regularized)
    if method == "zca":
        return _symmetric(S, solver, iterations, regularized)
    deviations = S.diagonal(dim1=-2, dim2=-1).sqrt()
    deviations = torch.where(deviations > 0, deviations, 1)  # a constant feature leaves R singular, which is said
    correlation = S / (deviations[..., :, None] * deviations[..., None, :])
    return _symmetric(correlation, solver, iterations, regularized) / deviations[..., None, :]


def _symmetric(S: Tensor, solver: str, iterations: int | None, regularized: bool) -> Tensor:
    with no_autocast(S):
        if iterations is not None:
            return _inverse_sqrt.newton_schulz(S, iterations)
        return _inverse_sqrt.inverse_sqrt(S, solver == "newton_schulz", regularized)


@without_autocast
def whiten(
    x: Tensor,
    method: str = "zca",
    *,
    groups: int = 1,
    reg: float = 0.0,
    shrinkage: Shrinkage = None,
    solver: str = "eigh",
    iterations: int | None = None,
) -> Tensor:
    r"""Rows of x, centred and made uncorrelated with variance 1.

    .. math::
        z_i = W (x_i - \mu), \qquad W \Sigma W^\top = 1, \qquad \Sigma = V \Lambda V^\top = L L^\top

    | method | W | z |
    |---|---|---|
    | `zca` | :math:`\Sigma^{-1/2}` | closest to x |
    | `zca_cor` | :math:`R^{-1/2}\,\mathrm{diag}(\Sigma)^{-1/2}` | feature by feature most correlated with x |
    | `pca` | :math:`\Lambda^{-1/2} V^\top` | principal components, of the largest variance first |
    | `cholesky` | :math:`L^{-1}` | each feature without what those before it say |

    R is the correlation matrix. The gradient goes through mean and covariance, and is exact where eigenvalues repeat;
    that of "pca", whose axes are not defined there, holds them fixed among each other, and is of first order only.

    Args:
        x: (*batch, N, D) in float16, bfloat16, float32 or float64; covariance over N - 1.
        method: as above.
        groups: whiten this many equal groups of features each for itself.
        reg: added to the variances, at least 0.
        shrinkage: s of :math:`(1 - s) \Sigma + s\,\mathrm{tr}(\Sigma)/D`, in [0, 1], or chosen from the data by
            "ledoit_wolf" or "oas".
        solver: of "zca" and "zca_cor", "eigh" or "newton_schulz" (`inverse_sqrt`).
        iterations: of "newton_schulz", fixed; None runs until convergence.

    Returns:
        `(*batch, N, D)`, x's dtype; the covariance of its rows is the identity if nothing was regularised.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: ranks or sizes that do not fit; N < 2; on a CPU, a singular covariance (N - 1 < D, constant or
            dependent features) without regularisation.

    Cost: N D^2 / 2 for the covariance, N D^2 for the product, D^3.

    Source: Kessy, Lewin and Strimmer 2018 (arXiv 1512.00809).

    Example:
        >>> import torch, mmkernels
        >>> z = mmkernels.whiten(torch.randn(100, 3))
        >>> bool((z.T.cov() - torch.eye(3)).abs().max() < 1e-4)
        True
    """
    (x,) = check_views([x])
    check_options(method, solver, iterations)
    (ridge,), (shrink,) = check_reg(reg, 1), check_shrinkage(shrinkage, 1)
    _check.integer("groups", groups, 1)
    grouped = into_groups(x, groups) if groups > 1 else x
    mean, cov, n, _ = covariance(grouped)
    z = (grouped - mean[..., None, :]).to(cov.dtype)
    S = regularized(cov, n, ridge, shrink, lambda: z.square().sum(-1).square().sum(-1))
    with no_autocast(x):
        z = z @ whitening_matrix(S, method, solver, iterations, ridge > 0 or shrink is not None).mT
    return (z.transpose(-3, -2).flatten(-2) if groups > 1 else z).to(x.dtype)


def check_options(method: str, solver: str, iterations: int | None) -> None:
    """Raise unless method and solver exist, and iterations fit them."""
    _check.choice("method", method, METHODS)
    _check.choice("solver", solver, SOLVERS)
    check_iterations(iterations, solver)
    if solver != "eigh" and method not in ("zca", "zca_cor"):
        raise ValueError(f"solver {solver!r} belongs to 'zca' and 'zca_cor', got method {method!r}")
