"""Canonical correlations and decorrelation losses as their papers write them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference.covariance import covariance, inverse_factor, ridge


def by_qr(x: Tensor, y: Tensor) -> Tensor:
    """Canonical correlations: the cosines of the angles between column spaces (Bjorck and Golub 1973)."""
    Q, P = (torch.linalg.qr(t - t.mean(-2, keepdim=True))[0] for t in (x, y))
    rho: Tensor = torch.linalg.svdvals(Q.mT @ P)
    return rho


def blocks(x: Tensor, y: Tensor, reg: tuple[float, float], weights: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Sxx + reg, Syy + reg and Sxy."""
    D = x.shape[-1]
    S = covariance(torch.cat([x, y], -1), weights)[1]
    return ridge(S[..., :D, :D], reg[0]), ridge(S[..., D:, D:], reg[1]), S[..., :D, D:]


def coherence(x: Tensor, y: Tensor, reg: tuple[float, float] = (0.0, 0.0), weights: Tensor | None = None) -> Tensor:
    """Lx^-1 Sxy Ly^-T."""
    Sxx, Syy, Sxy = blocks(x, y, reg, weights)
    return inverse_factor(Sxx) @ Sxy @ inverse_factor(Syy).mT


def canonical_correlations(
    x: Tensor, y: Tensor, reg: tuple[float, float] = (0.0, 0.0), weights: Tensor | None = None
) -> Tensor:
    """The singular values of Lx^-1 Sxy Ly^-T."""
    rho: Tensor = torch.linalg.svdvals(coherence(x, y, reg, weights))
    return rho


def cca_loss(
    x: Tensor, y: Tensor, reg: tuple[float, float], objective: str, k: int | None = None, weights: Tensor | None = None
) -> Tensor:
    """Minus the correlations, their squares, or the mutual information of Gaussians."""
    rho = canonical_correlations(x, y, reg, weights)[..., :k]
    if objective == "gaussian_mi":
        return 0.5 * torch.log(1 - rho**2).sum(-1)
    return -(rho if objective == "sum" else rho**2).sum(-1)


def gaussian_mi(x: Tensor, y: Tensor) -> Tensor:
    """1/2 (log det Sxx + log det Syy - log det S)."""
    D = x.shape[-1]
    S = covariance(torch.cat([x, y], -1))[1]
    whole, of_x, of_y = (torch.linalg.slogdet(t)[1] for t in (S, S[..., :D, :D], S[..., D:, D:]))
    return torch.as_tensor(0.5 * (of_x + of_y - whole))


def gcca_loss(views: Sequence[Tensor], k: int, reg: float = 0.0) -> Tensor:
    """Minus the k largest eigenvalues of the N x N sum of projections on the views (Benton et al. 2019)."""
    total = torch.zeros((), dtype=views[0].dtype, device=views[0].device)
    for view in views:
        z = view - view.mean(0)
        total = total + z @ torch.linalg.inv(ridge(z.mT @ z, reg * (len(z) - 1))) @ z.mT
    values: Tensor = torch.linalg.eigvalsh(total)
    return -values[-k:].sum()


def mcca_loss(views: Sequence[Tensor], k: int, reg: float = 0.0) -> Tensor:
    """Minus the k largest eigenvalues of A w = lambda B w: covariances between views against those within."""
    S = covariance(torch.cat(list(views), 1))[1]
    of = torch.cat([torch.full((v.shape[1],), i, device=S.device) for i, v in enumerate(views)])
    within = of[:, None] == of
    root = inverse_factor(ridge(S.masked_fill(~within, 0), reg))
    values: Tensor = torch.linalg.eigvalsh(root @ S.masked_fill(within, 0) @ root.mT)
    return -values[-k:].sum()


def standardised(x: Tensor, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps), variance over N: batch normalisation."""
    return (x - x.mean(0)) / torch.sqrt(x.var(0, correction=0) + eps)


def barlow_twins_loss(x: Tensor, y: Tensor, lambd: float = 5e-3, eps: float = 1e-5) -> Tensor:
    """sum_i (1 - C_ii)^2 + lambda sum_{i != j} C_ij^2 (Zbontar et al. 2021)."""
    C = standardised(x, eps).T @ standardised(y, eps) / len(x)
    return (1 - C.diagonal()).square().sum() + lambd * off_diagonal(C).square().sum()


def vicreg_loss(
    x: Tensor,
    y: Tensor,
    invariance: float = 25.0,
    variance: float = 25.0,
    covariance: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Mean squared distance, hinges on standard deviations, squared covariances (Bardes et al. 2022)."""
    loss = invariance * (x - y).square().mean()
    for t in (x, y):
        loss = loss + variance / 2 * torch.relu(1 - torch.sqrt(t.var(0) + eps)).mean()
        z = t - t.mean(0)
        loss = loss + covariance * off_diagonal(z.T @ z / (len(t) - 1)).square().sum() / t.shape[1]
    return loss


def sdl_loss(x: Tensor, y: Tensor, lambd: float = 0.01, eps: float = 1e-5) -> Tensor:
    """Half the mean squared distance, and the absolute correlations within each view (Chang et al. 2018)."""
    x, y = standardised(x, eps), standardised(y, eps)
    loss = (x - y).square().sum() / (2 * len(x))
    for t in (x, y):
        loss = loss + lambd * off_diagonal(t.T @ t / len(t)).abs().sum()
    return loss


def off_diagonal(S: Tensor) -> Tensor:
    """S with zeros on the diagonal."""
    return S - torch.diag_embed(S.diagonal())
