"""Entropy and mutual information from samples, in nats and in O(N) memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmkernels import _check
from mmkernels.autograd._cholesky import cholesky
from mmkernels.ops._autocast import without_autocast
from mmkernels.ops._density import log_densities, log_sums, scaled
from mmkernels.ops._discrete import binned, entropy_of_labels, information_of_labels, is_labels
from mmkernels.ops._knn import kozachenko_leonenko, ksg
from mmkernels.ops._sums import UNIT_DIAGONAL, Options, check_options, check_samples, each, several, sums
from mmkernels.ops.covariance import covariance
from mmkernels.ops.dependence import hsic

POSITIVE = ("rbf", "laplacian", "matern", "rational_quadratic", "exponential")
ENTROPIES = ("gaussian", "kde", "knn", "renyi")
INFORMATION = ("gaussian", "ksg1", "ksg2", "kde", "binned", "renyi", "cauchy_schwarz", "euclidean")


@without_autocast
def entropy(
    x: Tensor,
    method: str = "knn",
    *,
    k: int = 3,
    norm: str = "max",
    bandwidth: Any = "scott",
    reg: float = 0.0,
    kernel: str = "rbf",
    gamma: Any = "median",
    parameters: dict[str, Any] | None = None,
) -> Tensor:
    r"""Entropy of the distribution that rows are drawn from, in nats.

    | method | estimate | options |
    |---|---|---|
    | `gaussian` | :math:`\frac12 \log\det(2 \pi e\, \Sigma)`, exact for normal data | `reg` |
    | `knn` | :math:`\psi(N) - \psi(k) + \log c_D + \frac{D}{N} \sum_i \log \epsilon_i` | `k`, `norm` |
    | `kde` | :math:`-\frac1N \sum_i \log \hat p_{-i}(x_i)`, Gaussian kernels | `bandwidth` |
    | `renyi` | :math:`-\log \frac{1}{N^2} \sum_{ij} K_{ij}^2`, matrix-based, of order 2 | `kernel`, `gamma` |

    "knn" is the estimate of Kozachenko and Leonenko; "kde" leaves each row out of its own density. The first three
    estimate the differential entropy; "renyi" is that of the kernel matrix, between 0 and log N.

    Args:
        x: (N, D) in float16, bfloat16, float32 or float64; or labels, integers (N,), whose entropy is the plug-in
            estimate :math:`-\sum_c p_c \log p_c` from their frequencies, with no method.
        method: as above.
        k: which neighbour's distance :math:`\epsilon_i` is.
        norm: "max" or "euclidean"; :math:`c_D` is the volume of the ball of radius 1.
        bandwidth: "scott" (:math:`N^{-1/(D+4)}` times each feature's standard deviation, detached), a positive number,
            or a tensor, 0-dimensional or (D,).
        reg: added to the variances.
        kernel, gamma, parameters: as in `hsic`; kernels with k(x, x) = 1.

    Returns:
        0-dimensional, float32, or float64 for float64 and labels. Derivatives in x, and in a bandwidth or gamma that is
        a tensor; "knn" has them of first order (neighbours are held fixed).

    Raises:
        TypeError, ValueError: arguments that do not fit; too few rows; for "knn", on a CPU, rows that coincide with
            their k-th neighbour, whose distance has no logarithm.

    Cost: "gaussian" N D^2 / 2; the others N^2 D, "knn" N D log N with SciPy's tree up to about 12 dimensions on a CPU.

    Source: Kozachenko and Leonenko 1987; Hall and Morton 1993; Sanchez Giraldo, Rao and Principe 2015 (arXiv
    1211.2459).

    Example:
        >>> import math, torch, mmkernels
        >>> x = torch.randn(2000, 1)
        >>> bool((mmkernels.entropy(x) - 0.5 * math.log(2 * math.pi * math.e)).abs() < 0.2)
        True
    """
    _check.choice("method", method, ENTROPIES)
    if is_labels(x):
        return entropy_of_labels(x, method)
    (x,) = check_samples([x], 2)
    _check.tensor("x", x, 2)
    D = x.shape[1]
    if method == "gaussian":
        L = cholesky(covariance(x).cov + _check.number("reg", reg, 0, with_low=True) * _eye(D, x))
        return L.diagonal().log().sum() + D / 2 * math.log(2 * math.pi * math.e)
    if method == "knn":
        return kozachenko_leonenko(x, k, norm)
    if method == "kde":
        z, log_h = scaled(x, bandwidth)
        return -log_densities(z, log_h).mean()
    return matrix_entropy([x], kernel_options([x], kernel, gamma, parameters))


@without_autocast
def mutual_information(
    x: Tensor,
    y: Tensor,
    method: str = "ksg1",
    *,
    k: int = 3,
    bandwidth: Any = "scott",
    bins: int = 10,
    reg: float = 0.0,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
) -> Tensor:
    r"""Mutual information of the distributions that pairs of rows are drawn from, in nats.

    | method | estimate |
    |---|---|
    | `gaussian` | :math:`-\frac12 \sum_i \log(1 - \rho_i^2)`, canonical correlations: exact for normal data |
    | `ksg1` | :math:`\psi(k) + \psi(N) - \langle\psi(n_x + 1) + \psi(n_y + 1)\rangle`, a square for each row |
    | `ksg2` | :math:`\psi(k) - \frac1k + \psi(N) - \langle\psi(n_x) + \psi(n_y)\rangle`, a rectangle for each row |
    | `kde` | :math:`\frac1N \sum_i \log \frac{\hat p_{-i}(x_i, y_i)}{\hat p_{-i}(x_i)\, \hat p_{-i}(y_i)}` |
    | `binned` | :math:`\sum_{ab} p_{ab} \log \frac{p_{ab}}{p_a p_b}`, frequencies in bins of equal width |
    | `renyi` | matrix-based, of order 2: :math:`\log \frac{N^2 \sum K^2 L^2}{\sum K^2 \sum L^2}` |
    | `cauchy_schwarz` | :math:`\log \frac{V_J V_M}{V_C^2}`, a divergence between joint and product density |
    | `euclidean` | the squared distance of the two: the biased `hsic` |

    The first five estimate Shannon's mutual information. The last three do not: they are 0 for independent variables
    (in the limit) and larger otherwise, and depend on the kernel. With K and L the kernel matrices,
    :math:`V_J = \frac{1}{N^2}\sum K L`, :math:`V_M = \frac{1}{N^4} \sum K \sum L`,
    :math:`V_C = \frac{1}{N^3} \sum_i (\sum_j K_{ij}) (\sum_j L_{ij})`.

    "ksg1" admits rows that coincide, as those of discrete or partly discrete variables do: of such a row those that
    coincide with it are counted (Gao et al.). "ksg2" does not.

    Labels are integers (N,). With labels for x or y, and rows for the other, the estimate is that of Ross, by distances
    to the k-th neighbour with the same label; rows whose label occurs once are left out. With labels for both it is the
    plug-in estimate from their contingency table. Both have no method and no gradient.

    Args:
        x: (N, D_x) in float16, bfloat16, float32 or float64, or labels.
        y: (N, D_y), x's dtype and device, or labels.
        method: as above.
        k: of the nearest neighbours.
        bandwidth: as in `entropy`; one, or a list or tuple with one for x and one for y.
        bins: of each variable, from its least to its largest value; "binned" takes one feature each.
        reg: added to the variances; "gaussian" needs it where covariances are singular.
        kernel, gamma, parameters: as in `hsic`.

    Returns:
        0-dimensional, float32, or float64 for float64 and labels alone. "ksg1", "ksg2" and "binned" raise a
        NotImplementedError where a gradient is asked for: counts have none. The others have derivatives of any order.

    Raises:
        TypeError, ValueError: arguments that do not fit; too few rows; on a CPU, values that are not finite where
            neighbours or bins are counted.

    Cost: "gaussian" N D^2 / 2, "binned" N log N; the others N^2 (D_x + D_y), one sweep over pairs each
    ("kde" three); "ksg1" and "ksg2" N log N with SciPy's tree up to about 12 dimensions on a CPU.

    Source: Kraskov, Stogbauer and Grassberger 2004 (KSG); Gao, Kannan, Oh and Viswanath 2017 (arXiv 1709.06212); Ross
    2014 (PLoS ONE 9); Moon, Rajagopalan and
    Lall 1995; Principe 2010 (quadratic measures); Sanchez Giraldo, Rao and Principe 2015 (arXiv 1211.2459).

    Example:
        >>> import torch, mmkernels
        >>> x = torch.randn(1000, 1)
        >>> y = 0.8 * x + 0.6 * torch.randn(1000, 1)  # true value 0.511
        >>> bool((mmkernels.mutual_information(x, y) - 0.511).abs() < 0.15)
        True
    """
    _check.choice("method", method, INFORMATION)
    if is_labels(x) or is_labels(y):
        return information_of_labels(x, y, method, k)
    views = check_samples([x, y], 2)
    _check.tensor("x", views[0], 2)
    if method == "gaussian":
        return total_correlation(views, "gaussian", reg=reg)
    if method in ("ksg1", "ksg2"):
        return ksg(views, k, int(method[-1]))
    if method == "kde":
        return total_correlation(views, "kde", bandwidth=bandwidth)
    if method == "binned":
        return binned(views[0], views[1], bins)
    if method == "euclidean":
        return hsic(x, y, kernel, gamma=gamma, parameters=parameters)
    if method == "renyi":
        return total_correlation(views, "renyi", kernel=kernel, gamma=gamma, parameters=parameters)
    options = check_options(views, kernel, gamma, parameters)
    if any(name not in POSITIVE for name, _ in options):
        raise ValueError(f"method 'cauchy_schwarz' takes kernels above 0, {', '.join(POSITIVE)}, got {kernel!r}")
    s = sums(views, options, product=True, centred=False)
    r, t = s.rows.double().unbind(-2)
    return (s.product.log() + r.sum(-1).log() + t.sum(-1).log() - 2 * (r * t).sum(-1).log()).to(s.rows.dtype)


@without_autocast
def total_correlation(
    views: Sequence[Tensor],
    method: str = "ksg1",
    *,
    k: int = 3,
    bandwidth: Any = "scott",
    reg: float = 0.0,
    kernel: str | Sequence[str] = "rbf",
    gamma: Any = "median",
    parameters: Any = None,
) -> Tensor:
    r"""How far several variables are from independent of each other, in nats: mutual information of two or more.

    .. math::
        \mathrm{TC} = \sum_v H(x_v) - H(x_1, \dots, x_V)

    Args:
        views: V >= 2 tensors (N, D_v) of one dtype and device.
        method: "gaussian", "ksg1", "ksg2", "kde" or "renyi", as in `mutual_information`.
        k, reg, kernel, gamma, parameters: as there.
        bandwidth: as there, one or one for each view.

    Returns, raises and cost: as `mutual_information`.

    Source: Watanabe 1960; Kraskov, Stogbauer and Grassberger 2004, equations 23 and 30; Yu et al. 2019 (arXiv
    1808.07912) for several kernel matrices.

    Example:
        >>> import torch, mmkernels
        >>> x, y, z = torch.randn(3, 500, 1)
        >>> bool(mmkernels.total_correlation([x, y, x + y + z], "gaussian") > 0.3)
        True
    """
    checked = check_samples(several(views), 2)
    _check.tensor("x", checked[0], 2)
    _check.choice("method", method, ("gaussian", "ksg1", "ksg2", "kde", "renyi"))
    if method in ("ksg1", "ksg2"):
        return ksg(checked, k, int(method[-1]))
    if method == "gaussian":
        S = covariance(*checked)
        reg = _check.number("reg", reg, 0, with_low=True)
        blocks = [S.block(v, v) + reg * _eye(size, S.cov) for v, size in enumerate(S.sizes)]
        parts = [cholesky(B, f"the covariance of view {v}").diagonal().log().sum() for v, B in enumerate(blocks)]
        joint = cholesky(S.cov + reg * _eye(sum(S.sizes), S.cov), "the joint covariance").diagonal().log().sum()
        return torch.stack(parts).sum() - joint
    if method == "renyi":
        options = kernel_options(checked, kernel, gamma, parameters)
        marginal = [matrix_entropy([v], [own]) for v, own in zip(checked, options, strict=True)]
        return torch.stack(marginal).sum() - matrix_entropy(checked, options)
    bandwidths = each("bandwidth", bandwidth, len(checked))
    scaled_views = [scaled(v, b)[0] for v, b in zip(checked, bandwidths, strict=True)]
    N, V = checked[0].shape[0], len(checked)
    marginals = torch.stack([log_sums(z) for z in scaled_views]).sum(0)
    return (log_sums(torch.cat(scaled_views, 1)) - marginals).mean() + (V - 1) * math.log(N - 1)


def kernel_options(views: Sequence[Tensor], kernel: Any, gamma: Any, parameters: Any) -> Options:
    """The kernel and the parameters of each view, of kernels with k(x, x) = 1."""
    options = check_options(views, kernel, gamma, parameters)
    for name, own in options:
        if name not in UNIT_DIAGONAL:
            raise ValueError(f"method 'renyi' takes kernels with k(x, x) = 1, got {name!r}")
        if isinstance(own.get("gamma"), Tensor) and own["gamma"].numel() > 1:
            raise ValueError(f"method 'renyi' takes one gamma for each view, got {own['gamma'].numel()}")
    return options


def matrix_entropy(views: Sequence[Tensor], options: Options) -> Tensor:
    """-log (sum of the squared product of all kernel matrices / N^2)."""
    s = sums(views, options, square=True, centred=False)
    return (2 * math.log(s.n) - s.square.log()).to(s.rows.dtype)


def _eye(D: int, like: Tensor) -> Tensor:
    dtype = like.dtype if like.dtype == torch.float64 else torch.float32
    return torch.eye(D, dtype=dtype, device=like.device)
