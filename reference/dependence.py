"""Dependence measures and distances of distributions as textbooks write them, from kernel matrices held as a whole.

K and L are (..., N, N), the kernel matrices of two views of the same rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.kernel import distances


def centred(K: Tensor) -> Tensor:
    """H K H with H = I - 11' / N."""
    N = K.shape[-1]
    H = torch.eye(N, dtype=K.dtype, device=K.device) - 1 / N
    return H @ K @ H


def hsic(K: Tensor, L: Tensor) -> Tensor:
    """tr(K H L H) / N^2 (Gretton et al. 2007)."""
    return (centred(K) * centred(L)).sum((-2, -1)) / K.shape[-1] ** 2


def hsic_unbiased(K: Tensor, L: Tensor) -> Tensor:
    """Song et al. 2012, equation 5."""
    n = K.shape[-1]
    K, L = hollow(K), hollow(L)
    total = (K @ L).diagonal(dim1=-2, dim2=-1).sum(-1) + K.sum((-2, -1)) * L.sum((-2, -1)) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (K @ L).sum((-2, -1))) / (n * (n - 3))


def cka(K: Tensor, L: Tensor, debiased: bool = False) -> Tensor:
    """HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) (Kornblith et al. 2019)."""
    h = hsic_unbiased if debiased else hsic
    return h(K, L) / (h(K, K) * h(L, L)).sqrt()


def distance_covariance(x: Tensor, y: Tensor) -> Tensor:
    """The mean of A_ij B_ij, A and B doubly centred distances (Szekely, Rizzo and Bakirov 2007)."""
    return hsic(distances(x, x), distances(y, y))


def distance_covariance_unbiased(x: Tensor, y: Tensor) -> Tensor:
    """The sum of A_ij B_ij / (N (N - 3)) of U-centred distances (Szekely and Rizzo 2014)."""
    N = x.shape[-2]
    return (u_centred(distances(x, x)) * u_centred(distances(y, y))).sum((-2, -1)) / (N * (N - 3))


def u_centred(A: Tensor) -> Tensor:
    """A less its row means and column means over N - 2, plus its mean over (N - 1) (N - 2), 0 on the diagonal."""
    N = A.shape[-1]
    rows, columns = A.sum(-1, keepdim=True) / (N - 2), A.sum(-2, keepdim=True) / (N - 2)
    return hollow(A - rows - columns + A.sum((-2, -1), keepdim=True) / ((N - 1) * (N - 2)))


def hollow(K: Tensor) -> Tensor:
    """K with 0 on the diagonal."""
    return K - torch.diag_embed(K.diagonal(dim1=-2, dim2=-1))


def dhsic(matrices: Sequence[Tensor]) -> Tensor:
    """Pfister et al. 2018, definition 2.6."""
    K = torch.stack(list(matrices))
    joint = K.prod(0).mean((-2, -1))
    return joint + K.mean((-2, -1)).prod(0) - 2 * K.mean(-1).prod(0).mean(-1)


def mmd(Kxx: Tensor, Kyy: Tensor, Kxy: Tensor) -> Tensor:
    """Gretton et al. 2012, the square of equation 5."""
    return Kxx.mean((-2, -1)) + Kyy.mean((-2, -1)) - 2 * Kxy.mean((-2, -1))


def mmd_unbiased(Kxx: Tensor, Kyy: Tensor, Kxy: Tensor) -> Tensor:
    """Gretton et al. 2012, equation 3."""
    m, n = Kxy.shape[-2:]
    within = hollow(Kxx).sum((-2, -1)) / (m * (m - 1)) + hollow(Kyy).sum((-2, -1)) / (n * (n - 1))
    return within - 2 * Kxy.mean((-2, -1))


def mmd_linear(Kxx: Tensor, Kyy: Tensor, Kxy: Tensor) -> Tensor:
    """Gretton et al. 2012, lemma 14: the mean of h over rows taken two by two."""
    i = torch.arange(0, Kxx.shape[-1] // 2 * 2, 2)
    j = i + 1
    return (Kxx[..., i, j] + Kyy[..., i, j] - Kxy[..., i, j] - Kxy[..., j, i]).mean(-1)


def energy_distance(x: Tensor, y: Tensor) -> Tensor:
    """2 E|x - y| - E|x - x'| - E|y - y'| (Szekely and Rizzo 2013)."""
    within = distances(x, x).mean((-2, -1)) + distances(y, y).mean((-2, -1))
    return 2 * distances(x, y).mean((-2, -1)) - within
