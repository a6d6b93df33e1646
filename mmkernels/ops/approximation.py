"""Tests of independence and of equal distributions without permutations: limiting distributions, the wild bootstrap."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels._dispatch import memory_budget, no_autocast, slices
from mmkernels.ops._entries import data_driven
from mmkernels.ops._progress import progress as progress_bar
from mmkernels.ops._sums import UNIT_DIAGONAL, check_options, check_samples
from mmkernels.ops.dependence import cka, hsic
from mmkernels.ops.kernel import kernel_matmul, kernel_matrix
from mmkernels.ops.mmd import check_samples_of, linear_terms, mmd
from mmkernels.ops.permutation import SignificanceResult, result


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
    | `hsic_gamma` | :math:`N\, \mathrm{HSIC}_b` | gamma with the first two moments of the permutation distribution |
    | `cka_chi2` | :math:`N\, \mathrm{CKA}_u + 1` | chi-squared of one degree; conservative |
    | `distance_chi2` | the same of distance correlation | the same |
    | `mmd_normal` | the linear-time MMD over its standard error | normal; with a 95 % interval of the MMD |

    Args:
        method: as above.
        x, y: as in `permutation_test`; for "mmd_normal" as many rows of x as of y.
        kernel, gamma, parameters: as in `hsic` or `mmd`; "hsic_gamma" takes kernels with k(x, x) = 1.

    Returns:
        A `SignificanceResult` without null.

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 6 rows.

    Cost: as the statistic; "hsic_gamma" another N^2 (D_x + D_y) for the variance.

    Source: Gretton et al. 2007 (gamma); Shen, Panda and Vogelstein 2022 (chi-squared, arXiv 1912.12150); Gretton et al.
    2012 (normal).

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
            return SignificanceResult(
                mean, 0.5 * math.erfc(z / math.sqrt(2)), none, (mean - 1.96 * error, mean + 1.96 * error)
            )
        x, y = check_samples([x, y], 6)
        N = len(x)
        if method == "hsic_gamma":
            return _gamma(x, y, check_options([x, y], kernel, gamma, parameters), none)
        if method == "distance_chi2":
            kernel, gamma = "energy", None
        statistic = float(cka(x, y, kernel, gamma=gamma, debiased=True, parameters=parameters))
        return SignificanceResult(statistic, math.erfc(math.sqrt(max(0.0, N * statistic + 1) / 2)), none)


def _gamma(x: Tensor, y: Tensor, options: list[tuple[str, dict[str, Any]]], none: Tensor) -> SignificanceResult:
    N = len(x)
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
    kernels = [(name, data_driven(t, None, name, own)) for t, (name, own) in zip((x, y), options, strict=True)]
    if any(name not in UNIT_DIAGONAL for name, _ in kernels):
        raise ValueError(f"hsic_gamma takes kernels with k(x, x) = 1, got {[name for name, _ in kernels]}")
    names, own = [name for name, _ in kernels], [p for _, p in kernels]
    statistic = float(hsic(x, y, names, gamma=None, parameters=own))
    rows = [kernel_matmul(t, None, None, name, **p).double() for t, (name, p) in zip((x, y), kernels, strict=True)]
    means = [float((r.sum() - N) / (N * (N - 1))) for r in rows]
    square = 0.0
    for i, K, L in _centred_blocks(x, y, kernels, rows):
        products = (K * L).square_()
        square += float(products.sum(dtype=torch.float64) - products[:, i].diagonal().sum(dtype=torch.float64))
    variance = 2 * (N - 4) * (N - 5) / (N * (N - 1) * (N - 2) * (N - 3)) * square / (N * (N - 1))
    mean = (1 + means[0] * means[1] - means[0] - means[1]) / N
    if variance <= 0 or mean <= 0:
        return SignificanceResult(statistic, 1.0, none)
    shape, scale = mean**2 / variance, variance / mean
    value = torch.tensor([shape, statistic / scale], dtype=torch.float64)
    return SignificanceResult(statistic, float(torch.special.gammaincc(value[0], value[1].clamp(min=0))), none)


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

    with H the product of the centred kernel matrices, or the kernel of MMD. Permutations of dependent rows reject too
    often; this keeps the level if lag exceeds the time over which rows depend on each other.

    Args:
        statistic: "hsic" or "mmd" (as many rows of x as of y), biased.
        x: (N, D_x) in float16, bfloat16, float32 or float64, in the order of time.
        y: (N, D_y), x's dtype and device.
        n: bootstrap samples.
        lag: in rows, above 0. "hsic" has little power unless N is at least fifteen times that.
        kernel, gamma, parameters: as in `hsic` or `mmd`.
        seed: of a generator of its own.
        progress: show a bar, where rich is installed.

    Returns:
        A `SignificanceResult`. The smallest p-value is 1 / (n + 1).

    Raises:
        TypeError, ValueError: arguments that do not fit; fewer than 4 rows.

    Cost: N^2 (D_x + D_y + n) multiply-adds.

    Source: Chwialkowski, Sejdinovic and Gretton 2014 (arXiv 1408.5404).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(300, 1).cumsum(0)
        >>> mmkernels.wild_bootstrap_test("hsic", x, x + torch.randn(300, 1), 200).pvalue < 0.05
        True
    """
    _check.choice("statistic", statistic, ("hsic", "mmd"))
    _check.integer("n", n, 1)
    _check.integer("seed", seed, 0)
    decay = math.exp(-1 / _check.number("lag", lag, 0))
    for name, t in (("x", x), ("y", y)):
        _check.embeddings(name, t)
    x, y = check_samples([x, y], 4)
    N = len(x)
    x, y = (t if t.dtype == torch.float64 else t.float() for t in (x, y))
    noise = torch.randn(N, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    noise[1:] *= math.sqrt(1 - decay**2)
    for time in range(1, N):
        noise[time] += decay * noise[time - 1]
    with no_autocast(x):
        if statistic == "mmd":
            x, y, own = check_samples_of(x, y, str(kernel), gamma, None, parameters)
            W = (noise - noise.mean(0)).to(x)
            signed = torch.cat([W, -W]) / N
            null = (signed * kernel_matmul(torch.cat([x, y]), None, signed, str(kernel), **own)).sum(0)
            return result(float(mmd(x, y, str(kernel), gamma=None, parameters=own)), null, x.dtype)
        options = check_options([x, y], kernel, gamma, parameters)
        kernels = [(name, data_driven(t, None, name, own)) for t, (name, own) in zip((x, y), options, strict=True)]
        rows = [
            kernel_matmul(t, None, None, name, **own).double() for t, (name, own) in zip((x, y), kernels, strict=True)
        ]
        W, null, observed = noise.to(x), torch.zeros(n, dtype=torch.float64, device=x.device), 0.0
        with progress_bar(progress, "Rows", N) as show:
            for i, K, L in _centred_blocks(x, y, kernels, rows):
                H = K.mul_(L)
                null += (W[i] * (H @ W)).sum(0, dtype=torch.float64)
                observed += float(H.sum(dtype=torch.float64))
                show(i.stop, f"{i.stop} of {N}")
    return result(observed / N**2, null / N**2, x.dtype)


def _centred_blocks(
    x: Tensor, y: Tensor, kernels: Sequence[tuple[str, dict[str, Any]]], rows: Sequence[Tensor]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield some rows of HKH and of HLH, given the row sums of K and L."""
    N = len(x)
    views = list(zip((x, y), kernels, rows, strict=True))
    for i in slices(N, max(1, memory_budget() // (8 * N * x.element_size()))):
        K, L = (
            kernel_matrix(t[i], t, name, **own).sub_((r[i, None] + r - r.mean()).to(t.dtype) / N)
            for t, (name, own), r in views
        )
        yield i, K, L
