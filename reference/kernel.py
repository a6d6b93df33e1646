"""Kernel functions and their matrices, from their textbook definitions: every pair's difference is formed."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def linear(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>."""
    return x @ y.mT


def cosine(x: Tensor, y: Tensor) -> Tensor:
    """<x, y> / (|x| |y|), 0 where a row is 0."""
    return torch.nn.functional.normalize(x, dim=-1) @ torch.nn.functional.normalize(y, dim=-1).mT


def polynomial(x: Tensor, y: Tensor, gamma: Tensor, coef0: Tensor, degree: int) -> Tensor:
    """(gamma <x, y> + coef0)^degree."""
    return (gamma * (x @ y.mT) + coef0) ** degree


def exponential(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """exp(gamma <x, y>)."""
    return torch.exp(gamma * (x @ y.mT))


def sigmoid(x: Tensor, y: Tensor, gamma: Tensor, coef0: Tensor) -> Tensor:
    """tanh(gamma <x, y> + coef0)."""
    return torch.tanh(gamma * (x @ y.mT) + coef0)


def rbf(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """exp(-gamma |x - y|^2)."""
    return torch.exp(-gamma * squared_distances(x, y))


def rbf_mixture(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """The sum of exp(-gamma_q |x - y|^2) over the entries of gamma."""
    return torch.exp(-gamma * squared_distances(x, y)[..., None]).sum(-1)


def laplacian(x: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """exp(-gamma |x - y|_1)."""
    return torch.exp(-gamma * differences(x, y).abs().sum(-1))


def matern(x: Tensor, y: Tensor, length_scale: Tensor, nu: float) -> Tensor:
    """Matérn's kernel of smoothness nu = 1/2, 3/2 or 5/2."""
    r = distances(x / length_scale, y / length_scale) * math.sqrt(2 * nu)
    polynomials = {0.5: torch.ones_like(r), 1.5: 1 + r, 2.5: 1 + r + r**2 / 3}
    return polynomials[nu] * torch.exp(-r)


def rational_quadratic(x: Tensor, y: Tensor, length_scale: Tensor, alpha: Tensor) -> Tensor:
    """(1 + |x - y|^2 / (2 alpha length_scale^2))^-alpha."""
    return (1 + squared_distances(x / length_scale, y / length_scale) / (2 * alpha)) ** -alpha


def energy(x: Tensor, y: Tensor) -> Tensor:
    """-|x - y|."""
    return -distances(x, y)


def differences(x: Tensor, y: Tensor) -> Tensor:
    """x_i - y_j, (..., N, M, D)."""
    return x[..., :, None, :] - y[..., None, :, :]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|^2."""
    return differences(x, y).square().sum(-1)


def distances(x: Tensor, y: Tensor) -> Tensor:
    """|x_i - y_j|, with gradient 0 where it is 0."""
    d2 = squared_distances(x, y)
    return torch.where(d2 > 0, torch.where(d2 > 0, d2, 1).sqrt(), 0)
