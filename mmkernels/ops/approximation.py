"""Tests of independence and of equal distributions without permutations: limiting distributions, the wild bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import compute_dtype, memory_budget, no_autocast, slices
from mmkernels.ops._progress import progress as progress_bar
from mmkernels.ops._sums import Options, check_options, check_samples, fixed, sums
from mmkernels.ops.dependence import cka, of_sums
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix
from mmkernels.ops.mmd import check_samples_of, linear_terms, mmd, size_of_entries
from mmkernels.ops.permutation import SignificanceResult, check_no_kernel, norms_and_size, result


@torch.no_grad()
def approximate_test(
    method: str,
    x: Tensor,
    y: Tensor,
    *,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
) -> SignificanceResult:
    r"""A p-value from a limiting distribution, without permutations.

    | method | statistic | null distribution |
    |---|---|---|
    | `hsic_gamma` | the biased HSIC | gamma with mean and variance of all permutations |
    | `cka_chi2` | the debiased CKA | N CKA + 1 chi-squared of one degree, conservative at levels up to 5 % |
    | `distance_chi2` | the U-centred distance correlation | the same |
    | `mmd_normal` | the linear-time MMD | normal, with its standard error; a 95 % interval of the MMD |

    The distributions are those of many rows: below 20 take `permutation_test`.

    Args:
        method: as above.
        x, y: as in `permutation_test`; for "mmd_normal" as many rows of x as of y.
        kernel, gamma, parameters: as in `hsic` or `mmd`; "distance_chi2" has none.

    Returns:
        A `SignificanceResult` without null. A p-value is 0 where it underflows.

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 6 rows.

    Cost: as the statistic.

    Source: Gretton et al. 2007 (gamma), Kazi-Aoual et al. 1995 (its moments); Shen, Panda and Vogelstein 2022
    (chi-squared, arXiv 1912.12150); Gretton et al. 2012 (normal).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(300, 2)
        >>> mmkernels.approximate_test("hsic_gamma", x, x + torch.randn(300, 2)).pvalue < 0.01
        True
    """
    _check.choice("method", method, ("hsic_gamma", "cka_chi2", "distance_chi2", "mmd_normal"))
    none = torch.empty(0)
    for name, t in (("x", x), ("y", y)):
        _check.embeddings(name, t)
    with no_autocast(x):
        if method == "mmd_normal":
            x, y, own = check_samples_of(x, y, str(kernel), gamma, None, parameters)
            terms = linear_terms(x, y, str(kernel), own).double()
            if len(terms) < 3:
                raise ValueError(f"at least 6 rows must be given, got {len(x)}")
            mean, error = float(terms.mean()), float(terms.std() / math.sqrt(len(terms)))
            z = mean / error if error != 0 else math.copysign(math.inf, mean) if mean else 0.0
            pvalue = 1.0 if math.isnan(z) else 0.5 * math.erfc(z / math.sqrt(2))
            return SignificanceResult(mean, pvalue, none, (mean - 1.96 * error, mean + 1.96 * error))
        x, y = check_samples([x, y], 6)
        N = len(x)
        if method == "hsic_gamma":
            return _gamma(x, y, check_options([x, y], kernel, gamma, parameters), none)
        if method == "distance_chi2":
            check_no_kernel(method, kernel, gamma, parameters)
            kernel, gamma = "energy", None
        statistic = float(cka(x, y, kernel, gamma=gamma, debiased=True, parameters=parameters))
        return SignificanceResult(statistic, math.erfc(math.sqrt(max(0.0, N * statistic + 1) / 2)), none)


def _gamma(x: Tensor, y: Tensor, options: Options, none: Tensor) -> SignificanceResult:
    N = len(x)
    views = fixed([x, y], options)
    s = sums([x for x, *_ in views], [(name, own) for _, name, own in views], of_pairs=True, diagonal=True)
    statistic = float(of_sums(s, "biased", 0, 1, s.pairs[0, 1]))
    # of the centred matrices: the trace, the sum of squares, and that of the diagonal's squares
    rows, on = s.rows.double(), s.diagonal.double()
    on = on - 2 * rows / N + rows.sum(1, keepdim=True) / N**2
    T, S = on.sum(1), on.square().sum(1)
    T2 = torch.stack([of_sums(s, "biased", v, v, s.pairs[v, v]) for v in range(2)]) * N**2
    first = (2 * ((N - 1) * T2 - T**2)).prod() / 2 / ((N - 1) ** 2 * (N + 1) * (N - 2))
    second = (N * (N + 1) * S - (N - 1) * (T**2 + 2 * T2)).prod() / ((N + 1) * N * (N - 1) * (N - 2) * (N - 3))
    mean, variance = float(T.prod() / (N - 1) / N**2), float((first + second) / N**4)
    if not (variance > 0 and mean > 0):
        return SignificanceResult(statistic, 1.0, none)
    shape, scale = mean**2 / variance, variance / mean
    value = torch.tensor([shape, max(0.0, statistic / scale)], dtype=torch.float64)
    return SignificanceResult(statistic, float(torch.special.gammaincc(value[0], value[1])), none)


@torch.no_grad()
def wild_bootstrap_test(
    statistic: str,
    x: Tensor,
    y: Tensor,
    n: int = 1000,
    *,
    lag: float = 20.0,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
    seed: int = 0,
    progress: bool = False,
) -> SignificanceResult:
    r"""Test of independence ("hsic") or of equal distributions ("mmd") of two time series.

    .. math::
        T^* = \frac{1}{N^2} \sum_{ij} w_i w_j H_{ij}, \qquad
        w_t = e^{-1/\mathrm{lag}} w_{t-1} + \sqrt{1 - e^{-2/\mathrm{lag}}}\; \epsilon_t

    with H the product of the centred kernel matrices, or the kernel of MMD, for which w is centred and scaled back to
    variance 1. Permutations of dependent rows reject too often; this keeps the level if lag exceeds the time over which
    rows depend on each other, and N is fifteen times lag or more. With fewer rows "mmd" rejects too often, and "hsic"
    has little power.

    Args:
        statistic: "hsic" or "mmd" (as many rows of x as of y), biased.
        x: (N, D_x) in float16, bfloat16, float32 or float64, in the order of time.
        y: (N, D_y), x's dtype and device.
        n: bootstrap samples.
        lag: in rows, above 0.
        kernel, gamma, parameters: as in `hsic` or `mmd`.
        seed: of a generator of its own.
        progress: show a bar, where rich is installed.

    Returns:
        A `SignificanceResult`. The smallest p-value is 1 / (n + 1).

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 4 rows.

    Cost: N^2 (D_x + D_y + n) multiply-adds; two N x n matrices, of which one in float64.

    Source: Chwialkowski, Sejdinovic and Gretton 2014 (arXiv 1408.5404).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(300, 1).cumsum(0)
        >>> mmkernels.wild_bootstrap_test("hsic", x, x + torch.randn(300, 1), 200).pvalue < 0.05
        True
    """
    _check.choice("statistic", statistic, ("hsic", "mmd"))
    _check.integer("n", n, 1)
    _check.seed(seed)
    decay = math.exp(-1 / _check.number("lag", lag, 0))
    for name, t in (("x", x), ("y", y)):
        _check.embeddings(name, t)
    x, y = check_samples([x, y], 4)
    N = len(x)
    x, y = (t.to(compute_dtype(t.dtype)) for t in (x, y))
    noise = torch.randn(N, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[1:] *= math.sqrt(1 - decay**2)
    for time in range(1, N):
        noise[time] += decay * noise[time - 1]
    with no_autocast(x):
        if statistic == "mmd":
            x, y, own = check_samples_of(x, y, str(kernel), gamma, None, parameters)
            apart = torch.arange(1, N, dtype=torch.float64)
            of_mean = float(N + 2 * ((N - apart) * decay**apart).sum()) / N**2  # the variance of a column's mean
            W = ((noise - noise.mean(0)) / math.sqrt(1 - of_mean)).to(x)
            z, signed = torch.cat([x, y]), torch.cat([W, -W]) / N
            null = (signed * kernel_matmul(z, None, signed, str(kernel), **own)).sum(0)
            observed = float(mmd(x, y, str(kernel), gamma=None, parameters=own))
            return result(observed, null, x.dtype, size_of_entries(z, str(kernel), own))
        views = fixed([x, y], check_options([x, y], kernel, gamma, parameters))
        rows = [kernel_matmul(t, None, None, name, **own).double() for t, name, own in views]
        size = norms_and_size(views)[1]
        W, null, observed = noise.to(x), torch.zeros(n, dtype=torch.float64, device=x.device), 0.0
        with progress_bar(progress, "Rows", N) as show:
            for i, K, L in _centred_blocks(views, rows):
                H = K.mul_(L)
                null += (W[i] * (H @ W)).sum(0, dtype=torch.float64)
                observed += float(H.sum(dtype=torch.float64))
                show(i.stop, f"{i.stop} of {N}")
    return result(observed / N**2, null / N**2, views[0][0].dtype, size)


def _centred_blocks(
    views: Sequence[tuple[Tensor, str, dict[str, Any]]], rows: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some rows of HKH and of HLH, given the row sums of K and L."""
    x = views[0][0]
    N = len(x)
    for i in slices(N, max(1, memory_budget() // (8 * N * x.element_size()))):
        K, L = (
            kernel_matrix(t[i], t, name, **own).sub_((r[i, None] + r - r.mean()).to(t.dtype) / N)
            for (t, name, own), r in zip(views, rows, strict=True)
        )
        yield i, K, L
