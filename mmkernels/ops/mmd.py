"""Distances between the distributions of two samples: maximum mean discrepancy and energy distance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._bandwidth import pooled, scale_gamma
from mmkernels.ops._entries import data_driven, entries
from mmkernels.ops._kernels import check_pairs, cosine_rows, pairs
from mmkernels.ops._sums import diagonal_of, kernel_parameters
from mmkernels.ops.kernel import kernel_matmul

ESTIMATORS = ("biased", "unbiased", "linear")


@without_autocast
def mmd(
    x: Tensor,
    y: Tensor,
    kernel: str = "rbf",
    *,
    gamma: Any = "median",
    estimator: str = "biased",
    bandwidths: Sequence[float] | None = None,
    weights: tuple[Tensor | None, Tensor | None] | None = None,
    parameters: dict[str, Any] | None = None,
) -> Tensor:
    r"""Squared maximum mean discrepancy of two samples, in O(M + N) memory.

    .. math::
        \mathrm{MMD}^2_b = \frac{1}{M^2} \sum_{ij} k(x_i, x_j) + \frac{1}{N^2} \sum_{ij} k(y_i, y_j)
        - \frac{2}{MN} \sum_{ij} k(x_i, y_j)

    "unbiased" leaves i = j out of the first two sums and divides by M (M - 1) and N (N - 1); it may be negative.
    "linear" is the mean of :math:`k(x_1, x_2) + k(y_1, y_2) - k(x_1, y_2) - k(x_2, y_1)` over rows taken two by two:
    O(N) time, a noisier estimate; `approximate_test` gives its interval.

    Args:
        x: (*batch, M, D) in float16, bfloat16, float32 or float64.
        y: (*batch, N, D), x's dtype and device.
        kernel: a name listed at `kernel_matrix`.
        gamma: as in `hsic`, one for all; a sequence of numbers is a sum of RBF kernels.
        estimator: "biased", "unbiased" (2 rows of each or more) or "linear" (2 or more, as many of x as of y).
        bandwidths: the standard deviations of a sum of RBF kernels, gamma = 1 / (2 bandwidth^2).
        weights: of the rows of x, (M,), and of y, (N,), each or None, positive; with "biased" only. They are divided by
            their sum.
        parameters: further parameters of the kernel by name.

    Returns:
        `(*batch,)` in float32, or float64 for float64. Derivatives in x, y, weights and every parameter, twice too.

    Raises:
        TypeError, ValueError: arguments that do not fit; too few rows.

    Cost: (M + N)^2 D / 2 multiply-adds forward on a CPU (twice that in Triton), about four times that backward.

    Source: Gretton et al. 2012 (JMLR 13).

    Example:
        >>> import torch, mmkernels
        >>> x, y = torch.randn(2, 500, 4)
        >>> bool(mmkernels.mmd(x, y + 1) > 5 * mmkernels.mmd(x, y))
        True
    """
    x, y, own = check_samples_of(x, y, kernel, gamma, bandwidths, parameters)
    if not isinstance(estimator, str):
        raise TypeError(f"estimator must be a name, got {type(estimator).__name__}")
    _check.choice("estimator", estimator, ESTIMATORS)
    if weights is not None and estimator != "biased":
        raise ValueError(f"weights belong to the biased estimator, got {estimator!r}")
    M, N = x.shape[-2], y.shape[-2]
    fewest = 1 if estimator == "biased" else 2
    if min(M, N) < fewest:
        raise ValueError(
            f"x and y must have at least {fewest} row(s), got shapes {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if kernel == "cosine":
        x, y, kernel = cosine_rows(x), cosine_rows(y), "linear"
    if estimator == "linear":
        return linear_terms(x, y, kernel, own).mean(-1)
    if weights is not None:
        x, y = (t.to(compute_dtype(t.dtype)) for t in (x, y))  # 16 bits do not hold weights
        u, v = _weights(weights, x, y)
        within = [(w * kernel_matmul(t, None, w, kernel, **own)).sum(-1) for t, w in ((x, u), (y, v))]
        return within[0] + within[1] - 2 * (u * kernel_matmul(x, y, v, kernel, **own)).sum(-1)
    within = [kernel_matmul(t, None, None, kernel, **own) for t in (x, y)]
    if estimator == "unbiased":
        within = [
            (r - diagonal(t, kernel, own)) * (r.shape[-1] / (r.shape[-1] - 1))
            for t, r in zip((x, y), within, strict=True)
        ]
    across = kernel_matmul(x, y, None, kernel, **own).mean(-1) / N
    return within[0].mean(-1) / M + within[1].mean(-1) / N - 2 * across


def energy_distance(x: Tensor, y: Tensor, *, estimator: str = "biased") -> Tensor:
    r"""Energy distance, :math:`2\, E|x - y| - E|x - x'| - E|y - y'|`: `mmd` with the "energy" kernel.

    0 exactly where the distributions agree, without a bandwidth.

    Args:
        x, y, estimator: as in `mmd`.

    Returns, raises and cost: as `mmd`.

    Source: Szekely and Rizzo 2013.

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(100, 2)
        >>> bool(mmkernels.energy_distance(x, x).abs() < 1e-5)
        True
    """
    return mmd(x, y, "energy", gamma=None, estimator=estimator)


def check_samples_of(
    x: Tensor,
    y: Tensor,
    kernel: str,
    gamma: Any,
    bandwidths: Sequence[float] | None,
    parameters: dict[str, Any] | None,
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Return two samples and the kernel's parameters, those that depend on data from both samples together."""
    first, second = check_pairs(x, y)
    second = first if second is None else second
    if not isinstance(kernel, str):
        raise TypeError(f"kernel must be a name, got {type(kernel).__name__}")
    if bandwidths is not None:
        if kernel != "rbf" or parameters or not (isinstance(gamma, str) and gamma == "median"):
            raise ValueError(
                "bandwidths are those of RBF kernels: give no gamma, length_scale or other kernel with them"
            )
        gamma = [0.5 / _check.number(f"bandwidths[{q}]", b, 0) ** 2 for q, b in enumerate(bandwidths)]
    own = kernel_parameters(kernel, gamma, parameters)
    if isinstance(own.get("gamma"), str) and own["gamma"] == "scale":  # of both, or divisions would not be alike
        own["gamma"] = scale_gamma(pooled(first, second))
    if kernel == "linear":
        mean = pooled(first, second).detach().mean(-2, keepdim=True, dtype=compute_dtype(first.dtype))
        first, second = first - mean, second - mean
    return first, second, data_driven(first, second, kernel, own)


