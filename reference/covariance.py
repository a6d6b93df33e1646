"""Covariances and whitening as textbooks write them, on centred data held as a whole."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def covariance(
    x: Tensor, weights: Tensor | None = None, present: Tensor | None = None, correction: float = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (..., D), covariance (..., D, D) and n of rows (..., N, D).

    weights (..., N). present (..., N, D), False where a row lacks the feature: each pair of features then uses the rows
    that have both, with means over those, and n is (..., D, D).
    """
    w = x.new_ones(x.shape[-2]) if weights is None else weights.to(x.dtype)
    if present is None:
        n = w.sum(-1)[..., None]
        mean = (w[..., None] * x).sum(-2) / n
        z = x - mean[..., None, :]
        return mean, (w[..., None] * z).mT @ z / (n[..., None] - correction), n[..., 0]
    both = present[..., :, :, None] & present[..., :, None, :]
    x, w = torch.where(present, x, 0), w[..., None, None] * both
    n = w.sum(-3)
    mean = (w * x[..., :, None]).sum(-3) / n  # of feature i over the rows that have i and j
    z = x[..., :, None] - mean[..., None, :, :]
    return mean.diagonal(dim1=-2, dim2=-1), (w * z * z.mT).sum(-3) / (n - correction), n


def inverse_sqrt(S: Tensor) -> Tensor:
    """V diag(lambda)^(-1/2) V' for S = V diag(lambda) V'."""
    values, vectors = torch.linalg.eigh(S)
    return torch.matmul(vectors * values[..., None, :] ** -0.5, vectors.mT)


def inverse_factor(S: Tensor) -> Tensor:
    """L^-1 for S = L L'."""
    inverse: Tensor = torch.linalg.inv(torch.linalg.cholesky(S))
    return inverse


def whitening_matrix(S: Tensor, method: str) -> Tensor:
    """The W of Kessy, Lewin and Strimmer 2018, table 1; the largest entry of a "pca" row is positive."""
    if method == "zca":
        return inverse_sqrt(S)
    if method == "cholesky":
        return inverse_factor(S)
    if method == "zca_cor":
        scale = torch.diag_embed(S.diagonal(dim1=-2, dim2=-1) ** -0.5)
        return torch.matmul(inverse_sqrt(scale @ S @ scale), scale)
    values, vectors = torch.linalg.eigh(S)
    V = vectors.flip(-1)
    V = V * V.gather(-2, V.abs().argmax(-2, keepdim=True)).sign()
    return torch.matmul(torch.diag_embed(values.flip(-1) ** -0.5), V.mT)


def whiten(x: Tensor, method: str, reg: float = 0.0) -> Tensor:
    """W (x - mean) of every row."""
    mean, S, _ = covariance(x)
    return (x - mean[..., None, :]) @ whitening_matrix(ridge(S, reg), method).mT


def ridge(S: Tensor, reg: float) -> Tensor:
    """S + reg on the diagonal."""
    return S + reg * torch.eye(S.shape[-1], dtype=S.dtype, device=S.device)


def shrunk(S: Tensor, s: Tensor | float) -> Tensor:
    """(1 - s) S + s tr(S) / D on the diagonal."""
    D = S.shape[-1]
    return (1 - s) * S + s * S.trace() / D * torch.eye(D, dtype=S.dtype, device=S.device)


def oas(S: Tensor, n: int) -> Tensor:
    """The shrinkage of Chen, Wiesel, Eldar and Hero 2010, equation 23, without its terms of order 1 / D."""
    D = S.shape[-1]
    trace, square = S.trace(), (S @ S).trace()
    return ((square + trace**2) / ((n + 1) * (square - trace**2 / D))).clamp(max=1)


def ledoit_wolf(x: Tensor) -> Tensor:
    """The shrinkage of Ledoit and Wolf 2004: how much rows' products vary, over how far S is from tr(S) / D."""
    z = x - x.mean(0)
    products = z[:, :, None] * z[:, None, :]
    S = products.mean(0)
    spread = (products - S).square().sum() / len(x) ** 2
    distance = (S - S.trace() / len(S) * torch.eye(len(S), dtype=S.dtype, device=S.device)).square().sum()
    return (spread / distance).clamp(max=1)


def stacked_present(present: Sequence[Tensor | None], views: Sequence[Tensor]) -> Tensor:
    """One mask (N,) or None for each view as one (N, D) for their stacked features."""
    return torch.cat(
        [
            (torch.ones(v.shape[-2], dtype=torch.bool, device=v.device) if p is None else p)[:, None].expand(
                -1, v.shape[-1]
            )
            for p, v in zip(present, views, strict=True)
        ],
        1,
    )
