"""The gradients of a weighted sum of kernel values, out of place: what autograd differentiates for second order."""

import torch
from torch import Tensor

from mmkernels.tiled._pair import DOTS, L1, formula, slope_formula
from mmkernels.tiled._tiles import compute_dtype, memory_budget, slices


def row_tiles(kernel: str, x: Tensor, y: Tensor, views: int = 1) -> list[slice]:
    """Rows of x that keep the formula, about forty B x n x M matrices (D times that for signs), within the budget."""
    alive = (
        40
        * views
        * max(1, x.shape[0] * y.shape[1])
        * compute_dtype(x.dtype).itemsize
        * (x.shape[2] if kernel == L1 else 1)
    )
    return list(slices(x.shape[1], max(1, memory_budget() // alive)))


def grad_formula(
    *,
    x: Tensor,
    y: Tensor,
    gamma: Tensor,
    coef: Tensor,
    grad: Tensor,
    kernel: str,
    degree: int,
    centre: Tensor | None,
    v: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    """`matmul_bwd` of some rows, or `gram_bwd` where v is None, written so that autograd can differentiate it."""
    x, y = _wide(x, centre), _wide(y, centre)
    signs = _signs(kernel, x, y)
    a = _argument(kernel, x, y, signs)
    p = grad if v is None else grad @ v.to(grad.dtype).mT
    w = p * slope_formula(kernel, degree, a, gamma, coef)
    if signs is not None:
        weighted = w[..., None] * signs
        dx, dy = weighted.sum(2), -weighted.sum(1)
    elif kernel in DOTS:
        dx, dy = w @ y, w.mT @ x
    else:
        dx = 2 * (w.sum(2, keepdim=True) * x - w @ y)
        dy = 2 * (w.sum(1)[..., None] * y - w.mT @ x)

    def values(gamma: Tensor, coef: Tensor) -> Tensor:
        return formula(kernel, degree, a, gamma, coef)

    k, vjp = torch.func.vjp(values, gamma, coef)[:2]
    dgamma, dcoef = vjp(p)
    return dx, dy, None if v is None else k.mT @ grad, dgamma, dcoef


def kernel_formula(
    kernel: str, degree: int, x: Tensor, y: Tensor, gamma: Tensor, coef: Tensor, centre: Tensor | None
) -> Tensor:
    """K (B, N, M), differentiable."""
    x, y = _wide(x, centre), _wide(y, centre)
    return formula(kernel, degree, _argument(kernel, x, y, _signs(kernel, x, y)), gamma, coef)


def _signs(kernel: str, x: Tensor, y: Tensor) -> Tensor | None:
    return (x[:, :, None] - y[:, None]).detach().sign() if kernel == L1 else None


def _argument(kernel: str, x: Tensor, y: Tensor, signs: Tensor | None) -> Tensor:
    """The dot products or distances (B, N, M)."""
    if signs is not None:
        return (signs * (x[:, :, None] - y[:, None])).sum(-1)
    dots = x @ y.mT
    if kernel in DOTS:
        return dots
    norms = x.square().sum(2, keepdim=True) + y.square().sum(2)[:, None]
    a = norms - 2 * dots
    # What counts as 0 keeps its derivatives: those of a squared distance are not 0.
    near = a <= 4 * torch.finfo(a.dtype).eps * norms
    return a + (a.masked_fill(near, 0) - a).detach()


def _wide(x: Tensor, centre: Tensor | None) -> Tensor:
    x = x.to(compute_dtype(x.dtype))
    return x if centre is None else x - centre