def linear_terms(x: Tensor, y: Tensor, kernel: str, parameters: dict[str, Any]) -> Tensor:
    """The terms of the linear-time estimator, (*batch, floor(N / 2)), independent of each other."""
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"the linear estimator takes as many rows of x as of y, got {x.shape[-2]} and {y.shape[-2]}")
    m = x.shape[-2] // 2 * 2
    x1, x2, y1, y2 = (t[..., start:m:2, :] for t in (x, y) for start in (0, 1))

    def k(a: Tensor, b: Tensor) -> Tensor:
        return entries(a, b, kernel, parameters)

    return k(x1, x2) + k(y1, y2) - k(x1, y2) - k(x2, y1)


def _weights(weights: object, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Weights of sum 1 of the rows of x and of y."""
    if weights is None:
        weights = (None, None)
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise TypeError(f"weights must be a pair, of x's rows and of y's, got {type(weights).__name__}")
    out = []
    for name, t, w in (("x", x, weights[0]), ("y", y, weights[1])):
        n, dtype = t.shape[-2], compute_dtype(t.dtype)
        if w is None:
            out.append(t.new_full((n,), 1 / n, dtype=dtype))
            continue
        w = _check.vector(f"weights of {name}", w, {f"rows of {name}": n}, t).to(dtype)
        out.append(w / w.sum())
    return out[0], out[1]


def diagonal(x: Tensor, kernel: str, parameters: dict[str, Any]) -> Tensor:
    """k(x_i, x_i), (*batch, N)."""
    x = cosine_rows(x) if kernel == "cosine" else x
    if kernel in ("linear", "cosine"):
        return x.to(compute_dtype(x.dtype)).square().sum(-1)
    p = pairs(x, None, kernel, parameters)
    return diagonal_of(p.x, p.gamma, p.coef, p.kernel, p.degree).reshape(*p.batch, -1)


def size_of_entries(x: Tensor, kernel: str, parameters: dict[str, Any]) -> float:
    """About how large the entries of the kernel matrix of rows (N, D) are, of which sums cancel."""
    mean = kernel_matmul(x, None, None, kernel, **parameters).double().abs().mean() / len(x)
    return float(mean + diagonal(x, kernel, parameters).double().abs().mean())
