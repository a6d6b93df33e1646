"""Kernel functions k(a) of a pair: a is its dot product, its squared distance, or its L1 distance.

Tiles come as u = rate(gamma) * a, plus coef for 'polynomial' and 'sigmoid': the product that makes them takes the rate
along. `values` and `slopes` work in buffers; `formula` and `slope_formula` are the same functions out of place, for
autograd. gamma (B, Q) and coef (B,) are seen as (B, 1, 1); only a mixture of RBFs has Q > 1, and its rate is -1.

| kernel             | k(a)                             |
|--------------------|----------------------------------|
| polynomial         | (gamma a + coef)^degree          |
| exponential        | e^(gamma a)                      |
| sigmoid            | tanh(gamma a + coef)             |
| rbf                | sum_q e^(-gamma_q a)             |
| matern12           | e^-r, r^2 = gamma a              |
| matern32           | (1 + r) e^-r, r^2 = 3 gamma a    |
| matern52           | (1 + r + r^2/3) e^-r, r^2 = 5 gamma a |
| rational_quadratic | (1 + gamma a / (2 coef))^-coef   |
| energy             | -sqrt(gamma a)                   |
| laplacian          | e^(-gamma a)                     |
"""

import torch
from torch import Tensor

DOTS = ("polynomial", "exponential", "sigmoid")
L1 = "laplacian"
SHIFTED = ("polynomial", "sigmoid")  # u = gamma a + coef


def over_pairs(parameter: Tensor) -> Tensor:
    """(B,) or (B, 1) as (B, 1, 1)."""
    return parameter.reshape(-1, 1, 1)


def rate(kernel: str, gamma: Tensor, coef: Tensor) -> Tensor:
    """What a is multiplied by, (B, 1, 1)."""
    if gamma.shape[1] != 1:
        return -torch.ones_like(over_pairs(coef))
    g = over_pairs(gamma)
    if kernel in ("rbf", L1):
        return -g
    if kernel == "rational_quadratic":
        return g / (2 * over_pairs(coef))
    return g * {"matern32": 3, "matern52": 5}.get(kernel, 1)


