"""Kernel matrices, and their products with vectors that never store them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, no_autocast
from mmkernels.autograd.matmul import matmul
from mmkernels.ops._autocast import autocast
from mmkernels.ops._kernels import Gamma, Parameter, broadcast, check_kernel, check_pairs, cosine_rows, flat, pairs


def kernel_matrix(x: Tensor, y: Tensor | None = None, kernel: str = "rbf", **parameters: Any) -> Tensor:
    r"""The matrix K of a kernel between all rows of x and all rows of y.

    | kernel | :math:`k(x, y)` | parameters |
    |---|---|---|
    | `linear` | :math:`\langle x, y\rangle` | |
    | `cosine` | :math:`\langle x, y\rangle / (\lVert x\rVert \lVert y\rVert)` | |
    | `polynomial` | :math:`(\gamma\langle x, y\rangle + c)^p` | gamma = 1/D, coef0 = 1, degree = 3 |
    | `exponential` | :math:`\exp(\gamma\langle x, y\rangle)` | gamma = 1/D |
    | `sigmoid` | :math:`\tanh(\gamma\langle x, y\rangle + c)` | gamma = 1/D, coef0 = 1 |
    | `rbf` | :math:`\exp(-\gamma\lVert x - y\rVert^2)` | gamma = 1/D, or length_scale |
    | `laplacian` | :math:`\exp(-\gamma\lVert x - y\rVert_1)` | gamma = 1/D |
    | `matern` | :math:`e^{-r}`, :math:`(1 + r)e^{-r}`, :math:`(1 + r + r^2/3)e^{-r}` | length_scale = 1, nu = 1.5 |
    | `rational_quadratic` | :math:`(1 + d^2 / (2\alpha))^{-\alpha}` | length_scale = 1, alpha = 1 |
    | `energy` | :math:`-\lVert x - y\rVert` | |

    with :math:`d = \lVert x - y\rVert / \ell` and :math:`r = \sqrt{2\nu}\,d` for nu = 1/2, 3/2 and 5/2.

    Differentiable, twice too, in x, y and every parameter but degree and nu. Equal rows have distance exactly 0, and
    kernels with a kink there (Matérn 1/2, Laplacian, energy) gradient 0. For one product with K, or for rows too many
    to hold K, see `kernel_matmul`.

    Args:
        x: (..., N, D) in float16, bfloat16, float32 or float64.
        y: (..., M, D), x's dtype and device; None for x itself, of which half is computed. Leading dimensions
            broadcast.
        kernel: one of the names above.
        **parameters: numbers, or floating tensors (whose values are not checked). gamma, coef0 and alpha are
            0-dimensional, or `(*batch, 1, 1)` for one a batch entry. length_scale divides x and y: 0-dimensional,
            (D,) for one a feature (ARD), `(*batch, 1, 1)` or `(*batch, 1, D)`. For `rbf`, a sequence or 1-dimensional
            tensor of gammas is a mixture, the sum of their kernels. gamma="scale" is 1 / (D var(x)); gamma="median"
            is 1 / (2 m^2) for `rbf` and 1 / m for `laplacian`, length_scale="median" is m, the median distance
            of rows that differ (of a seeded sample of 1,000 where there are more), all without gradient.

    Returns:
        (..., N, M), float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype, or a parameter that the kernel does not have.
        ValueError: ranks, sizes, devices that do not fit, an unknown kernel, a number out of range.

    Cost: one N x M x D product forward, two or three backward. Gradients take one N x M matrix, that of K.

    Sources: Schölkopf and Smola, Learning with Kernels (2002); Rasmussen and Williams, Gaussian Processes for Machine
    Learning (2006), chapter 4. Names, parameters and defaults are those of `sklearn.metrics.pairwise` and
    `sklearn.gaussian_process.kernels`.

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(500, 8)
        >>> mmkernels.kernel_matrix(x, kernel="matern", nu=2.5, length_scale="median").shape
        torch.Size([500, 500])
    """
    x, y = check_pairs(x, y)
    check_kernel(kernel, parameters)
    if kernel in ("linear", "cosine"):
        left, right = _rows(x, y, kernel)
        with no_autocast(x):
            return left @ right.mT
    p = pairs(x, y, kernel, parameters)
    with no_autocast(x):
        K = matmul(p.x, p.y, None, p.gamma, p.coef, p.kernel, p.degree)
    return K.reshape(*p.batch, *K.shape[1:])


def kernel_matmul(
    x: Tensor,
    y: Tensor | None,
    v: Tensor | None = None,
    kernel: str = "rbf",
    *,
    diag: Parameter | None = None,
    normalize: str | None = None,
    **parameters: Any,
) -> Tensor:
    r"""The product K v of a kernel matrix that is never stored, in O(N + M) memory.

    .. math::
        \mathrm{out}_i = \sum_j k(x_i, y_j)\, v_j

    Kernels and parameters are those of `kernel_matrix`. Differentiable in x, y, v, diag and every parameter, in O(N)
    memory; twice too. Results are bitwise reproducible.

    Args:
        x: (..., N, D) in float16, bfloat16, float32 or float64.
        y: (..., M, D), x's dtype and device; None for x itself, of which half is computed on a CPU. Leading
            dimensions broadcast, those of v too.
        v: (M,) or (..., M, E), x's dtype and device; None for the row sums of K.
        kernel: a name listed at `kernel_matrix`.
        diag: added to the diagonal of a square K: a number, or a floating tensor, 0-dimensional or (..., N).
        normalize: "rows" divides every row of K by its sum (Nadaraya–Watson regression, attention), in the same
            sweep. A row whose sum is 0, far from every y, gives NaN.
        **parameters: the kernel's, as for `kernel_matrix`.

    Returns:
        (..., N, E), or (..., N) where v is (M,) or None; float32 (float64 for float64 inputs).

    Raises:
        TypeError: an argument of the wrong type or dtype, or a parameter that the kernel does not have.
        ValueError: ranks, sizes, devices that do not fit, an unknown kernel, a number out of range, a diag where K is
            not square, row sums to be normalised.

    Cost: N M (D + E) multiplications and additions forward, at most four times as many with all gradients; half of it
    for y None on a CPU. `linear` and `cosine` take (N + M) D E.

    Sources: Charlier et al. 2021 (KeOps, JMLR 22); Rabe and Staats 2021 (arXiv 2112.05682) and Dao et al. 2022
    (2205.14135) for streaming the product; Nadaraya 1964 and Watson 1964.

    Example:
        >>> import torch, mmkernels
        >>> x, v = torch.randn(20000, 64), torch.randn(20000)
        >>> mmkernels.kernel_matmul(x, None, v, "rbf", gamma="median").shape
        torch.Size([20000])
    """
    x, y = check_pairs(x, y)
    check_kernel(kernel, parameters)
    N, M = x.shape[-2], (x if y is None else y).shape[-2]
    if normalize is not None:
        _check.choice("normalize", normalize, ("rows",))
        if v is None:
            raise ValueError("normalize='rows' makes every row sum 1: give v")
    if diag is not None and N != M:
        raise ValueError(f"diag needs a square kernel matrix, got {N} x {M}")
    vector = v is None or (isinstance(v, Tensor) and v.ndim == 1)
    columns = x.new_ones(M, 1) if v is None else _columns(v, M, x)
    diagonal = None if diag is None else diagonal_entries(diag, N, x)
    if normalize is not None:
        ones = columns.new_ones(*columns.shape[:-1], 1)
        columns = torch.cat([columns, ones], -1)
    columns = autocast(columns)
    out = _product(x, y, columns, kernel, parameters)
    if diagonal is not None:
        if isinstance(diagonal, Tensor):
            diagonal = diagonal.to(out.dtype)
        out = out + diagonal * columns.to(out.dtype)
    if normalize is not None:
        out = out[..., :-1] / out[..., -1:]
    return out.squeeze(-1) if vector else out


def _product(x: Tensor, y: Tensor | None, v: Tensor, kernel: str, parameters: dict[str, Any]) -> Tensor:
    """K v for v (..., M, E)."""
    if kernel in ("linear", "cosine"):
        left, right = _rows(x, y, kernel)
        with no_autocast(x):
            return left @ (right.mT @ v.to(left.dtype))
    p = pairs(x, y, kernel, parameters, v.shape[:-2])
    broadcast("v", p.batch, v, 2)
    v = v.to(p.x.dtype)
    if not p.batch:  # one K for every batch entry of v: its columns are v's, side by side
        batch, (M, E) = v.shape[:-2], v.shape[-2:]
        count = math.prod(batch)
        side_by_side = v.reshape(count, M, E).transpose(0, 1).reshape(1, M, count * E)
        with no_autocast(x):
            out = matmul(p.x, p.y, side_by_side, p.gamma, p.coef, p.kernel, p.degree)
        N = out.shape[1]
        return out.reshape(N, count, E).transpose(0, 1).reshape(*batch, N, E)
    with no_autocast(x):
        out = matmul(p.x, p.y, flat(v, p.batch), p.gamma, p.coef, p.kernel, p.degree)
    return out.reshape(*p.batch, *out.shape[1:])


def _rows(x: Tensor, y: Tensor | None, kernel: str) -> tuple[Tensor, Tensor]:
    """What a linear or cosine kernel multiplies, in the compute dtype."""
    left = autocast(x)
    right = left if y is None else autocast(y)
    if kernel == "cosine":
        return cosine_rows(left), cosine_rows(right)
    return tuple(t.to(compute_dtype(t.dtype)) for t in (left, right))  # type: ignore[return-value]


def _columns(v: object, M: int, x: Tensor) -> Tensor:
    """v as (..., M, E)."""
    ndim = max(1, v.ndim) if isinstance(v, Tensor) else 1
    t = _check.floating("v", v, ndim)
    rows = t[:, None] if ndim == 1 else t
    if rows.shape[-2] != M:
        raise ValueError(f"v must have as many rows as K has columns, {M}, got shape {tuple(t.shape)}")
    if t.dtype != x.dtype:
        raise TypeError(f"v must have x's dtype, got {t.dtype} and {x.dtype}")
    _check.on_device("v", t, x)
    broadcast("v", x.shape[:-2], rows, 2)
    return rows


def diagonal_entries(diag: object, N: int, x: Tensor) -> Parameter:
    """diag as a number, 0-dimensional, or (..., N, 1)."""
    if not isinstance(diag, Tensor):
        return _check.number("diag", diag)
    _check.on_device("diag", _check.floating("diag", diag, diag.ndim), x)
    if diag.ndim == 0:
        return diag
    if diag.shape[-1] not in (1, N):
        raise ValueError(f"diag must be 0-dimensional or (..., N) with N = {N}, got shape {tuple(diag.shape)}")
    return diag[..., None]


def linear_kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """<x, y> of all rows: `kernel_matrix(x, y, "linear")`; x (..., N, D), y (..., M, D), result (..., N, M)."""
    return kernel_matrix(x, y, "linear")


def cosine_kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """<x, y> / (|x| |y|), 0 for rows of zeros: `kernel_matrix(x, y, "cosine")`; result (..., N, M)."""
    return kernel_matrix(x, y, "cosine")


def polynomial_kernel(
    x: Tensor, y: Tensor | None = None, degree: int = 3, gamma: Gamma = None, coef0: Parameter = 1.0
) -> Tensor:
    """(gamma <x, y> + coef0)^degree, gamma 1/D: `kernel_matrix(x, y, "polynomial", ...)`; result (..., N, M)."""
    return kernel_matrix(x, y, "polynomial", degree=degree, gamma=gamma, coef0=coef0)


def exponential_kernel(x: Tensor, y: Tensor | None = None, gamma: Gamma = None) -> Tensor:
    """exp(gamma <x, y>), gamma 1/D: `kernel_matrix(x, y, "exponential", ...)`; result (..., N, M)."""
    return kernel_matrix(x, y, "exponential", gamma=gamma)


def sigmoid_kernel(x: Tensor, y: Tensor | None = None, gamma: Gamma = None, coef0: Parameter = 1.0) -> Tensor:
    """tanh(gamma <x, y> + coef0), gamma 1/D: `kernel_matrix(x, y, "sigmoid", ...)`; result (..., N, M)."""
    return kernel_matrix(x, y, "sigmoid", gamma=gamma, coef0=coef0)


def rbf_kernel(
    x: Tensor,
    y: Tensor | None = None,
    gamma: Gamma = None,
    *,
    length_scale: Parameter | str | None = None,
) -> Tensor:
    """exp(-gamma |x - y|^2), gamma 1/D or 1 / (2 length_scale^2); several gammas are summed.

    `kernel_matrix(x, y, "rbf", ...)`; result (..., N, M).
    """
    return kernel_matrix(x, y, "rbf", gamma=gamma, length_scale=length_scale)


def laplacian_kernel(x: Tensor, y: Tensor | None = None, gamma: Gamma = None) -> Tensor:
    """exp(-gamma |x - y|_1), gamma 1/D: `kernel_matrix(x, y, "laplacian", ...)`; result (..., N, M)."""
    return kernel_matrix(x, y, "laplacian", gamma=gamma)


def matern_kernel(x: Tensor, y: Tensor | None = None, length_scale: Parameter | str = 1.0, nu: float = 1.5) -> Tensor:
    """Matérn's kernel of smoothness nu, 0.5, 1.5 or 2.5: `kernel_matrix(x, y, "matern", ...)`; result (..., N, M)."""
    return kernel_matrix(x, y, "matern", length_scale=length_scale, nu=nu)


def rational_quadratic_kernel(
    x: Tensor, y: Tensor | None = None, length_scale: Parameter | str = 1.0, alpha: Parameter = 1.0
) -> Tensor:
    """(1 + |x - y|^2 / (2 alpha length_scale^2))^-alpha: `kernel_matrix(x, y, "rational_quadratic", ...)`."""
    return kernel_matrix(x, y, "rational_quadratic", length_scale=length_scale, alpha=alpha)


def energy_kernel(x: Tensor, y: Tensor | None = None) -> Tensor:
    """-|x - y|, the kernel of energy distances: `kernel_matrix(x, y, "energy")`; result (..., N, M)."""
    return kernel_matrix(x, y, "energy")
