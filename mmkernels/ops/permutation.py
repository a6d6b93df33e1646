"""Tests of independence and of equal distributions by permutations, in O(N) memory where N is large."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, memory_budget, no_autocast, slices
from mmkernels.ops._progress import track
from mmkernels.ops._sums import check_options, check_samples, fixed, sums
from mmkernels.ops.dependence import of_sums
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix
from mmkernels.ops.mmd import check_samples_of, size_of_entries

INDEPENDENCE = ("hsic", "cka", "distance_covariance", "distance_correlation")
TWO_SAMPLE = ("mmd", "energy_distance")
_COLUMNS = 256  # permutations in one kernel product


class SignificanceResult(NamedTuple):
    """Result of a test.

    Attributes:
        statistic: its value on the data.
        pvalue: in [0, 1].
        null: its values under the null hypothesis, (n,); empty for approximations.
        interval: a 95 % confidence interval of what the statistic estimates, where there is one.
    """

    statistic: float
    pvalue: float
    null: Tensor
    interval: tuple[float, float] | None = None


@torch.no_grad()
def permutation_test(
    statistic: str,
    x: Tensor,
    y: Tensor,
    n: int | None = None,
    *,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
    seed: int = 0,
    progress: bool = False,
) -> SignificanceResult:
    r"""Test of independence ("hsic", "cka", "distance_covariance", "distance_correlation") or of equal distributions
    ("mmd", "energy_distance") by permutations, exact at any sample size.

    Independence: rows are put in random order, and y is shifted against x cyclically. The N shifts are a group, so the
    level is exact, and all their statistics are one inverse Fourier transform of the sums over cyclic diagonals of K
    and L,

    .. math::
        T_s = \sum_{ij} K_{ij} L_{i+s, j+s}
        = \mathcal{F}^{-1}\Big[\sum_d \overline{\mathcal{F} K_d}\; \mathcal{F} L_d\Big]_s, \qquad (K_d)_i = K_{i, i+d},

    in bands of diagonals, without an N x N matrix: all N for the price of a few. Equal distributions: the rows of
    x and y are divided anew at random, n times, in one product of the kernel matrix with n columns.

    Args:
        statistic: its biased estimate is what is tested.
        x: (N, D_x), or for two samples (M, D), in float16, bfloat16, float32 or float64.
        y: (N, D_y), or for two samples (N, D); x's dtype and device.
        n: how many permutations; None takes all N - 1 shifts, or 1,000 divisions. More than N - 1 are those shifts and
            as many of other random orders as it takes: the level is exact all the same.
        kernel, gamma, parameters: as in `hsic` or `mmd`; distance statistics have none.
        seed: of a generator of its own.
        progress: show a bar, where rich is installed.

    Returns:
        A `SignificanceResult`. The smallest p-value is 1 / (n + 1).

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 4 rows.

    Cost: independence: N^2 (D_x + D_y) multiply-adds, N^2 log N for the transforms, each time that rows are put into
    order. Two samples: (M + N)^2 (D + n) / 2.

    Source: Gretton et al. 2012 for two samples. Permutations by a group: Hemerik and Goeman 2018.

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(200, 2)
        >>> mmkernels.permutation_test("hsic", x, x.square().sum(1, keepdim=True)).pvalue < 0.02
        True
    """
    _check.choice("statistic", statistic, INDEPENDENCE + TWO_SAMPLE)
    _check.seed(seed)
    if n is not None:
        _check.integer("n", n, 1)
    if statistic in ("distance_covariance", "distance_correlation", "energy_distance"):
        check_no_kernel(statistic, kernel, gamma, parameters)
        kernel, gamma = "energy", None
    for name, t in (("x", x), ("y", y)):
        _check.embeddings(name, t)
    generator = torch.Generator().manual_seed(seed)
    with no_autocast(x):
        if statistic in TWO_SAMPLE:
            return _divisions(x, y, n or 1000, kernel, gamma, parameters, generator, progress)
        return _shifts(statistic, x, y, n, kernel, gamma, parameters, generator, progress)


def check_no_kernel(name: str, kernel: object, gamma: object, parameters: object) -> None:
    """Raise where a kernel is given to a statistic of distances."""
    given = [not (isinstance(v, str) and v == default) for v, default in ((kernel, "rbf"), (gamma, "median"))]
    if any(given) or parameters is not None:
        raise ValueError(f"{name} has no kernel and no parameters")


def _divisions(
    x: Tensor, y: Tensor, n: int, kernel: Any, gamma: Any, parameters: Any, generator: torch.Generator, progress: bool
) -> SignificanceResult:
    """MMD of random divisions of all rows, in products of the kernel matrix with many columns."""
    x, y, own = check_samples_of(x, y, kernel, gamma, None, parameters)
    M, N = len(x), len(y)
    if min(M, N) < 2:
        raise ValueError(f"x and y must have at least 2 rows, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    z = torch.cat([x, y]).to(compute_dtype(x.dtype))
    null = []
    for part in track(list(slices(n + 1, _COLUMNS)), "Permutations", progress):
        order = torch.rand(part.stop - part.start, M + N, generator=generator).argsort(1)
        if part.start == 0:
            order[0] = torch.arange(M + N)  # the data itself
        W = ((order < M).to(z).mT * (1 / M + 1 / N) - 1 / N).contiguous()
        null.append((W * kernel_matmul(z, None, W, kernel, **own)).sum(0))
    observed, *rest = torch.split(torch.cat(null).double(), [1, n])
    return result(float(observed), rest[0], z.dtype, size_of_entries(z, kernel, own))


def _shifts(
    statistic: str, x: Tensor, y: Tensor, n: int | None, kernel: Any, gamma: Any, parameters: Any,
    generator: torch.Generator, progress: bool,
) -> SignificanceResult:  # fmt: skip
    """HSIC of all cyclic shifts of y against x, of rows in random order; several orders if there must be more."""
    x, y = check_samples([x, y], 4)
    N = len(x)
    n = N - 1 if n is None else n
    views = fixed([x, y], check_options([x, y], kernel, gamma, parameters))
    norms, size = norms_and_size(views)
    order = torch.randperm(N, generator=generator).to(x.device)
    observed, *null = torch.split(_all_shifts(views, order, order, progress), [1, N - 1])
    while sum(map(len, null)) < n:  # all of a coset of the shifts, of which none is the identity
        x_order, y_order = (torch.randperm(N, generator=generator).to(x.device) for _ in range(2))
        null.append(_all_shifts(views, x_order, y_order, progress))
    found = torch.cat(null)
    chosen = torch.randperm(len(found), generator=generator)[:n].to(found.device)
    scale = (1 / norms if norms > 0 else math.nan) if statistic in ("cka", "distance_correlation") else 1.0
    return result(scale * float(observed), scale * found[chosen], views[0][0].dtype, scale * size)


def norms_and_size(views: Sequence[tuple[Tensor, str, dict[str, Any]]]) -> tuple[float, float]:
    """The square root of HSIC(K, K) HSIC(L, L), and the size of the terms that cancel in HSIC(K, L)."""
    s = sums([x for x, *_ in views], [(name, own) for _, name, own in views], of_pairs=True)
    own = [of_sums(s, "biased", v, v, s.pairs[v, v]).clamp(min=0).sqrt() for v in range(2)]
    sizes = [norm + centre.abs() for norm, centre in zip(own, s.centres, strict=True)]
    return float(own[0] * own[1]), float(sizes[0] * sizes[1])


def _all_shifts(
    views: Sequence[tuple[Tensor, str, dict[str, Any]]], x_order: Tensor, y_order: Tensor, progress: bool
) -> Tensor:
    """Biased HSIC of row i of x with row i + s of y, in these orders, for all s: (N,), float64."""
    N = len(x_order)
    views = [(t[order], name, own) for (t, name, own), order in zip(views, (x_order, y_order), strict=True)]
    x = views[0][0]
    rows = [kernel_matmul(t, None, None, name, **own).double() for t, name, own in views]
    # HSIC does not change when a constant is subtracted from K, and the terms that cancel become small.
    centres = [r.mean() / N for r in rows]
    r, s = (r - N * c for r, c in zip(rows, centres, strict=True))
    total = torch.zeros(N // 2 + 1, dtype=torch.complex128, device=x.device)
    width = max(1, memory_budget() // (6 * N * x.element_size()))
    for band in track(list(slices(N // 2 + 1, width)), "Diagonals", progress):  # d and N - d are each other's shifts
        K, L = (
            torch.fft.rfft(_diagonals(t, band, name, own).sub_(c))
            for (t, name, own), c in zip(views, centres, strict=True)
        )
        d = torch.arange(band.start, band.stop, device=x.device)
        twice = torch.where((d == 0) | (2 * d == N), 1, 2)
        total += (K.conj() * L * twice[:, None]).sum(0)
    products = torch.fft.irfft(total, N)
    cross = torch.fft.irfft(torch.fft.rfft(r).conj() * torch.fft.rfft(s), N)
    found: Tensor = (products - 2 / N * cross + r.sum() * s.sum() / N**2) / N**2
    return found


def _diagonals(x: Tensor, band: slice, kernel: str, parameters: dict[str, Any]) -> Tensor:
    """The cyclic diagonals d of K in the band: k(x_i, x_(i + d)), (d, N)."""
    N, width = len(x), band.stop - band.start
    out = x.new_empty(width, N)
    for i in slices(N, max(256, width)):
        n = i.stop - i.start
        columns = torch.arange(i.start + band.start, i.stop + band.stop - 1, device=x.device) % N
        K = kernel_matrix(x[i], x[columns], kernel, **parameters)
        out[:, i] = K.as_strided((width, n), (1, K.stride(0) + 1))
    return out


def result(statistic: float, null: Tensor, dtype: torch.dtype, size: float) -> SignificanceResult:
    """What a null distribution says; values that equal the statistic but for rounding count as equal.

    size is that of the terms of the statistic, which cancel.
    """
    eps = torch.finfo(dtype).eps
    rounding = max(eps**0.75 * max(abs(statistic), float(null.abs().max())), 4 * eps * size)
    above = int((~(null < statistic - rounding)).sum())  # NaN is no evidence
    return SignificanceResult(statistic, (1 + above) / (1 + len(null)), null)