def values(kernel: str, degree: int, gamma: Tensor, coef: Tensor, u: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """Write k into out, which may be u unless gamma has several columns; spare is overwritten."""
    if gamma.shape[1] != 1:
        torch.mul(u, gamma[:, 0, None, None], out=out).exp_()
        for q in range(1, gamma.shape[1]):
            out += torch.mul(u, gamma[:, q, None, None], out=spare).exp_()
        return out
    if kernel == "polynomial":
        return torch.pow(u, degree, out=out)
    if kernel == "sigmoid":
        return torch.tanh(u, out=out)
    if kernel == "rational_quadratic":
        return torch.log1p(u, out=out).mul_(-over_pairs(coef)).exp_()
    if kernel == "energy":
        return torch.sqrt(u, out=out).neg_()
    if kernel == "matern12":
        return torch.sqrt(u, out=out).neg_().exp_()
    if kernel in ("matern32", "matern52"):
        r = torch.sqrt(u, out=spare)
        if kernel == "matern32":
            torch.add(r, 1, out=out)
        else:
            torch.add(r, u, alpha=1 / 3, out=out).add_(1)
        return out.mul_(r.neg_().exp_())
    return torch.exp(u, out=out)  # rbf, laplacian, exponential


def slope_factor(kernel: str, degree: int, gamma: Tensor) -> Tensor:
    """What `slopes` leaves out of dk/da, (B, 1, 1)."""
    if gamma.shape[1] != 1:
        return -torch.ones_like(over_pairs(gamma[:, :1]))
    factors = {"polynomial": degree, "exponential": 1.0, "sigmoid": 1.0, "matern32": -1.5, "matern52": -5 / 6}
    factors |= {"matern12": -0.5, "rational_quadratic": -0.5, "energy": -0.5}
    return over_pairs(gamma) * factors.get(kernel, -1.0)


def slopes(kernel: str, degree: int, gamma: Tensor, u: Tensor, k: Tensor, out: Tensor, spare: Tensor) -> Tensor:
    """Return dk/da / slope_factor, written into out or k itself; 0 at a = 0 where the kernel has a kink there."""
    if gamma.shape[1] != 1:
        torch.mul(u, gamma[:, 0, None, None], out=out).exp_().mul_(gamma[:, 0, None, None])
        for q in range(1, gamma.shape[1]):
            g = gamma[:, q, None, None]
            out += torch.mul(u, g, out=spare).exp_().mul_(g)
        return out
    if kernel == "polynomial":
        return torch.pow(u, degree - 1, out=out)
    if kernel == "sigmoid":
        return torch.mul(k, k, out=out).neg_().add_(1)
    if kernel == "rational_quadratic":
        return torch.div(k, torch.add(u, 1, out=spare), out=out)
    if kernel in ("energy", "matern12"):
        torch.clamp(u, min=torch.finfo(u.dtype).tiny, out=out).rsqrt_().mul_(torch.sign(u, out=spare))
        return out if kernel == "energy" else out.mul_(k)
    if kernel in ("matern32", "matern52"):
        r = torch.sqrt(u, out=spare)
        torch.neg(r, out=out).exp_()
        return out if kernel == "matern32" else out.mul_(r.add_(1))
    return k  # rbf, laplacian, exponential


def _root(u: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0."""
    return torch.where(u > 0, torch.where(u > 0, u, 1).sqrt(), 0)


def formula(kernel: str, degree: int, a: Tensor, gamma: Tensor, coef: Tensor) -> Tensor:
    """k(a), differentiable."""
    g, c = over_pairs(gamma[:, :1]), over_pairs(coef)
    if kernel == "rbf":
        return torch.exp(-gamma[:, None, None] * a[..., None]).sum(-1) if gamma.shape[1] != 1 else torch.exp(-g * a)
    if kernel == "polynomial":
        return (g * a + c) ** degree
    if kernel == "exponential":
        return torch.exp(g * a)
    if kernel == "sigmoid":
        return torch.tanh(g * a + c)
    if kernel == L1:
        return torch.exp(-g * a)
    if kernel == "rational_quadratic":
        return torch.exp(-c * torch.log1p(g * a / (2 * c)))
    r = _root(g * a * {"matern32": 3, "matern52": 5}.get(kernel, 1))
    if kernel == "energy":
        return -r
    decay = torch.exp(-r)
    return {"matern12": decay, "matern32": (1 + r) * decay, "matern52": (1 + r + r * r / 3) * decay}[kernel]


def slope_formula(kernel: str, degree: int, a: Tensor, gamma: Tensor, coef: Tensor) -> Tensor:
    """dk/da, differentiable: written out, because autograd of a square root knows no limit at 0."""
    g, c = over_pairs(gamma[:, :1]), over_pairs(coef)
    if kernel == "rbf" and gamma.shape[1] != 1:
        return -(gamma[:, None, None] * torch.exp(-gamma[:, None, None] * a[..., None])).sum(-1)
    if kernel in ("rbf", L1):
        return -g * torch.exp(-g * a)
    if kernel == "polynomial":
        return degree * g * (g * a + c) ** (degree - 1)
    if kernel == "exponential":
        return g * torch.exp(g * a)
    if kernel == "sigmoid":
        return g * (1 - torch.tanh(g * a + c) ** 2)
    if kernel == "rational_quadratic":
        return -g / 2 * torch.exp(-(c + 1) * torch.log1p(g * a / (2 * c)))
    if kernel in ("energy", "matern12"):
        r = _root(g * a)
        inverse = torch.where(r > 0, 1 / torch.where(r > 0, r, 1), 0)
        return -g / 2 * inverse * (1 if kernel == "energy" else torch.exp(-r))
    r = _root(g * a * {"matern32": 3, "matern52": 5}[kernel])
    return -g * torch.exp(-r) * (1.5 if kernel == "matern32" else 5 / 6 * (1 + r))
